"""Every intermediate of a traced pass against what transformers' modules give on the way, and against the normal run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.models.twins import assert_equal_outputs, padded_ids, scatter
from torch import Tensor, nn

from lamoid.adapt.lora import LoraConfig, add_lora
from lamoid.checkpoints.hf import read_model
from lamoid.errors import UsageError
from lamoid.inspect.trace import LayerTrace, Trace, layer_logits, trace
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.models.variant import CHOICES, Variant, VariantConfig
from lamoid.recipes.load import load

V, LENGTH = 61, 19
LLAMA: dict[str, Any] = dict(
    vocab_size=V, hidden_size=36, intermediate_size=51, num_hidden_layers=3, num_attention_heads=6,
    max_position_embeddings=64,
)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)  # fmt: skip
LLAMAS: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped, head size not D/H, llama3 scaling": dict(num_key_value_heads=2, head_dim=10, rope_parameters=LLAMA3),
    "one kv head, tied, biases": dict(
        num_key_value_heads=1, head_dim=14, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "grows with the length": dict(
        max_position_embeddings=16, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)
    ),
}
ENCODER: dict[str, Any] = dict(
    vocab_size=V, hidden_size=30, num_hidden_layers=3, num_attention_heads=5, intermediate_size=41,
    max_position_embeddings=34,
)  # fmt: skip


@contextmanager
def listening(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Under each name what the module gives, and under `name.in` what it was given."""
    heard: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[..., None]:
        def hear(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            heard[name] = out[0] if isinstance(out, tuple) else out
            if args:
                heard[f"{name}.in"] = args[0]

        return hear

    handles = [module.register_forward_hook(listen(name)) for name, module in modules.items()]
    yield heard
    for handle in handles:
        handle.remove()


@contextmanager
def eager_attention(monkeypatch: pytest.MonkeyPatch, modelling: Any) -> Iterator[list[dict[str, Tensor]]]:
    """Queries and keys as transformers' attention gets them, the scale, and the weights that it makes."""
    seen: list[dict[str, Tensor]] = []
    original = modelling.eager_attention_forward

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
        out, weights = original(module, query, key, value, mask, **settings)
        seen.append(dict(q=query, k=key, v=value, weights=weights, heads=out, scale=settings.get("scaling")))
        return out, weights

    with monkeypatch.context() as patch:
        patch.setattr(modelling, "eager_attention_forward", attend)
        yield seen


def split_heads(projected: Tensor, head_dim: int) -> Tensor:
    return projected.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def check(found: LayerTrace, name: str, expected: Tensor) -> None:
    value = getattr(found, name)
    assert value.shape == expected.shape, name
    assert_equal_outputs(value, expected)


def check_attention(found: LayerTrace, theirs: dict[str, Tensor], visible: Tensor) -> None:
    """Rotated queries and keys, scores and weights, heads; what is not seen has a score of −∞."""
    for ours, name in (("rotated_q", "q"), ("rotated_k", "k"), ("v", "v"), ("weights", "weights")):
        check(found, ours, theirs[name])
    check(found, "heads", theirs["heads"].transpose(1, 2))
    scale = theirs["scale"] if theirs["scale"] is not None else theirs["q"].shape[-1] ** -0.5
    keys = theirs["k"].repeat_interleave(theirs["q"].shape[1] // theirs["k"].shape[1], dim=1)
    expected, seen = theirs["q"] @ keys.mT * scale, visible.expand_as(found.scores)
    assert_equal_outputs(found.scores[seen], expected[seen])
    assert (found.scores[~seen] == -torch.inf).all()


@pytest.mark.parametrize("name", LLAMAS)
@torch.no_grad()
def test_every_intermediate_of_a_llama_is_that_of_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.LlamaConfig(**(LLAMA | LLAMAS[name]), attn_implementation="eager")
    theirs = scatter(transformers.LlamaForCausalLM(config))
    theirs.save_pretrained(tmp_path)
    ours, ids = read_model(tmp_path), torch.randint(V, (2, LENGTH))
    assert isinstance(ours, Llama)
    found = trace(ours, ids)
    parts = {
        f"{layer}.{path}": block.get_submodule(path)
        for layer, block in enumerate(theirs.model.layers)
        for path in (
            "input_layernorm", "post_attention_layernorm", "self_attn", "self_attn.q_proj", "self_attn.k_proj",
            "self_attn.v_proj", "mlp", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )
    }  # fmt: skip
    modelling = transformers.models.llama.modeling_llama
    with listening(parts) as heard, eager_attention(monkeypatch, modelling) as seen:
        out = theirs(ids, output_hidden_states=True, output_attentions=True)
    visible, head_dim = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(), ours.config.head_dim
    for i, layer in enumerate(found.layers):
        for ours_name, path in (
            ("attention_norm", "input_layernorm"), ("attention", "self_attn"), ("middle", "post_attention_layernorm.in"),
            ("feed_forward_norm", "post_attention_layernorm"), ("gate", "mlp.gate_proj"), ("up", "mlp.up_proj"),
            ("activated", "mlp.down_proj.in"), ("feed_forward", "mlp"),
        ):  # fmt: skip
            check(layer, ours_name, heard[f"{i}.{path}"])
        for which in "qkv":
            check(layer, which, split_heads(heard[f"{i}.self_attn.{which}_proj"], head_dim))
        check(layer, "weights", out.attentions[i])
        check_attention(layer, seen[i], visible)
    assert_equal_outputs(found.final, out.hidden_states[-1])
    assert torch.equal(found.token_embeddings, theirs.model.embed_tokens(ids))
    for residual, expected in zip(found.residuals, out.hidden_states[:-1], strict=False):
        assert_equal_outputs(residual, expected)
    lens = list(layer_logits(ours, found))
    assert len(lens) == 4
    for logits, hidden in zip(lens, out.hidden_states[:-1], strict=False):
        assert_equal_outputs(logits, theirs.lm_head(theirs.model.norm(hidden)))
    assert torch.equal(lens[-1], ours(ids))


@torch.no_grad()
def test_every_intermediate_of_gpt2_is_that_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.GPT2Config(
        vocab_size=V, n_embd=30, n_layer=3, n_head=5, n_positions=32, n_inner=41, attn_implementation="eager"
    )
    theirs = scatter(transformers.GPT2LMHeadModel(config))
    theirs.save_pretrained(tmp_path)
    ours, ids = read_model(tmp_path), torch.randint(V, (2, LENGTH))
    found = trace(ours, ids)
    parts = {
        f"{layer}.{path}": block.get_submodule(path)
        for layer, block in enumerate(theirs.transformer.h)
        for path in ("ln_1", "attn", "attn.c_attn", "ln_2", "mlp", "mlp.c_fc", "mlp.c_proj")
    }
    modelling = transformers.models.gpt2.modeling_gpt2
    with listening(parts) as heard, eager_attention(monkeypatch, modelling) as seen:
        out = theirs(ids, output_hidden_states=True, output_attentions=True)
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    for i, layer in enumerate(found.layers):
        for ours_name, path in (
            ("attention_norm", "ln_1"), ("attention", "attn"), ("middle", "ln_2.in"), ("feed_forward_norm", "ln_2"),
            ("up", "mlp.c_fc"), ("activated", "mlp.c_proj.in"), ("feed_forward", "mlp"),
        ):  # fmt: skip
            check(layer, ours_name, heard[f"{i}.{path}"])
        for which, projected in zip("qkv", heard[f"{i}.attn.c_attn"].chunk(3, dim=-1), strict=True):
            check(layer, which, split_heads(projected, 6))
        assert layer.gate is None
        check(layer, "weights", out.attentions[i])
        check_attention(layer, seen[i], visible)
    for residual, expected in zip(found.residuals, out.hidden_states[:-1], strict=False):
        assert_equal_outputs(residual, expected)
    assert torch.equal(found.token_embeddings, theirs.transformer.wte(ids))
    assert found.logits is not None
    assert_equal_outputs(found.logits, out.logits)
    for logits, hidden in zip(layer_logits(ours, found), out.hidden_states[:-1], strict=False):
        assert_equal_outputs(logits, theirs.lm_head(theirs.transformer.ln_f(hidden)))


def check_encoder(ours: Any, theirs: Any, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Each layer of a BERT or RoBERTa; `theirs` is the encoder in transformers."""
    found = trace(ours, inputs["input_ids"], inputs["attention_mask"])
    paths = ["attention.self", "attention.self.query", "attention.self.key", "attention.self.value", "attention.output",
             "attention.output.dense", "intermediate.dense", "intermediate", "output.dense", "output"]  # fmt: skip
    parts = {f"{i}.{path}": block.get_submodule(path) for i, block in enumerate(theirs.encoder.layer) for path in paths}
    family = type(theirs).__name__.removesuffix("Model").lower()
    modelling = getattr(transformers.models, family).__getattr__(f"modeling_{family}")
    with listening(parts) as heard, eager_attention(monkeypatch, modelling) as seen:
        out = theirs(**inputs, output_hidden_states=True, output_attentions=True)
    visible = inputs["attention_mask"].bool()[:, None, None, :]
    for i, layer in enumerate(found.layers):
        for ours_name, path in (
            ("attention", "attention.output.dense"), ("attention_norm", "attention.output"),
            ("middle", "attention.output"), ("up", "intermediate.dense"), ("activated", "intermediate"),
            ("feed_forward", "output.dense"), ("feed_forward_norm", "output"), ("residual", "output"),
        ):  # fmt: skip
            check(layer, ours_name, heard[f"{i}.{path}"])
        for which, path in (("q", "query"), ("k", "key"), ("v", "value")):
            check(layer, which, split_heads(heard[f"{i}.attention.self.{path}"], layer.q.shape[-1]))
        assert layer.gate is None
        check(layer, "weights", out.attentions[i])
        check_attention(layer, seen[i], visible)
    assert len(found.residuals) == len(out.hidden_states)
    for residual, expected in zip(found.residuals, out.hidden_states, strict=True):
        assert_equal_outputs(residual, expected)
    assert found.final is found.layers[-1].residual
    return found


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@torch.no_grad()
def test_every_intermediate_of_an_encoder_is_that_of_transformers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ENCODER | ({"type_vocab_size": 1} if family == "Roberta" else {})
    config = getattr(transformers, f"{family}Config")(**fields, attn_implementation="eager")
    theirs = scatter(getattr(transformers, f"{family}ForMaskedLM")(config))
    theirs.save_pretrained(tmp_path)
    ours: Any = read_model(tmp_path)
    ids, mask = padded_ids(V, "right", ours.config.pad_id)
    inputs = {"input_ids": ids, "attention_mask": mask}
    found = check_encoder(ours, getattr(theirs, family.lower()), inputs, monkeypatch)
    out = theirs(**inputs, output_hidden_states=True)
    head = theirs.cls if family == "Bert" else theirs.lm_head
    lens = list(layer_logits(ours, found))
    for logits, hidden in zip(lens, out.hidden_states, strict=True):
        assert_equal_outputs(logits, head(hidden))
    assert found.logits is not None and torch.equal(found.logits, ours(ids, mask))
    assert torch.equal(lens[-1], found.logits)


@torch.no_grad()
def test_every_intermediate_of_minilm_is_that_of_transformers(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = transformers.BertModel.from_pretrained(minilm, attn_implementation="eager").eval()
    ours, tokenizer = load(minilm)
    assert tokenizer is not None
    batch = tokenizer.encode_batch(["Con mèo nằm trên chiếu, a cat on a mat.", "猫坐在垫子上"])
    inputs = {"input_ids": torch.tensor(batch.ids), "attention_mask": torch.tensor(batch.mask)}
    found = check_encoder(ours, theirs, inputs, monkeypatch)
    assert found.logits is None
    with pytest.raises(UsageError, match="PooledEncoder has no output layer"):
        next(layer_logits(ours, found))


VARIANTS = [dict(positions=p) for p in CHOICES["positions"]] + [
    dict(norm_place="post", norm="layernorm"), dict(residual="none"), dict(residual="none", norm_place="post"),
    dict(score_scaling="none"), dict(feed_forward="geglu"), dict(feed_forward="relu", bias=True, dropout=0.4),
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@torch.no_grad()
def test_the_parts_of_every_variant_fit_together(changes: dict[str, Any]) -> None:
    """Weights times values are the heads, o_proj makes of them what attention gave, and down_proj of the activations."""
    shape = dict(vocab_size=V, d_model=20, n_layers=2, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=31, max_seq_len=32)
    model = scatter(Variant(VariantConfig(**(shape | changes)))).train()
    ids = torch.randint(V, (2, 11))
    found = trace(model, ids)
    assert all(module.training for module in model.modules())
    assert found.logits is not None and torch.equal(found.logits, model.eval()(ids))
    config = model.config
    for block, layer in zip(model.layers, found.layers, strict=True):
        if config.positions != "shaw":  # whose values have terms of their own
            assert_equal_outputs(layer.weights @ layer.v.repeat_interleave(2, dim=1), layer.heads)
        assert_equal_outputs(block.attention.o_proj(layer.heads.transpose(1, 2).flatten(2)), layer.attention)
        assert_equal_outputs(block.feed_forward.down_proj(layer.activated), layer.feed_forward)
        assert (layer.gate is None) == (config.feed_forward == "relu")
        assert_equal_outputs(layer.scores.softmax(-1), layer.weights)
    inputs = [found.embeddings, *(layer.residual for layer in found.layers)]
    for before, layer in zip(inputs, found.layers, strict=False):
        if config.residual == "add" and config.norm_place == "pre":
            assert_equal_outputs(before + layer.attention, layer.middle)
            assert_equal_outputs(layer.middle + layer.feed_forward, layer.residual)


@torch.no_grad()
def test_padding_and_packed_documents_are_not_seen() -> None:
    model = scatter(Llama(LlamaConfig(V, 24, 2, 4, 2, 6, 31, 64)))
    ids, mask = padded_ids(V, "left", 0)
    found = trace(model, ids, mask)
    assert torch.equal(found.logits, model(ids, mask))
    hidden = found.layers[1].weights[1, :, 4:, :4]  # real queries, padded keys
    assert hidden.numel() and not hidden.any()
    segments = torch.tensor([[0] * 5 + [1] * 8]).expand(3, -1)
    packed = trace(model, ids, segment_ids=segments)
    assert torch.equal(packed.logits, model(ids, segment_ids=segments))
    assert not packed.layers[0].weights[:, :, 5:, :5].any()


@torch.no_grad()
def test_an_adapted_model_is_traced_with_its_adapter_and_left_as_it_was() -> None:
    model, ids = scatter(Llama(LlamaConfig(V, 24, 2, 4, 2, 6, 31, 64))), torch.randint(V, (1, 9))
    before = trace(model, ids)
    add_lora(model, LoraConfig(rank=2, alpha=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    found = trace(model, ids)
    assert torch.equal(found.logits, model(ids))
    assert not torch.allclose(found.layers[0].q, before.layers[0].q)
    assert_equal_outputs(
        model.layers[1].attention.o_proj(found.layers[1].heads.transpose(1, 2).flatten(2)), found.layers[1].attention
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_are_gone_after_an_error_too() -> None:
    model = Llama(LlamaConfig(V, 24, 2, 4, 2, 6, 31, 64))
    with pytest.raises(IndexError):
        trace(model, torch.full((1, 3), V))
    assert not any(module._forward_hooks for module in model.modules())


def test_an_encoder_and_decoder_is_refused() -> None:
    model = Transformer(TransformerConfig(V, 24, 1, 4, 31))
    with pytest.raises(UsageError, match="the model is a Transformer; a trace takes a decoder or an encoder"):
        trace(model, torch.zeros(1, 3, dtype=torch.int64))
