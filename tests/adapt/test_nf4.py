"""NF4 beside bitsandbytes: the same bytes, the same scales, the same weights; and the product made from them."""

from collections.abc import Iterator

import bitsandbytes.functional as reference
import pytest
import torch
from tests.checkpoints.llamas import SHAPES, random_llama
from torch import Tensor, nn

from lamoid.adapt.lora import LoraConfig, add_lora
from lamoid.adapt.nf4 import SCALES, VALUES, Nf4Config, Nf4Linear, offsets_of, quantize, quantize_base
from lamoid.errors import UsageError

SIZES = [(1, 1), (1, 63), (3, 64), (5, 7), (7, 100), (64, 96), (130, 257), (64, 1000), (576, 1536), (257, 4096)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def not_compiled() -> Iterator[None]:
    """bitsandbytes compiles what it does for odd sizes, which takes long and changes nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


def in_nf4(weight: Tensor, config: Nf4Config, bias: bool = False, offset: float | None = None) -> Nf4Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias).to(weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return Nf4Linear(linear, config, offset)


def some_weights(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Blocks of zeros, outliers, one value alone, and exact midpoints between two values of NF4 among them."""
    generator = torch.Generator().manual_seed(shape[0] * shape[1])
    weight = torch.randn(shape, generator=generator) * 0.05
    flat = weight.view(-1)
    flat[64:192] = 0
    flat[200:201] = 3.0
    flat[256:320] = 0.25
    flat[320:335] = (VALUES[:-1] + VALUES[1:])[: len(flat[320:335])] / 2
    flat[335:336] = 1.0
    return weight.to(dtype)


def test_the_tables_are_those_of_bitsandbytes() -> None:
    assert torch.equal(VALUES, reference.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(SCALES, reference.create_dynamic_map())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SIZES)
def test_codes_and_scales_are_those_of_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = some_weights(shape, dtype)
    codes, state = reference.quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    found, scales = quantize(weight)
    assert torch.equal(found, codes.flatten()) and torch.equal(scales, state.absmax)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SIZES)
def test_doubly_quantized_scales_are_those_of_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = some_weights(shape, dtype)
    codes, state = reference.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    layer = in_nf4(weight, Nf4Config())
    assert torch.equal(layer.codes, codes.flatten()) and torch.equal(layer.scales, state.absmax)
    assert torch.equal(layer.scale_scales, state.state2.absmax) and torch.equal(layer.offset, state.offset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", SIZES)
def test_weights_made_again_are_those_of_bitsandbytes(shape: tuple[int, int], double: bool, dtype: torch.dtype) -> None:
    """Theirs as one long row: with AVX-512, 0.50.2 takes wrong scales where rows have 32 weights more than whole blocks."""
    weight = some_weights(shape, dtype)
    codes, state = reference.quantize_4bit(weight.view(1, -1), quant_type="nf4", compress_statistics=double)
    expected = reference.dequantize_4bit(codes, state).view(shape)
    layer = in_nf4(weight, Nf4Config(double, str(dtype).removeprefix("torch.")))
    assert torch.equal(layer.weight, expected)


def test_the_weights_of_a_real_model_get_the_bytes_of_bitsandbytes(smollm2_weights: dict[str, Tensor]) -> None:
    names = [name for name in smollm2_weights if ".layers.7." in name and name.endswith("proj.weight")]
    assert len(names) == 7
    for name in names:
        codes, state = reference.quantize_4bit(smollm2_weights[name], quant_type="nf4", compress_statistics=True)
        layer = in_nf4(smollm2_weights[name], Nf4Config())
        assert torch.equal(layer.codes, codes.flatten()) and torch.equal(layer.scales, state.absmax), name
        assert torch.equal(layer.weight, reference.dequantize_4bit(codes, state)), name


@pytest.mark.parametrize("bias", [False, True])
def test_the_gradient_of_the_product(bias: bool) -> None:
    layer = in_nf4(torch.randn(5, 7), Nf4Config(), bias=bias)
    layer.compute_dtype = torch.float64
    if bias:
        layer.bias.data = layer.bias.data.double()
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_products_in_bfloat16_give_back_the_dtype_of_their_input() -> None:
    layer, x = in_nf4(torch.randn(64, 128), Nf4Config(compute_dtype="bfloat16")), torch.randn(3, 128)
    y = layer(x)
    assert y.dtype == torch.float32 and torch.equal(y, (x.bfloat16() @ layer.weight.T).float())


def test_a_model_keeps_its_embeddings_norms_biases_and_output_layer() -> None:
    model = random_llama(SHAPES["grouped"])
    before = {name: p.clone() for name, p in model.named_parameters()}
    quantize_base(model, Nf4Config())
    after = dict(model.named_parameters())
    assert not any(p.requires_grad for p in after.values())
    assert {name for name in before if name not in after} == {n for n in before if n.endswith("_proj.weight")}
    assert all(torch.equal(before[name], p) for name, p in after.items())
    layers = [layer for layer in model.modules() if isinstance(layer, Nf4Linear)]
    assert len(layers) == 14
    n_weights = sum(layer.in_features * layer.out_features for layer in layers)
    n_bytes = sum(part.numel() * part.itemsize for layer in layers for part in layer.buffers())
    assert n_bytes < n_weights * (4 + 8 / 64 + 32 / 64 / 256) / 8 + 8 * len(layers)  # 4.127 bits, and one offset each


def test_moving_a_model_to_another_dtype_leaves_the_scales_alone() -> None:
    layer = in_nf4(some_weights((130, 257)), Nf4Config(), bias=True)
    before = layer.weight
    layer.to(torch.bfloat16)
    assert torch.equal(layer.weight, before) and layer.bias.dtype == torch.bfloat16
    assert layer.codes.dtype == torch.uint8 and layer.scale_scales.dtype == torch.float32


def test_recorded_offsets_make_the_same_base_to_the_bit() -> None:
    first, other = (quantize_base(random_llama(SHAPES["tied"]), Nf4Config()) for _ in range(2))
    changed = {path: offset * (1 + 1e-6) for path, offset in offsets_of(first).items()}
    shifted = quantize_base(random_llama(SHAPES["tied"]), Nf4Config(), changed)
    again = quantize_base(random_llama(SHAPES["tied"]), Nf4Config(), offsets_of(shifted))
    assert len(changed) == 14 and offsets_of(other) == offsets_of(first) != offsets_of(shifted) == offsets_of(again)
    for ours, theirs in zip(shifted.buffers(), again.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    changed.popitem()
    with pytest.raises(UsageError, match=r"no offset .* layers\.1\.feed_forward\.down_proj"):
        quantize_base(random_llama(SHAPES["tied"]), Nf4Config(), changed)


def test_offsets_go_by_the_paths_of_the_base_whatever_stands_on_it() -> None:
    model = quantize_base(random_llama(SHAPES["tied"]), Nf4Config())
    before = offsets_of(model)
    assert offsets_of(add_lora(model, LoraConfig(targets=("q_proj",)))) == before


def test_without_double_quantization_there_are_no_offsets() -> None:
    assert offsets_of(quantize_base(random_llama(SHAPES["tied"]), Nf4Config(double_quantization=False))) == {}


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(UsageError, match="not finite"):
        in_nf4(torch.tensor([[1.0, float("nan")]]), Nf4Config())
    with pytest.raises(UsageError, match="compute_dtype is 'float16'; it must be one of float32, bfloat16"):
        Nf4Config(compute_dtype="float16")
    with pytest.raises(UsageError, match="match no linear layer"):
        quantize_base(nn.Sequential(nn.Embedding(3, 3)), Nf4Config())
