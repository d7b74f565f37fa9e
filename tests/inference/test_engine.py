"""The native engine against the torch path, and against itself: alone, in batches, in chunks, after shared beginnings."""

import json
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.checkpoints.llamas import SCALED, SHAPES, random_llama
from tests.inference.native.blocks import PATHS, quantized
from tests.inference.native.exercise import random_model

from lamoid.checkpoints.conversion import convert, open_model
from lamoid.checkpoints.gguf import read_gguf
from lamoid.checkpoints.gguf_llama import read_gguf_model
from lamoid.checkpoints.hf import write_model
from lamoid.errors import CheckpointError, EngineUnavailable, UsageError
from lamoid.inference.decoder import TorchDecoder
from lamoid.inference.engine import CHUNK_TOKENS, NativeDecoder, NativeModel
from lamoid.inference.generate import generate
from lamoid.inference.native.library import PAGE_KEYS, Team
from lamoid.inference.pages import Pages
from lamoid.inference.sampling import Sampling
from lamoid.inference.weights import Weights, weights_of_arrays, weights_of_directory, weights_of_gguf
from lamoid.models.llama import Llama
from lamoid.models.llama_config import LlamaConfig, parameter_shapes
from lamoid.nn.positions import RoPE
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, Llama3Scaling, YarnScaling, rope_table
from lamoid.recipes.engines import load_engine

_ODD = dict(vocab_size=43, d_model=20, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=6, d_ff=37, max_seq_len=600)
CONFIGS = SHAPES | {
    "scaled as in Llama 3.2": SCALED,
    "odd sizes": LlamaConfig(**_ODD),
    "one kv head, biases": LlamaConfig(**_ODD | dict(n_kv_heads=1), attention_bias=True, feed_forward_bias=True),
    "YaRN": LlamaConfig(**_ODD, rope_scaling=YarnScaling(4.0, 64)),
    "positions divided": LlamaConfig(**_ODD, rope_scaling=LinearScaling(2.0)),
}


def ids_for(config: LlamaConfig, n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, n).tolist()


def decoder_of(weights: Weights, threads: int = 2, **options: bool) -> NativeDecoder:
    path = options.pop("path", None)
    return NativeDecoder(NativeModel(weights, Team(threads, path=path), **options))


def torch_logits(model: Llama, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0].numpy()


def assert_close(got: np.ndarray, expected: np.ndarray, share: float = 1e-4) -> None:
    assert np.abs(got - expected).max() <= share * np.abs(expected).max()


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request) -> LlamaConfig:
    return request.param


@pytest.fixture
def directory(config: LlamaConfig, tmp_path: Path) -> Path:
    """A Hugging Face directory: RoPE's pairs half a head apart."""
    write_model(tmp_path, random_llama(config), None)
    return tmp_path


@pytest.mark.parametrize("path", PATHS)
def test_logits_in_f32_equal_torch(config, directory, path):
    ids = ids_for(config, min(config.max_seq_len, 300))
    decoder = decoder_of(weights_of_directory(directory), path=path)
    assert_close(decoder.logits(ids), torch_logits(random_llama(config), ids))


