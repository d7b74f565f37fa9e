from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lamoid.adapt.adapters import AdapterConfig, add_adapters
from lamoid.adapt.lora import LoraConfig, add_lora
from lamoid.adapt.nf4 import Nf4Config, quantize_base
from lamoid.inference.decoder import TorchDecoder, _Product
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.nn.rope_scaling import DynamicNTKScaling, Llama3Scaling, RopeScaling, YarnScaling

V = 97  # divides by no number of threads
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": dict(),
    "multi-query": dict(n_kv_heads=1),
    "multi-head": dict(n_kv_heads=6),
    "biases": dict(attention_bias=True, feed_forward_bias=True),
    "tied": dict(tied_embeddings=True),
    "llama3": dict(rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 16)),
    "yarn": dict(rope_scaling=YarnScaling(4.0, 16)),
    "dynamic": dict(rope_scaling=DynamicNTKScaling(2.0, 64)),
    "even": dict(vocab_size=96, d_model=24, d_ff=48, head_dim=8),
}
PROMPTS = [[5, 1, 77], [9] * 11, [3], [50, 40, 30, 20, 10, 0]]
SetThreads = Callable[[int], None]


def a_model(**changes: Any) -> Llama:
    shape: dict[str, Any] = dict(
        vocab_size=V, d_model=25, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=10, d_ff=51, max_seq_len=64
    )
    model = Llama(LlamaConfig(**(shape | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model


@torch.no_grad()
def last_logits(model: Llama, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids]))[0, -1].float().numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape and found.dtype == np.float32
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert difference < tolerance, f"logits differ by {difference:.2e} of the largest"


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_equal_the_full_forward(name: str, threads: int, set_threads: SetThreads) -> None:
    set_threads(threads)
    model = a_model(**CONFIGS[name])
    decoder, ids = TorchDecoder(model), [5, 1, 77]
    logits = decoder.prefill([ids])
    for new in (4, 4, 96 % model.config.vocab_size, 0, 13, 2):
        assert_close(logits[0], last_logits(model, ids))
        ids = [*ids, new]
        logits = decoder.step([new])
    assert_close(logits[0], last_logits(model, ids))


@pytest.mark.parametrize("n_rows", [1, 2, 8, 9, 12])
@pytest.mark.parametrize("name", ["plain", "biases", "even"])
def test_any_number_of_rows(name: str, n_rows: int, set_threads: SetThreads) -> None:
    set_threads(2)
    model = a_model(**CONFIGS[name])
    decoder, rows = TorchDecoder(model), [[row, 7, 2 * row] for row in range(n_rows)]
    decoder.prefill(rows)
    logits = decoder.step(range(n_rows))
    for row in range(n_rows):
        assert_close(logits[row], last_logits(model, [*rows[row], row]))


def decode_greedily(model: Llama, prompts: list[list[int]], n: int) -> tuple[list[list[int]], np.ndarray]:
    decoder = TorchDecoder(model)
    logits, chosen = [decoder.prefill(prompts)], []
    for _ in range(n):
        chosen.append([int(row.argmax()) for row in logits[-1]])
        logits.append(decoder.step(chosen[-1]))
    return [list(row) for row in zip(*chosen, strict=True)], np.stack(logits, axis=1)


RAGGED = CONFIGS | {"dynamic, crossing": dict(rope_scaling=DynamicNTKScaling(2.0, 8))}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", RAGGED)
def test_a_ragged_batch_gets_what_each_gets_alone(name: str, threads: int, set_threads: SetThreads) -> None:
    set_threads(threads)
    model = a_model(**RAGGED[name])
    ids, logits = decode_greedily(model, PROMPTS, 12)
    for row, prompt in enumerate(PROMPTS):
        ids_alone, logits_alone = decode_greedily(model, [prompt], 12)
        assert ids[row] == ids_alone[0]
        assert_close(logits[row], logits_alone[0])


@pytest.mark.parametrize("name", ["plain", "dynamic", "llama3"])
def test_greedy_ids_are_those_of_full_forwards(name: str) -> None:
    model = a_model(**CONFIGS[name])
    chosen, _ = decode_greedily(model, PROMPTS, 12)
    for row, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for index in chosen[row]:
            assert index == last_logits(model, ids).argmax()
            ids.append(index)
    assert len({tuple(row) for row in chosen}) == len(PROMPTS)  # the prompts matter


@pytest.mark.parametrize("prompts", [PROMPTS, [p[:1] * 3 for p in PROMPTS]], ids=["ragged", "even"])
@pytest.mark.parametrize("name", ["plain", "dynamic"])
def test_keep_rows_goes_on_with_some(name: str, prompts: list[list[int]]) -> None:
    model = a_model(**CONFIGS[name])
    decoder, rows = TorchDecoder(model), [list(p) for p in prompts]
    decoder.prefill(prompts)

    def step_and_compare(new: list[int]) -> None:
        logits = decoder.step(new)
        for row, index in enumerate(new):
            rows[row].append(index)
            assert_close(logits[row], last_logits(model, rows[row]))

    step_and_compare([1, 2, 3, 4])
    for kept, new in (([0, 1, 3], [5, 6, 7]), ([2, 0], [8, 9]), ([1], [10])):
        decoder.keep_rows(kept)
        rows[:] = [rows[row] for row in kept]
        step_and_compare(new)
        step_and_compare(new)


def test_a_second_prefill_forgets_the_first() -> None:
    model = a_model()
    decoder = TorchDecoder(model)
    decoder.prefill(PROMPTS)
    decoder.step([1, 2, 3, 4])
    assert_close(decoder.prefill([[5, 6]])[0], last_logits(model, [5, 6]))
    assert_close(decoder.step([7])[0], last_logits(model, [5, 6, 7]))


def test_it_goes_on_beyond_the_cache_that_it_began_with() -> None:
    model = a_model(n_layers=1, max_seq_len=600)
    decoder, ids = TorchDecoder(model), [1, 2]
    decoder.prefill([ids])
    for step in range(300):
        ids.append((step * 7) % V)
        logits = decoder.step(ids[-1:])
    assert_close(logits[0], last_logits(model, ids))


@pytest.mark.parametrize("name", ["plain", "biases", "even", "dynamic"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bf16_model_is_as_near_to_fp32_as_its_full_forward(name: str, threads: int, set_threads: SetThreads) -> None:
    set_threads(threads)
    small = a_model(**CONFIGS[name]).bfloat16()
    exact = Llama(small.config)
    exact.load_state_dict(small.state_dict())
    decoder = TorchDecoder(small)
    rows = [[row * 7, 7, 2 * row] for row in range(8)]
    decoder.prefill(rows)
    errors_of_steps, errors_of_forwards = [], []
    for step in range(6):
        logits = decoder.step([step] * 8)
        assert logits.dtype == np.float32
        for row, ids in enumerate(rows):
            ids.append(step)
            truth = last_logits(exact, ids)
            errors_of_steps.append(np.abs(logits[row] - truth).mean() / np.abs(truth).mean())
            errors_of_forwards.append(np.abs(last_logits(small, ids) - truth).mean() / np.abs(truth).mean())
    assert 0 < np.mean(errors_of_steps) < 1.15 * np.mean(errors_of_forwards)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("n_out", [1, 30, 31])
@pytest.mark.parametrize("n_rows", [1, 3, 8, 9])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_a_linear_layer(
    threads: int, n_out: int, n_rows: int, bias: bool, set_threads: SetThreads
) -> None:
    set_threads(threads)
    linear, x = nn.Linear(13, n_out, bias=bias), torch.randn(n_rows, 13)
    torch.testing.assert_close(_Product(linear)(x), linear(x), rtol=1e-5, atol=1e-6)


def test_a_product_leaves_other_kinds_of_layer_to_themselves(set_threads: SetThreads) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    set_threads(2)
    linear, x = Doubled(13, 30), torch.randn(1, 13)
    torch.testing.assert_close(_Product(linear)(x), linear(x))


def adapted(name: str, **changes: Any) -> Llama:
    """A model with a method's layers, whose new weights are not zero."""
    model = a_model(**changes)
    if "NF4" in name:
        quantize_base(model, Nf4Config(compute_dtype="bfloat16" if "bfloat16" in name else "float32"))
    if "LoRA" in name:
        targets = ("q_proj", "down_proj", "lm_head") if "some" in name else ("all-linear",)
        add_lora(model, LoraConfig(rank=3, dropout=0.0 if "some" in name else 0.1, targets=targets))
    if "adapters" in name:
        behind = ("o_proj", "down_proj") if name == "adapters" else ("q_proj", "up_proj", "lm_head")
        add_adapters(model, AdapterConfig(5, behind=behind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model


ADAPTED = ["LoRA", "LoRA on some", "NF4", "NF4 with LoRA", "adapters", "adapters elsewhere"]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("shape", ["biases", "even", "dynamic", "tied"])
def test_an_adapted_model_is_decoded_as_it_is(name: str, shape: str, threads: int, set_threads: SetThreads) -> None:
    set_threads(threads)
    model = adapted(name, **CONFIGS[shape])
    ids, logits = decode_greedily(model, PROMPTS, 6)
    for row, prompt in enumerate(PROMPTS):
        for step in range(6):
            assert_close(logits[row, step], last_logits(model, [*prompt, *ids[row][:step]]))
    assert np.ptp(logits[:, 0], axis=0).max() > 0.1  # the prompts matter


def test_products_in_bfloat16_are_decoded_in_float32(set_threads: SetThreads) -> None:
    """From the weights that they are made with, rounded to bfloat16; what is left is the rounding of x."""
    set_threads(2)
    model = adapted("NF4 in bfloat16 with LoRA", **CONFIGS["even"])
    ids, logits = decode_greedily(model, [[5, 6, 7]], 4)
    for step in range(5):
        assert_close(logits[0, step], last_logits(model, [5, 6, 7, *ids[0][:step]]), 1e-4 if step == 0 else 0.03)


@pytest.mark.parametrize("name", ["LoRA", "NF4 with LoRA"])
def test_an_adapted_bf16_model_is_decoded(name: str, set_threads: SetThreads) -> None:
    set_threads(2)
    small = a_model(**CONFIGS["even"]).bfloat16()
    if "NF4" in name:
        quantize_base(small, Nf4Config(compute_dtype="bfloat16"))
    add_lora(small, LoraConfig(rank=3))
    logits = decode_greedily(small, [[5, 6, 7]], 4)[1]
    assert np.abs(logits[0, 0] - last_logits(small, [5, 6, 7])).max() < 0.05 * np.abs(logits).max()
    assert logits.dtype == np.float32 and np.isfinite(logits).all()


def test_it_leaves_no_gradients_and_sets_evaluation_mode() -> None:
    model = a_model().train()
    decoder = TorchDecoder(model)
    decoder.prefill([[1, 2]])
    decoder.step([3])
    assert not model.training and decoder.max_seq_len == 64
    assert all(parameter.grad is None for parameter in model.parameters())
    model(torch.tensor([[1, 2]])).sum().backward()  # what it did does not forbid training
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("scaling", [None, DynamicNTKScaling(2.0, 64)])
def test_a_changed_weight_takes_effect(scaling: RopeScaling | None) -> None:
    model = a_model(rope_scaling=scaling)
    decoder = TorchDecoder(model)
    decoder.prefill([[1, 2]])
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert_close(decoder.step([3])[0], last_logits(model, [1, 2, 3]))
