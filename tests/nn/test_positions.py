import math
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from lamoid.nn.positions import RoPE, rope_frequencies, rotate, rotate_interleaved, stretch
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 2048}
SCALINGS: list[tuple[RopeScaling, dict[str, Any]]] = [
    (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
    (LinearScaling(2.5), {"rope_type": "linear", "factor": 2.5}),
    (Llama3Scaling(8.0, 1.0, 4.0, 8192), {"rope_type": "llama3", "factor": 8.0, **LLAMA3}),
    (Llama3Scaling(32.0, 1.0, 4.0, 8192), {"rope_type": "llama3", "factor": 32.0, **LLAMA3}),
    (YarnScaling(4.0, 2048), {"rope_type": "yarn", **YARN}),
    (YarnScaling(4.0, 2048, truncate=False), {"rope_type": "yarn", "truncate": False, **YARN}),
    (YarnScaling(4.0, 2048, 20.0, 2.0), {"rope_type": "yarn", "beta_fast": 20.0, "beta_slow": 2.0, **YARN}),
    (YarnScaling(4.0, 2048, attention_factor=1.25), {"rope_type": "yarn", "attention_factor": 1.25, **YARN}),
    (
        YarnScaling(4.0, 2048, mscale=0.707, mscale_all_dim=1.2),
        {"rope_type": "yarn", "mscale": 0.707, "mscale_all_dim": 1.2, **YARN},
    ),
    (YarnScaling(1.0, 2048), {"rope_type": "yarn", **YARN, "factor": 1.0}),
]


def hf_config(head_dim: int, base: float, rope: dict[str, Any], max_seq_len: int = 2048) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        hidden_size=32,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_seq_len,
        rope_parameters={"rope_theta": base, **rope},
    )


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("head_dim", [8, 10, 64, 128])
def test_frequencies_are_the_formula(head_dim: int, base: float) -> None:
    expected = torch.tensor([base ** (-2 * i / head_dim) for i in range(head_dim // 2)])
    torch.testing.assert_close(rope_frequencies(head_dim, base), expected, rtol=1e-6, atol=0)


def test_the_base_is_ten_thousand_unless_given() -> None:
    _, sin = RoPE(4)(torch.tensor([[1]]))
    torch.testing.assert_close(sin.flatten(), torch.tensor([math.sin(1), math.sin(10_000**-0.5)]))


@pytest.mark.parametrize("base", [10_000.0, 500_000.0, 1_234.5])
@pytest.mark.parametrize("head_dim", [8, 10, 64, 128])
def test_unscaled_frequencies_have_the_bits_of_transformers(head_dim: int, base: float) -> None:
    expected, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(
        hf_config(head_dim, base, {"rope_type": "default"})
    )
    assert torch.equal(rope_frequencies(head_dim, base), expected)


@pytest.mark.parametrize(("scaling", "theirs"), SCALINGS, ids=str)
@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("head_dim", [10, 64, 128])
def test_scaled_frequencies_have_the_bits_of_transformers(
    scaling: RopeScaling, theirs: dict[str, Any], base: float, head_dim: int
) -> None:
    expected, expected_magnitude = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](hf_config(head_dim, base, theirs))
    frequencies, magnitude = stretch(scaling, head_dim, base, 0)
    assert torch.equal(frequencies, expected)
    assert magnitude == expected_magnitude


@pytest.mark.parametrize("seq_len", [1, 2047, 2048, 2049, 3000, 9000])
@pytest.mark.parametrize("factor", [1.5, 4.0])
@pytest.mark.parametrize("head_dim", [10, 64])
def test_dynamic_ntk_has_the_bits_of_transformers(seq_len: int, factor: float, head_dim: int) -> None:
    config = hf_config(head_dim, 10_000.0, {"rope_type": "dynamic", "factor": factor})
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=seq_len)
    frequencies, magnitude = stretch(DynamicNTKScaling(factor, 2048), head_dim, 10_000.0, seq_len)
    assert torch.equal(frequencies, expected)
    assert magnitude == 1.0


@pytest.mark.parametrize(
    "scaling", [None, *(s for s, _ in SCALINGS[:5]), DynamicNTKScaling(2.0, 16)], ids=lambda s: type(s).__name__
)
def test_rotation_equals_transformers_at_far_positions(scaling: RopeScaling | None) -> None:
    theirs = next((t for s, t in SCALINGS if s is scaling), {"rope_type": "default"})
    if isinstance(scaling, DynamicNTKScaling):
        theirs = {"rope_type": "dynamic", "factor": 2.0}
    config = hf_config(16, 10_000.0, theirs, max_seq_len=16 if theirs["rope_type"] == "dynamic" else 2048)
    positions = torch.tensor([[0, 1, 2, 100, 4095, 131_071]])
    q, k = torch.randn(1, 4, 6, 16), torch.randn(1, 2, 6, 16)
    expected = apply_rotary_pos_emb(q, k, *LlamaRotaryEmbedding(config)(q, positions))
    rope = RoPE(16, 10_000.0, scaling)(positions)
    torch.testing.assert_close((rotate(q, *rope), rotate(k, *rope)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scaling", [None, Llama3Scaling(8.0, 1.0, 4.0, 32), YarnScaling(4.0, 32)])
def test_complex_form_is_the_split_form_permuted(scaling: RopeScaling | None) -> None:
    rope = RoPE(10, scaling=scaling)(torch.tensor([[0, 1, 5, 700], [3, 2, 1, 9]]))
    x = torch.randn(2, 3, 4, 10)
    permutation = torch.cat((torch.arange(0, 10, 2), torch.arange(1, 10, 2)))  # neighbours → halves
    torch.testing.assert_close(rotate_interleaved(x, *rope)[..., permutation], rotate(x[..., permutation], *rope))


@pytest.mark.parametrize("form", [rotate, rotate_interleaved])
def test_scores_depend_on_the_distance_alone(form: type[rotate]) -> None:
    q, k = torch.randn(16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)

    def score(m: int, n: int) -> Tensor:
        angles = torch.tensor([m, n], dtype=torch.float64)[:, None] * rope_frequencies(16, 10_000.0).double()
        turned = form(torch.stack((q, k))[None, None], angles.cos()[None, None], angles.sin()[None, None])
        return turned[0, 0, 0] @ turned[0, 0, 1]

    for distance in (-7, 0, 1, 40):
        scores = torch.stack([score(m, m + distance) for m in (7, 8, 100, 1003)])
        torch.testing.assert_close(scores, scores[:1].expand(4), rtol=1e-5, atol=1e-5)
    assert abs(score(7, 7) - score(7, 8)) > 1e-3


@pytest.mark.parametrize("form", [rotate, rotate_interleaved])
def test_norms_are_preserved(form: type[rotate]) -> None:
    x, rope = torch.randn(2, 3, 5, 10), RoPE(10)(torch.randint(0, 1000, (2, 5)))
    torch.testing.assert_close(form(x, *rope).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("form", [rotate, rotate_interleaved])
def test_position_zero_is_left_alone_and_dtype_kept(form: type[rotate]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1, 2, 1, 8).to(dtype)
        turned = form(x, *RoPE(8)(torch.tensor([[0]])))
        assert torch.equal(turned, x) and turned.dtype == dtype


def test_interleaved_pairs_turn_by_their_angle() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 1.0])[None, None, None]
    turned = rotate_interleaved(x, *RoPE(4, base=100.0)(torch.tensor([[3]]))).flatten()
    expected = [math.cos(3), math.sin(3), -math.sin(0.3), math.cos(0.3)]  # θ = 1 and 100^(−1/2)
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_llama3_keeps_fast_pairs_and_stretches_slow_ones_by_the_factor() -> None:
    plain, scaled = rope_frequencies(128, 500_000.0), stretch(Llama3Scaling(32.0, 1.0, 4.0, 8192), 128, 500_000.0, 0)[0]
    wavelengths = 2 * math.pi / plain
    assert torch.equal(scaled[wavelengths < 8192 / 4], plain[wavelengths < 8192 / 4])
    assert torch.equal(scaled[wavelengths > 8192], plain[wavelengths > 8192] / 32)
    between = (wavelengths > 8192 / 4) & (wavelengths < 8192)
    assert between.any()
    assert ((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 32)).all()


def test_dynamic_ntk_takes_each_rows_own_length() -> None:
    rope = RoPE(16, scaling=DynamicNTKScaling(2.0, 16))
    short, long = torch.arange(24).clamp_max(9)[None], torch.arange(24)[None]
    both = rope(torch.cat((short, long)))
    for row, alone in enumerate((rope(short), rope(long))):
        assert torch.equal(both[0][row], alone[0][0]) and torch.equal(both[1][row], alone[1][0])


def test_it_has_no_state() -> None:
    assert RoPE(16, scaling=LinearScaling(2.0)).state_dict() == {}
    assert [RoPE(16, scaling=s).depends_on_length for s in (None, LinearScaling(2.0), DynamicNTKScaling(2.0, 8))] == [
        False,
        False,
        True,
    ]