def test_interleaved_files_give_the_same(config, directory, tmp_path):
    file = tmp_path / "model.gguf"
    convert(open_model(directory), file, dtype="F32", notify=lambda text: None)
    ids = ids_for(config, 100)
    got = decoder_of(weights_of_gguf(read_gguf(file))).logits(ids)
    assert_close(got, torch_logits(random_llama(config), ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_equal_torch_with_the_same_weights(config, tmp_path, dtype):
    model = random_llama(config).to(dtype)
    write_model(tmp_path, model, None)
    ids = ids_for(config, 100)
    expected = torch_logits(model.float(), ids)
    assert_close(decoder_of(weights_of_directory(tmp_path), half_cache=False).logits(ids), expected)
    assert_close(decoder_of(weights_of_directory(tmp_path)).logits(ids), expected, 2e-2)  # keys and values in float16


class _Seeing(torch.nn.Module):
    """A linear layer that sees its input as the kernels do."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(
            torch.from_numpy(quantized(x.numpy()).astype(np.float32)), self.weight, self.bias
        )


def seeing(model: Llama) -> Llama:
    """The model with every input of a matrix rounded to int8 in groups of 32, which is all that the engine does to it."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, _Seeing(child))
    return model


QUANTIZED_SHAPE = dict(
    vocab_size=100, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=96, max_seq_len=128
)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantized_logits_are_those_of_rounded_activations(kind, tmp_path):
    """Nothing but the rounding of activations is between the engine and torch on dequantized weights.

    With the same rounding in torch the logits agree to a few rounding steps that fall the other way (float32 sums in
    another order move a number across a half); without it they differ by what eight bits cost: each input of a matrix is
    off by at most 1/254 of its group's largest, at random, through 15 matrices one after the other.
    """
    config = LlamaConfig(**QUANTIZED_SHAPE)
    folder = tmp_path / "hf"
    folder.mkdir()
    write_model(folder, random_llama(config), None)
    file = tmp_path / "model.gguf"
    convert(open_model(folder), file, dtype=kind, notify=lambda text: None)
    ids = ids_for(config, 120)
    got = decoder_of(weights_of_gguf(read_gguf(file)), half_cache=False).logits(ids)
    model, _ = read_gguf_model(file, dtype=torch.float32)
    plain = torch_logits(model, ids)
    rounded = torch_logits(seeing(model), ids)
    size = np.sqrt((plain**2).mean())
    assert np.sqrt(((got - rounded) ** 2).mean()) <= 0.005 * size
    assert np.sqrt(((got - plain) ** 2).mean()) <= 0.03 * size


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q6_K"])
def test_a_sequence_gets_the_same_bits_alone_in_a_batch_in_chunks_and_from_any_threads(kind):
    """16 sequences of unequal lengths, prompts longer than a chunk and than a range of keys among them."""
    weights = random_model(kind)
    prompts = [ids_for(weights.config, n, n) for n in (1, 2, 3, 5, 8, 13, 40, 63, 64, 65, 127, 128, 129, 130, 200, 290)]
    together, alone = decoder_of(weights, threads=3), decoder_of(weights, threads=1)
    logits, steps = together.prefill(prompts), []
    for _ in range(3):
        steps.append(logits)
        logits = together.step(logits.argmax(axis=1).tolist())
    for row, prompt in enumerate(prompts):
        expected = alone.prefill([prompt])
        for step in steps:
            assert np.array_equal(step[row], expected[0])
            expected = alone.step([int(expected[0].argmax())])
    by_steps = decoder_of(weights, threads=2)
    logits = by_steps.prefill([prompts[-1][:1]])
    for index in prompts[-1][1:]:
        logits = by_steps.step([index])
    assert np.array_equal(logits[0], steps[0][-1])


def test_rows_that_go_on_keep_their_cache():
    weights = random_model("Q8_0")
    prompts = [ids_for(weights.config, n, n) for n in (70, 3, 140)]
    decoder, alone = decoder_of(weights), decoder_of(weights)
    decoder.prefill(prompts)
    decoder.keep_rows([2, 0])
    got = decoder.step([5, 6])
    alone.prefill([prompts[2]])
    assert np.array_equal(got[0], alone.step([5])[0])
    alone.prefill([prompts[0]])
    assert np.array_equal(got[1], alone.step([6])[0])


class _Counting(NativeModel):
    """Counts the tokens that are computed."""

    n_computed = 0

    def forward(self, ids, positions, tables, outputs):
        self.n_computed += len(ids)
        return super().forward(ids, positions, tables, outputs)


def test_a_common_beginning_is_computed_once():
    weights = random_model("F32")
    model = _Counting(weights, Team(1))
    decoder, start = NativeDecoder(model), ids_for(weights.config, 150)
    first = decoder.prefill([[*start, 1]])
    assert model.n_computed == 151
    answer = [7, 8, 9]
    for index in answer:
        decoder.step([index])
    again = decoder.prefill([[*start, 1, *answer, 4, 5]])  # a conversation's next turn
    assert model.n_computed == 151 + 3 + 2
    assert np.array_equal(again[0], decoder_of(weights).prefill([[*start, 1, *answer, 4, 5]])[0])
    decoder.prefill([[*start, 2], [*start, 3], [*start[:70], 6, 6]])
    assert model.n_computed == 156 + 1 + 1 + 2
    assert np.array_equal(decoder.prefill([[*start, 1]]), first)
    decoder.keep_rows([])
    assert decoder.prefill([start[:3]]).shape == (1, weights.config.vocab_size)


def test_pages_are_shared_and_given_back():
    pages, ids = Pages(64, most_idle=2), list(range(4 * PAGE_KEYS))
    first = [pages.new() for _ in range(4)]
    pages.remember(first, ids)
    assert pages.shared(ids) == first and pages.shared([*ids[:PAGE_KEYS], 1, *ids]) == first[:1]
    assert pages.shared(ids[:-1]) == first[:3] and pages.shared(ids[1:]) == []
    assert [page.n_users for page in first] == [4, 3, 3, 2]
    for kept in (first, first, first[:1], first[:3]):
        pages.release(kept)
    assert [page.n_users for page in first] == [0, 0, 0, 0]
    assert (
        pages.n_pages == 2 and pages.shared(ids) == first[:2]
    )  # the end went first: it is nothing without its beginning


def test_a_failed_prefill_leaves_nothing_behind(monkeypatch):
    weights = random_model("F32")
    decoder = decoder_of(weights)
    forward, calls = decoder.model.forward, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(*arguments)

    prompt = ids_for(weights.config, CHUNK_TOKENS + 30)
    monkeypatch.setattr(decoder.model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.prefill([prompt])
    assert np.array_equal(decoder.prefill([prompt]), decoder_of(weights).prefill([prompt]))


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "F32"])
def test_whole_steps_have_the_same_bits_on_any_vectors(kind):
    """Norms, attention and softmax as well as products; plain C alone rounds products and sums separately."""
    weights, prompts = random_model(kind), [list(range(40)), [5]]
    found = []
    for path in (path for path in PATHS if path != "C"):
        decoder = decoder_of(weights, path=path)
        found.append([decoder.prefill(prompts), decoder.step([3, 4]), decoder.step([1, 2])])
    for other in found[1:]:
        assert np.array_equal(other, found[0])


def test_an_empty_prompt_is_refused():
    decoder = decoder_of(random_model("F32"))
    with pytest.raises(UsageError, match="prompt 1 is empty"):
        decoder.prefill([[1], []])


@pytest.mark.parametrize("path", PATHS)
def test_values_beyond_float16_spoil_no_earlier_token(path):
    """In a cache of float16 they are its largest; as infinities, times a weight of 0, they would be NaN for everyone."""
    config = CONFIGS["odd sizes"]
    arrays = {name: p.detach().numpy() for name, p in random_llama(config).named_parameters()}
    arrays = {name: a * np.float32(1e8 if "v_proj" in name else 1) for name, a in arrays.items()}
    decoder = decoder_of(weights_of_arrays(config, arrays), path=path, half_cache=True)
    ids = ids_for(config, 20)
    together = decoder.logits(ids)
    assert np.isfinite(together).all()
    assert np.array_equal(decoder.logits(ids[:1])[0], together[0])


@pytest.mark.parametrize("interrupted_after", [False, True])
def test_a_step_that_was_interrupted_is_not_taken_for_read(monkeypatch, interrupted_after):
    """Ctrl-C before or after the kernels: the next turn begins like the interrupted one, and gets the right numbers."""
    weights = random_model("F32")
    decoder, prompt = decoder_of(weights), ids_for(weights.config, 30)
    forward = decoder.model.forward

    def interrupted(*arguments):
        if interrupted_after:
            forward(*arguments)
        raise KeyboardInterrupt

    decoder.prefill([prompt])
    for step in (lambda: decoder.step([7]), lambda: decoder.step_many([7, 8, 9])):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(decoder.model, "forward", interrupted)
            step()
        again = [*prompt, 7, 8, 9, 5]
        assert np.array_equal(decoder.prefill([again]), decoder_of(weights).prefill([again]))
        decoder.prefill([prompt])


_FORKED = """
import os, sys, warnings
from tests.inference.native.exercise import random_model
from lamoid.errors import EngineUnavailable
from lamoid.inference.engine import NativeDecoder, NativeModel
from lamoid.inference.native.library import Team

warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads: that is what is tested
decoder = NativeDecoder(NativeModel(random_model("F32"), Team(2)))
decoder.prefill([[1, 2, 3]])
if os.fork() == 0:
    try:
        decoder.prefill([[4, 5, 6]])
    except EngineUnavailable as error:
        assert "forked" in str(error)
        del decoder
        print("refused", flush=True)
    os._exit(0)
assert os.wait()[1] == 0
decoder.prefill([[4, 5, 6]])
print("done")
"""


def test_a_forked_process_is_told_that_it_has_no_threads():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    assert done.stdout.split() == ["refused", "done"], done.stderr


def test_rope_equals_torch_for_every_scaling():
    for scaling in (None, LinearScaling(3.0), YarnScaling(8.0, 512), Llama3Scaling(32.0, 1.0, 4.0, 256)):
        for head_dim, base in ((10, 10_000.0), (64, 500_000.0), (128, 100_000.0)):
            cosines, sines = rope_table(head_dim, base, scaling, 0, 2000)
            expected = RoPE(head_dim, base, scaling)(torch.arange(2000)[None])
            assert np.abs(cosines - expected[0][0, 0].numpy()).max() <= 3e-4  # of an angle of 2,000, a float32 has 1e-4
            assert np.abs(sines - expected[1][0, 0].numpy()).max() <= 3e-4
            later, _ = rope_table(head_dim, base, scaling, 700, 5)
            assert np.array_equal(later, cosines[700:705])


def test_weights_may_be_arrays():
    config = CONFIGS["odd sizes"]
    model = random_llama(config)
    arrays = {name: p.detach().numpy() for name, p in model.named_parameters()}
    ids = ids_for(config, 50)
    assert_close(decoder_of(weights_of_arrays(config, arrays)).logits(ids), torch_logits(model, ids))


def test_the_shapes_are_those_of_the_model(config):
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in Llama(config).named_parameters()}
    assert parameter_shapes(config) == expected
    assert list(parameter_shapes(config)) == list(expected)


