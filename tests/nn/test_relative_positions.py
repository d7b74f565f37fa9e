"""Shaw, T5 and ALiBi against transformers where it has them, and against the papers' sums, written out."""

import math

import pytest
import torch
from torch import Tensor, nn

from lamoid.errors import UsageError
from lamoid.nn.attention import Attention, attend_explicitly, attend_fused
from lamoid.nn.relative_positions import ALiBi, ShawPositions, T5Bias, distances


def test_distances_have_the_last_query_at_the_last_key_if_causal() -> None:
    assert distances(2, 4).tolist() == [[-2, -1, 0, 1], [-3, -2, -1, 0]]
    assert distances(2, 4, causal=False).tolist() == [[0, 1, 2, 3], [-1, 0, 1, 2]]


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 8, 12, 16, 20])
def test_alibi_is_that_of_transformers(n_heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 9), n_heads, torch.float32).view(n_heads, 1, 9)
    ours = ALiBi(n_heads)(distances(9, 9))
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    scores = torch.randn(n_heads, 9, 9)  # theirs differs by a constant for each query, which softmax does not see
    expected, found = ((scores + bias).masked_fill(hidden, -math.inf).softmax(-1) for bias in (theirs, ours))
    torch.testing.assert_close(found, expected)


def test_alibis_slopes_of_the_paper() -> None:
    assert ALiBi(8).slopes() == [2.0**-i for i in range(1, 9)]
    assert ALiBi(16).slopes()[:2] == [2**-0.5, 2**-1]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20), (16, 64)])
def test_t5s_buckets_and_bias_are_those_of_transformers(bidirectional: bool, n_buckets: int, max_distance: int) -> None:
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(
        d_model=12, d_kv=4, num_heads=3, relative_attention_num_buckets=n_buckets,
        relative_attention_max_distance=max_distance, is_decoder=not bidirectional,
    )  # fmt: skip
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    ours = T5Bias(3, n_buckets, max_distance, bidirectional=bidirectional)
    nn.init.normal_(ours.weight)
    with torch.no_grad():
        theirs.relative_attention_bias.weight.copy_(ours.weight)
    apart = distances(301, 301)
    assert torch.equal(
        ours.buckets(apart), theirs._relative_position_bucket(apart, bidirectional, n_buckets, max_distance)
    )
    assert torch.equal(ours(apart)[None], theirs.compute_bias(301, 301))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("max_distance", [1, 3, 20])
def test_shaw_is_the_sum_of_the_paper(causal: bool, max_distance: int) -> None:
    shaw = ShawPositions(5, max_distance)
    for parameter in shaw.parameters():
        nn.init.normal_(parameter)
    q, k, v = (torch.randn(2, 3, 7, 5) for _ in range(3))
    out = attend_explicitly(q, k, v, None, causal=causal, shaw=shaw)
    for i in range(7):
        seen = range(i + 1 if causal else 7)
        rows = [max(-max_distance, min(max_distance, j - i)) + max_distance for j in seen]
        scores = torch.stack(
            [(q[:, :, i] * (k[:, :, j] + shaw.keys[row])).sum(-1) for j, row in zip(seen, rows, strict=True)], dim=-1
        )
        weights = (scores / math.sqrt(5)).softmax(-1)
        expected = sum(
            weights[..., n, None] * (v[:, :, j] + shaw.values[row])
            for n, (j, row) in enumerate(zip(seen, rows, strict=True))
        )
        torch.testing.assert_close(out[:, :, i], expected)


@torch.no_grad()
def test_shaws_keys_are_those_of_transformers() -> None:
    """Wav2Vec2-BERT has the half of it that changes the scores; ours has zeros for the half that changes the values."""
    from transformers import Wav2Vec2BertConfig
    from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention

    config = Wav2Vec2BertConfig(
        hidden_size=24, num_attention_heads=4, position_embeddings_type="relative_key", left_max_position_embeddings=3,
        right_max_position_embeddings=3, attention_dropout=0.0, attn_implementation="eager",
    )  # fmt: skip
    theirs = Wav2Vec2BertSelfAttention(config)
    ours = Attention(24, 4, 4, 6, bias=True, path="explicit", causal=False, shaw=ShawPositions(6, 3))
    for mine, name in ((ours.q_proj, "q"), (ours.k_proj, "k"), (ours.v_proj, "v"), (ours.o_proj, "out")):
        mine.load_state_dict(getattr(theirs, f"linear_{name}").state_dict())
    assert ours.shaw is not None
    ours.shaw.keys.copy_(theirs.distance_embedding.weight)
    x = torch.randn(2, 11, 24)
    torch.testing.assert_close(ours(x), theirs(x)[0])


def test_shaw_needs_the_explicit_path() -> None:
    with pytest.raises(UsageError, match="attention path is 'fused'"):
        Attention(12, 3, 3, 4, shaw=ShawPositions(4, 2))


@pytest.mark.parametrize("bias", [ALiBi(6), T5Bias(6, 8, 20)])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("has_mask", [True, False])
def test_fused_equals_explicit_with_a_bias(bias: nn.Module, n_kv_heads: int, causal: bool, has_mask: bool) -> None:
    for parameter in bias.parameters():
        nn.init.normal_(parameter)
    for n_queries, n_keys in ((7, 7), (1, 7), (3, 7), (1, 1)):
        q = torch.randn(2, 6, n_queries, 5)
        k, v = (torch.randn(2, n_kv_heads, n_keys, 5) for _ in range(2))
        mask: Tensor | None = torch.rand(2, 1, 1, n_keys) < 0.7 if has_mask else None
        if mask is not None:
            mask[..., 0] = True
        settings = dict(causal=causal, bias=bias, scale=0.4)
        torch.testing.assert_close(
            attend_fused(q, k, v, mask, **settings), attend_explicitly(q, k, v, mask, **settings)
        )
