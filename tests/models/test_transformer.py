"""The Transformer against torch.nn.Transformer with the same weights."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.twins import assert_equal_outputs, scatter
from torch import Tensor, nn

from lamoid.checkpoints.hf import read_model, write_model
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.transformer import PRESETS, Transformer, TransformerCache, TransformerConfig

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # PyTorch's own, about its speed
V = 47
CONFIG = TransformerConfig(V, 30, 3, 5, 41, max_seq_len=64)


def pytorchs(ours: Transformer) -> nn.Transformer:
    """torch.nn.Transformer with our weights; with Post-LN it would norm once more at each end, which the paper does not."""
    c = ours.config
    is_pre = c.norm_place == "pre"
    theirs = nn.Transformer(
        c.d_model, c.n_heads, c.n_layers, c.n_layers, c.d_ff, dropout=0.0, batch_first=True, norm_first=is_pre,
        layer_norm_eps=c.norm_eps,
    )  # fmt: skip
    theirs.encoder.enable_nested_tensor = False
    if not is_pre:
        theirs.encoder.norm = theirs.decoder.norm = None
    else:
        theirs.encoder.norm.load_state_dict(ours.encoder_norm.state_dict())
        theirs.decoder.norm.load_state_dict(ours.decoder_norm.state_dict())
    for mine, yours in zip(
        [*ours.encoder_layers, *ours.decoder_layers], [*theirs.encoder.layers, *theirs.decoder.layers], strict=True
    ):
        copy_attention(mine.attention, yours.self_attn)
        yours.linear1.load_state_dict(mine.feed_forward.up_proj.state_dict())
        yours.linear2.load_state_dict(mine.feed_forward.down_proj.state_dict())
        norms = [mine.attention_norm, mine.feed_forward_norm]
        if hasattr(mine, "cross_attention"):
            copy_attention(mine.cross_attention, yours.multihead_attn)
            norms.insert(1, mine.cross_attention_norm)
        for i, norm in enumerate(norms):
            getattr(yours, f"norm{i + 1}").load_state_dict(norm.state_dict())
    return theirs.eval()


@torch.no_grad()
def copy_attention(ours: Any, theirs: nn.MultiheadAttention) -> None:
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
    theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    theirs.out_proj.load_state_dict(ours.o_proj.state_dict())


def sinusoids(n: int, d_model: int) -> Tensor:
    rows = [
        [(math.sin, math.cos)[i % 2](pos / 10_000 ** (2 * (i // 2) / d_model)) for i in range(d_model)]
        for pos in range(n)
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize("place", ["post", "pre"])
@pytest.mark.parametrize("path", ["fused", "explicit", "tiled"])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_logits_equal_pytorch(place: str, path: Any, padded: bool) -> None:
    ours = scatter(Transformer(dataclasses.replace(CONFIG, norm_place=place), attention_path=path))
    nn.init.normal_(ours.embedding.weight, std=0.2)
    theirs = pytorchs(ours)
    source, target = torch.randint(V, (3, 11)), torch.randint(V, (3, 7))
    source_mask = target_mask = None
    if padded:
        source_mask, target_mask = torch.ones_like(source), torch.ones_like(target)
        source_mask[0, 6:] = source_mask[2, 9:] = target_mask[1, 4:] = 0

    def embed(ids: Tensor) -> Tensor:
        return ours.embedding(ids) * math.sqrt(30) + sinusoids(ids.shape[1], 30)

    hidden = theirs(
        embed(source),
        embed(target),
        tgt_mask=torch.ones(7, 7, dtype=torch.bool).triu(1),
        src_key_padding_mask=None if source_mask is None else source_mask == 0,
        memory_key_padding_mask=None if source_mask is None else source_mask == 0,
        tgt_key_padding_mask=None if target_mask is None else target_mask == 0,
    )
    expected, found = hidden @ ours.embedding.weight.T, ours(source, target, source_mask, target_mask)
    real = slice(None) if target_mask is None else target_mask.bool()
    assert_equal_outputs(found[real], expected[real])


@torch.no_grad()
def test_padding_on_the_left_is_the_row_alone() -> None:
    model = scatter(Transformer(CONFIG))
    source, target = torch.randint(V, (1, 6)), torch.randint(V, (1, 5))
    left = [torch.cat((torch.zeros(1, n, dtype=torch.int64), ids), 1) for n, ids in ((3, source), (2, target))]
    masks = [torch.tensor([[0] * n + [1] * (ids.shape[1] - n)]) for n, ids in zip((3, 2), left, strict=True)]
    torch.testing.assert_close(model(*left, *masks)[:, 2:], model(source, target), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", ["post", "pre"])
@torch.no_grad()
def test_cached_equals_uncached(place: str) -> None:
    model = scatter(Transformer(dataclasses.replace(CONFIG, norm_place=place)))
    source, target = torch.randint(V, (2, 6)), torch.randint(V, (2, 9))
    source_mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    whole = model(source, target, source_mask)
    memory, cache = model.encode(source, source_mask), TransformerCache(3)
    pieces = [target[:, :3], *(target[:, i : i + 1] for i in range(3, 9))]
    parts = [model.lm_head(model.decode(piece, memory, source_mask, cache=cache)) for piece in pieces]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    assert cache.own.length == 9 and cache.memory.length == 6


@pytest.mark.parametrize(
    ("name", "millions"), [("transformer-base", 63), ("transformer-big", 214), ("transformer-small", 15)]
)
def test_presets_have_the_published_sizes(name: str, millions: int) -> None:
    """Table 3 says 65M and 213M; the count depends on the vocabulary, which the paper gives as about 37,000."""
    c = PRESETS[name]
    with torch.device("meta"):
        ours = sum(p.numel() for p in Transformer(c).parameters())
        theirs = nn.Transformer(c.d_model, c.n_heads, c.n_layers, c.n_layers, c.d_ff)
    final_norms = 2 * 2 * c.d_model
    assert ours == sum(p.numel() for p in theirs.parameters()) - final_norms + c.vocab_size * c.d_model
    assert round(ours / 1e6) == millions


@pytest.mark.parametrize("place", ["post", "pre"])
def test_a_directory_brings_it_back(place: str, tmp_path: Path) -> None:
    model = scatter(Transformer(dataclasses.replace(CONFIG, norm_place=place, pad_id=3)))
    write_model(tmp_path, model, None)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["model_type"] == "lamoid_transformer" and raw["architectures"] == ["Transformer"]
    again = read_model(tmp_path)
    assert again.config == model.config and again.lm_head.weight is again.embedding.weight
    source, target = torch.randint(V, (1, 6)), torch.randint(V, (1, 5))
    assert torch.equal(again(source, target), model(source, target))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_modle": 12}, "d_modle is no field of TransformerConfig; did you mean d_model"),
        ({"n_heads": 7}, "n_heads is 7; it must divide d_model, which is 30"),
        ({"norm_place": "middle"}, "norm_place is 'middle'; it must be one of pre, post"),
        ({"norm_place": 3}, "norm_place is 3; it must be text"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"n_layers": None}, r"fields \['n_layers'\] are missing"),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_model(tmp_path, Transformer(CONFIG), None)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        read_model(tmp_path)


def test_sinusoids_need_an_even_width() -> None:
    with pytest.raises(UsageError, match="d_model is 15"):
        Transformer(TransformerConfig(V, 15, 1, 5, 41))


@pytest.mark.parametrize("place", ["post", "pre"])
def test_dropout_stands_where_the_paper_has_it(place: str) -> None:
    """On both sums of embeddings and positions, and on what each sublayer adds (section 5.4); PyTorch's has more of it."""
    ours = scatter(Transformer(dataclasses.replace(CONFIG, norm_place=place, dropout=0.3)))
    nn.init.normal_(ours.embedding.weight, std=0.2)
    theirs = pytorchs(ours).train()
    for name, module in theirs.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3 if name[-1].isdigit() else 0.0  # dropout1, 2, 3; not the one inside the feed-forward network
        elif isinstance(module, nn.MultiheadAttention):  # what is dropped is drawn in the order of memory
            module.register_forward_hook(lambda module, inputs, out: (out[0].contiguous(), out[1]))
    source, target = torch.randint(V, (3, 11)), torch.randint(V, (3, 7))

    def embed(ids: Tensor) -> Tensor:
        return nn.functional.dropout(ours.embedding(ids) * math.sqrt(30) + sinusoids(ids.shape[1], 30), 0.3)

    torch.manual_seed(1)
    memory = theirs.encoder(embed(source))
    expected = theirs.decoder(embed(target), memory, tgt_mask=torch.ones(7, 7, dtype=torch.bool).triu(1))
    torch.manual_seed(1)
    assert_equal_outputs(ours.train().hidden_states(source, target), expected)


def test_first_weights_are_glorots_and_embeddings_are_drawn_for_root_d() -> None:
    model = Transformer(TransformerConfig(3000, 64, 1, 4, 256)).initialise(3)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert parameter.unique().tolist() == [float(name.endswith("norm.weight"))]
        else:
            same = nn.init.xavier_normal_(torch.empty(parameter.shape))
            expected = 1 / 8 if name == "embedding.weight" else same.std().item()
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_dropout_is_reproducible_and_for_training_alone() -> None:
    model = Transformer(CONFIG).initialise(0)
    source, target, outs = torch.randint(V, (2, 6)), torch.randint(V, (2, 5)), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(model.train()(source, target))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert torch.equal(model.eval()(source, target), model(source, target))