def test_what_the_engine_cannot_run_has_a_reason(tmp_path):
    config = LlamaConfig(**_ODD, rope_scaling=DynamicNTKScaling(2.0, 600))
    write_model(tmp_path, random_llama(config), None)
    with pytest.raises(EngineUnavailable, match="dynamic"):
        weights_of_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(EngineUnavailable, match="gpt2"):
        load_engine(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "adapter_config.json")
    with pytest.raises(EngineUnavailable, match="adapter"):
        load_engine(tmp_path)
    with pytest.raises(UsageError, match="threads is 0"):
        load_engine(tmp_path, threads=0)


def test_formats_without_kernels_have_a_reason(tmp_path):
    file, config = tmp_path / "model.gguf", LlamaConfig(**QUANTIZED_SHAPE | dict(d_model=32))
    write_model(tmp_path, random_llama(config), None)
    convert(open_model(tmp_path), file, dtype="F32", notify=lambda text: None)
    opened = read_gguf(file)
    tensor = opened.tensors["output.weight"]
    blocks = gguf.quantize(tensor.data.view("<f4").reshape(tensor.shape), gguf.GGMLQuantizationType.Q5_1)
    opened.tensors["output.weight"] = type(tensor)(tensor.name, tensor.shape, "Q5_1", blocks)
    with pytest.raises(EngineUnavailable, match="Q5_1"):
        weights_of_gguf(opened)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-8], "cannot be read"),
        (lambda b: b"\xff" * 8 + b[8:], "cannot be read"),
        (lambda b: b[:8] + b[8:].replace(b'"F32"', b'"I32"', 1), "I32"),
        (lambda b: b.replace(b"[43,20]", b"[20,43]", 1), "is \\(20, 43\\)"),
    ],
)
def test_a_damaged_file_never_reaches_a_kernel(tmp_path, damage, message):
    write_model(tmp_path, random_llama(CONFIGS["odd sizes"]), None)
    file = tmp_path / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        weights_of_directory(tmp_path)


