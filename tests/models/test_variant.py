"""The laboratory's decoder: with a Llama's parts it is that Llama, with GPT-2's that GPT-2; every choice runs everywhere."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.twins import assert_equal_outputs, scatter
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from lamoid.checkpoints.hf import read_model, write_model
from lamoid.data.packed import Batch
from lamoid.errors import UsageError
from lamoid.inference.plain_decoder import decoder_for
from lamoid.inference.score import score
from lamoid.models.gpt2 import GPT2, GPT2Config
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.models.variant import CHOICES, Variant, VariantConfig
from lamoid.nn.kv_cache import KVCache
from lamoid.training.loop import Progress, train
from lamoid.training.objectives import next_token

V = 59
BASE = VariantConfig(V, 36, 2, 6, 2, 10, 51, 32)
EVERY = [(name, choice) for name, choices in CHOICES.items() for choice in choices]
RELATIVE = ("rope", "shaw", "t5", "alibi", "none")


def variant(**changes: Any) -> Variant:
    return scatter(Variant(dataclasses.replace(BASE, **changes)))


@pytest.mark.parametrize("tied", [False, True])
def test_llamas_parts_make_that_llama_bit_by_bit(tied: bool) -> None:
    ours = variant(tied_embeddings=tied)
    llama = Llama(LlamaConfig(V, 36, 2, 6, 2, 10, 51, 32, tied_embeddings=tied)).eval()
    llama.load_state_dict(ours.state_dict())
    ids = torch.randint(V, (2, 9))
    assert torch.equal(ours(ids), llama(ids))


def test_gpt_2s_parts_make_that_gpt_2() -> None:
    parts = dict(norm="layernorm", positions="learned", feed_forward="gelu_tanh", bias=True, tied_embeddings=True)
    ours = variant(**parts, n_kv_heads=6, head_dim=6)
    gpt2 = GPT2(GPT2Config(V, 36, 2, 6, 51, 32)).eval()
    gpt2.load_state_dict(ours.state_dict())
    ids = torch.randint(V, (2, 9))
    torch.testing.assert_close(ours(ids), gpt2(ids))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_first_gpts_parts_make_that_gpt(share: float) -> None:
    """Post-LN, with no norm at the end, and dropout in its places: the same seed drops the same in transformers."""
    parts: dict[str, Any] = dict(
        norm="layernorm", norm_place="post", positions="learned", feed_forward="gelu_tanh", bias=True
    )
    config = dataclasses.replace(
        BASE, **parts, n_kv_heads=6, head_dim=6, d_ff=4 * 36, dropout=share, tied_embeddings=True
    )
    ours = scatter(Variant(config, attention_path="explicit"))
    shares = dict(embd_pdrop=share, attn_pdrop=share, resid_pdrop=share)
    sizes = dict(vocab_size=V, n_positions=32, n_embd=36, n_layer=2, n_head=6)
    theirs = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes, **shares))
    gpt = theirs.transformer
    state = {"tokens_embed.weight": ours.embedding.weight, "positions_embed.weight": ours.position_embedding.weight}
    for n, block in enumerate(ours.layers):
        a, f = block.attention, block.feed_forward
        for name in ("weight", "bias"):
            joined = torch.cat([getattr(p, name) for p in (a.q_proj, a.k_proj, a.v_proj)])
            parts = {"attn.c_attn": joined, "attn.c_proj": getattr(a.o_proj, name)}
            parts |= {"mlp.c_fc": getattr(f.up_proj, name), "mlp.c_proj": getattr(f.down_proj, name)}
            parts |= {"ln_1": getattr(block.attention_norm, name), "ln_2": getattr(block.feed_forward_norm, name)}
            state |= {f"h.{n}.{part}.{name}": tensor.t() for part, tensor in parts.items()}
    gpt.load_state_dict(state, strict=False)
    outputs, ids = [], torch.randint(V, (2, 9))
    for model in (ours, theirs):
        torch.manual_seed(1)
        outputs.append(model.train()(ids))
    assert_equal_outputs(outputs[0], outputs[1].logits)


@torch.no_grad()
def test_without_the_residual_a_norm_behind_still_norms() -> None:
    model = variant(residual="none", norm_place="post")
    torch.nn.init.ones_(model.layers[-1].feed_forward_norm.weight)
    hidden = model.hidden_states(torch.randint(V, (2, 9)))
    torch.testing.assert_close(hidden.square().mean(-1), torch.ones(2, 9), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("name", "choice"), EVERY)
@torch.no_grad()
def test_cached_batched_packed_and_saved_every_choice_is_one_model(name: str, choice: str, tmp_path: Path) -> None:
    model = variant(**{name: choice})
    ids = torch.randint(V, (2, 9))
    whole, cache = model(ids), KVCache(2)
    parts = [model(ids[:, :4], cache=cache), *(model(ids[:, i : i + 1], cache=cache) for i in range(4, 9))]
    assert_equal_outputs(torch.cat(parts, dim=1), whole, 1e-5)
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.int64), ids), dim=1)
    assert_equal_outputs(model(padded, (torch.arange(12) >= 3).long().expand(2, -1))[:, 3:], whole, 1e-5)
    packed = model(ids.reshape(1, 18), segment_ids=torch.arange(2).repeat_interleave(9)[None])
    assert_equal_outputs(packed.reshape(2, 9, V), whole, 1e-5)
    write_model(tmp_path, model, None)
    again = read_model(tmp_path)
    assert again.config == model.config and torch.equal(again(ids), whole)


@pytest.mark.parametrize(("name", "choice"), EVERY)
def test_every_choice_trains_and_writes_on_the_same_machinery(name: str, choice: str) -> None:
    model = Variant(dataclasses.replace(BASE, **{name: choice})).initialise(0)
    losses: list[float] = []

    def batches(position: int) -> tuple[Batch, int]:
        ids = torch.arange(17).repeat(2, 1) % 7 + position % 7
        return Batch(ids[:, :-1], ids[:, 1:]), position + 1

    optimizer = torch.optim.AdamW(model.parameters())
    settings: dict[str, Any] = dict(schedule=lambda step: 1e-2, max_steps=12, progress=Progress(0))
    train(model, batches, next_token, optimizer, **settings, after_step=lambda r: losses.append(r.loss))
    assert losses[-1] < losses[0] - 0.3
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    decoder = decoder_for(model)
    assert decoder.prefill([[1, 2], [3]]).shape == decoder.step([1, 2]).shape == (2, V)
    assert score(model, [[1, 2, 3, 4]], 4, context=8) is not None


@pytest.mark.parametrize("positions", CHOICES["positions"])
@torch.no_grad()
def test_order_matters_but_where_nothing_tells_it(positions: str) -> None:
    model = variant(positions=positions, n_layers=1)
    ids = torch.randint(V, (1, 9))
    swapped = ids[:, [1, 0, *range(2, 9)]]
    is_blind = torch.allclose(model(ids)[:, -1], model(swapped)[:, -1], rtol=1e-4, atol=1e-4)
    assert is_blind == (positions == "none")


@pytest.mark.parametrize("positions", ["alibi", "t5", "rope", "none"])
@torch.no_grad()
def test_tiles_give_the_same(positions: str) -> None:
    model = variant(positions=positions)
    tiled = Variant(model.config, attention_path="tiled").eval()
    tiled.load_state_dict(model.state_dict())
    ids = torch.randint(V, (2, 9))
    assert_equal_outputs(tiled(ids), model(ids), 1e-5)


@torch.no_grad()
def test_sinusoids_are_added_to_root_d_times_the_embedding() -> None:
    """So has it the Transformer (Vaswani et al. 2017, section 3.4); learned positions are added to the embedding itself."""
    ours, same = variant(positions="sinusoidal"), variant(positions="learned")
    table = ours.position_embedding(torch.arange(32)[None])[0]
    same.load_state_dict(ours.state_dict() | {"position_embedding.weight": table})
    same.embedding.weight.mul_(36**0.5)
    ids = torch.randint(V, (2, 9))
    assert_equal_outputs(ours(ids), same(ids), 1e-5)


def test_scaling_divides_the_scores_by_what_it_says() -> None:
    models = {name: variant(score_scaling=name) for name in CHOICES["score_scaling"]}
    ids = torch.randint(V, (1, 9))
    for name, divisor in (("none", 1), ("linear", 10)):
        same = variant()
        same.load_state_dict(models[name].state_dict())
        with torch.no_grad():
            for block in same.layers:
                block.attention.q_proj.weight.mul_(10**0.5 / divisor)
            assert_equal_outputs(same(ids), models[name](ids), 1e-5)


@pytest.mark.parametrize("place", ["pre", "post"])
@torch.no_grad()
def test_without_the_residual_a_dead_sublayer_kills_everything(place: str) -> None:
    for residual, is_dead in (("add", False), ("none", True)):
        model = variant(residual=residual, norm_place=place, norm="rmsnorm")
        torch.nn.init.zeros_(model.layers[0].feed_forward.down_proj.weight)
        ids = torch.randint(V, (2, 9))
        hidden = model.hidden_states(ids)
        assert torch.allclose(hidden[0], hidden[1]) == is_dead


def test_an_unknown_part_is_refused_by_name() -> None:
    for name in CHOICES:
        with pytest.raises(UsageError, match=f"{name} is 'magic'; it must be one of"):
            dataclasses.replace(BASE, **{name: "magic"})
    with pytest.raises(UsageError, match="n_kv_heads is 4"):
        dataclasses.replace(BASE, n_kv_heads=4)
    with pytest.raises(UsageError, match="head_dim is 5"):
        dataclasses.replace(BASE, head_dim=5)
    assert dataclasses.replace(BASE, head_dim=5, positions="alibi").head_dim == 5
