import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lamoid.nn.norms import LayerNorm, RMSNorm

SHAPES = [(7,), (3, 5), (2, 3, 33)]


def a_norm(d_model: int, eps: float = 1e-5) -> RMSNorm:
    norm = RMSNorm(d_model, eps)
    nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
def test_is_the_formula(shape: tuple[int, ...], eps: float) -> None:
    norm, x = a_norm(shape[-1], eps), torch.randn(shape)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_has_the_bits_of_transformers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    norm = a_norm(shape[-1]).to(dtype)
    reference = LlamaRMSNorm(shape[-1], eps=1e-5).to(dtype)
    reference.load_state_dict(norm.state_dict())
    x = torch.randn(shape, dtype=dtype) * 30
    assert torch.equal(norm(x), reference(x))
    assert norm(x).dtype == dtype


def test_gives_unit_root_mean_square_and_not_zero_mean() -> None:
    y = RMSNorm(64, 1e-12)(torch.randn(5, 64) * 7 + 3)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(5))
    assert (y.mean(-1) > 0.1).all()


def test_equals_layer_norm_on_input_of_zero_mean() -> None:
    x = torch.randn(5, 64)
    x -= x.mean(-1, keepdim=True)
    torch.testing.assert_close(RMSNorm(64)(x), F.layer_norm(x, (64,), eps=1e-5))


def test_takes_its_statistics_in_fp32() -> None:
    x = torch.full((1, 8), 300.0, dtype=torch.float16)  # 300² is beyond fp16
    assert torch.equal(RMSNorm(8).half()(x), torch.ones(1, 8, dtype=torch.float16))


def test_gain_begins_at_one_for_each_feature_and_is_all_there_is() -> None:
    norm = RMSNorm(9)
    assert {name: tuple(p.shape) for name, p in norm.named_parameters()} == {"weight": (9,)}
    assert torch.equal(norm.weight, torch.ones(9))


def test_gradients_equal_those_of_pytorch() -> None:
    norm, x = a_norm(33), torch.randn(4, 33, requires_grad=True)
    upstream = torch.randn(4, 33)
    ours = torch.autograd.grad(norm(x), (x, norm.weight), upstream)
    theirs = torch.autograd.grad(F.rms_norm(x, (33,), norm.weight, 1e-5), (x, norm.weight), upstream)
    torch.testing.assert_close(ours, theirs)


def test_shows_its_size_and_epsilon() -> None:
    assert repr(RMSNorm(9, 1e-6)) == "RMSNorm(9, eps=1e-06)"


def test_gradcheck():
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    norm = RMSNorm(5, eps=0.1).double()
    norm.weight.data.normal_()
    assert torch.autograd.gradcheck(
        lambda x, gain: torch.func.functional_call(norm, {"weight": gain}, x), (x, norm.weight)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.1])
def test_layer_norm_is_the_formula_and_pytorchs(shape: tuple[int, ...], eps: float) -> None:
    ours, theirs = LayerNorm(shape[-1], eps), nn.LayerNorm(shape[-1], eps)
    assert ours.weight.tolist() == [1] * shape[-1] and ours.bias.tolist() == [0] * shape[-1]
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    x = (torch.randn(shape) * 3 + 2).requires_grad_()
    wide = x.detach().double()
    centred = wide - wide.mean(-1, keepdim=True)
    normalised = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    expected = normalised * ours.weight.double() + ours.bias.double()
    torch.testing.assert_close(ours(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours(x), theirs(x))
    half = x.detach().bfloat16()
    torch.testing.assert_close(ours.bfloat16()(half).float(), expected.float(), rtol=0.05, atol=0.1)