PROMPTS = [f"{a} {b}" for a in ("The capital of", "I like", "Một con mèo", "猫", "고양이는") for b in "abcdefghij"]


def test_smollm2_writes_what_torch_writes_and_its_perplexity_is_the_same(smollm2):
    """Greedy text of 50 prompts with the F32 weights, in batches on both sides; then the quantized file's logits.

    Takes longer than other tests: it is the only one that runs real weights through both.
    """
    decoder = decoder_of(weights_of_directory(smollm2))
    from lamoid.recipes.load import load

    model, tokenizer = load(smollm2, dtype=torch.float32)
    settings = dict(sampling=Sampling(temperature=0), max_new_tokens=8, end_ids=[])
    ours = generate(decoder, tokenizer, PROMPTS, **settings)
    theirs = generate(TorchDecoder(model), tokenizer, PROMPTS, **settings)
    assert [done.ids for done in ours] == [done.ids for done in theirs]
    ids = tokenizer.encode("".join(pydoc_data.topics.topics.values()))[:1024]  # benchmarks/engine.py takes 50 KB of it
    small = decoder_of(weights_of_gguf(read_gguf(next(smollm2.glob("*.gguf")))))
    assert perplexity(small.logits(ids), ids) == pytest.approx(perplexity(torch_logits(model, ids), ids), rel=0.005)


def perplexity(logits: np.ndarray, ids: list[int]) -> float:
    logits = logits[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(logits).sum(axis=1))
    return float(np.exp(-chosen.mean()))


_RESIDENT = """
import json, sys
from pathlib import Path

def resident():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024

from lamoid.recipes.engines import load_engine
decoder, tokenizer = load_engine(sys.argv[1])
prompt = tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 10)
logits = decoder.prefill([prompt])
for _ in range(8):
    logits = decoder.step([int(logits[0].argmax())])
cache = len(decoder._tables[0].pages) * decoder.model.page_bytes
print(json.dumps({"resident": resident(), "cache": cache, "torch": "torch" in sys.modules}))
"""


def test_smollm2_is_in_memory_once_and_needs_no_torch(smollm2):
    file = next(smollm2.glob("*.gguf"))
    command = [sys.executable, "-c", _RESIDENT, str(smollm2)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["torch"]
    beside = found["resident"] - file.stat().st_size - found["cache"]
    assert beside <= 66e6, "Python with numpy has 27 MB of it, the tokenizer 15"
