"""GPT-2 against its twin in transformers, through real files in both directions."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.models.twins import assert_equal_outputs, padded_ids, scatter, train_explicitly
from torch import Tensor

from lamoid.checkpoints.hf import config_from_hf, config_to_hf, read_model, write_model
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.gpt2 import GPT2, PRESETS, GPT2Config
from lamoid.nn.kv_cache import KVCache

V = 61
SMALL: dict[str, Any] = dict(vocab_size=V, n_embd=30, n_layer=3, n_head=5, n_positions=32)
TWINS: dict[str, dict[str, Any]] = {
    "published": {},
    "untied": dict(tie_word_embeddings=False),
    "narrow feed-forward": dict(n_inner=41),
    "one head, exact gelu": dict(n_head=1, n_embd=17, activation_function="gelu"),
    "relu, other epsilon": dict(activation_function="relu", layer_norm_epsilon=1e-3),
    "other names of tanh": dict(activation_function="gelu_pytorch_tanh", reorder_and_upcast_attn=True),
}


def twins(path: Path, **changes: Any) -> tuple[transformers.GPT2LMHeadModel, GPT2]:
    config = transformers.GPT2Config(**(SMALL | changes), attn_implementation="eager")
    theirs = scatter(transformers.GPT2LMHeadModel(config))
    theirs.save_pretrained(path)
    return theirs, read_model(path)


@pytest.mark.parametrize("name", TWINS)
@torch.no_grad()
def test_logits_equal_transformers_and_go_back(name: str, tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path / "theirs", **TWINS[name])
    ids = torch.randint(V, (2, 19))
    assert_equal_outputs(ours(ids), theirs(ids).logits)
    (tmp_path / "ours").mkdir()
    write_model(tmp_path / "ours", ours, None)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is transformers.GPT2LMHeadModel
    expected, found = theirs.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    assert_equal_outputs(ours(ids), again(ids).logits)


def test_dropout_stands_where_transformers_has_it(tmp_path: Path) -> None:
    """The same seed drops the same: on the embeddings' sum, on the weights of attention, on what each sublayer adds."""
    theirs, _ = twins(tmp_path, embd_pdrop=0.2, attn_pdrop=0.3, resid_pdrop=0.4)
    ids, outputs = torch.randint(V, (2, 19)), []
    for model in (train_explicitly(read_model(tmp_path)), theirs.train()):
        torch.manual_seed(1)
        outputs.append(model(ids))
    assert_equal_outputs(outputs[0], outputs[1].logits)


@pytest.mark.parametrize("name", TWINS)
def test_configuration_survives_both_ways(name: str) -> None:
    given = SMALL | TWINS[name]
    config = config_from_hf(transformers.GPT2Config(**given).to_dict())
    written = config_to_hf(config)
    assert config_from_hf(written) == config
    theirs = transformers.GPT2Config(**written)
    for field, value in (given | {"n_inner": given.get("n_inner", 4 * given["n_embd"])}).items():
        if field not in ("activation_function", "reorder_and_upcast_attn"):
            assert getattr(theirs, field) == value


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_on_either_side(side: str, tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path)
    ids, mask = padded_ids(V, side, 0)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    found, real = ours(ids, mask), mask.bool()
    assert found.isfinite().all()
    assert_equal_outputs(found[real], expected[real])


def test_files_as_openai_published_them(tmp_path: Path) -> None:
    """Without `transformer.` in front, with the causal masks as buffers."""
    theirs, _ = twins(tmp_path)
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32) for i in range(3)}
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()  # saved twice
    save_file(tensors, tmp_path / "model.safetensors")
    ours = read_model(tmp_path)
    assert ours.lm_head.weight is ours.embedding.weight
    ids = torch.randint(V, (1, 7))
    with torch.no_grad():
        assert_equal_outputs(ours(ids), theirs(ids).logits)


@pytest.mark.parametrize("path", ["fused", "explicit", "tiled"])
@torch.no_grad()
def test_cached_equals_uncached_on_every_path(path: Any, tmp_path: Path) -> None:
    _, read = twins(tmp_path)
    ours = GPT2(read.config, attention_path=path).eval()
    ours.load_state_dict(read.state_dict())
    ids, cache = torch.randint(V, (2, 9)), KVCache(3)
    whole = read(ids)
    parts = [ours(ids[:, :4], cache=cache), *(ours(ids[:, i : i + 1], cache=cache) for i in range(4, 9))]
    assert_equal_outputs(torch.cat(parts, dim=1), whole, 1e-5)


@torch.no_grad()
def test_packed_equals_separate(tmp_path: Path) -> None:
    _, ours = twins(tmp_path)
    a, b = torch.randint(V, (1, 5)), torch.randint(V, (1, 8))
    packed = ours(torch.cat((a, b), 1), segment_ids=torch.tensor([[3] * 5 + [4] * 8]))
    torch.testing.assert_close(packed, torch.cat((ours(a), ours(b)), 1), rtol=1e-5, atol=1e-5)


def test_greedy_text_equals_transformers(tmp_path: Path) -> None:
    from lamoid.inference.generate import Decoder
    from lamoid.inference.plain_decoder import PlainDecoder, decoder_for

    theirs, ours = twins(tmp_path)
    prompts = [[5, 7, 9, 1], [3], [8, 8]]
    decoder = decoder_for(ours)
    assert isinstance(decoder, PlainDecoder) and isinstance(decoder, Decoder)
    logits, written = decoder.prefill(prompts), [list(p) for p in prompts]
    for _ in range(12):
        ids = [int(row.argmax()) for row in logits]
        written = [[*w, i] for w, i in zip(written, ids, strict=True)]
        logits = decoder.step(ids)
    for prompt, found in zip(prompts, written, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=12,
            min_new_tokens=12,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert found == expected[0].tolist()
    decoder.keep_rows([2, 0])
    one = decoder.step([4, 4])[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(one), ours(torch.tensor([[*written[2], 4]]))[0, -1])


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gpt2-small", 124), ("gpt2-medium", 355), ("gpt2-large", 774), ("gpt2-xl", 1558)],
)
def test_presets_have_the_published_sizes(name: str, millions: int) -> None:
    with torch.device("meta"):
        ours = sum(p.numel() for p in GPT2(PRESETS[name]).parameters())
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config_to_hf(PRESETS[name])))
    assert ours == theirs.num_parameters() and round(ours / 1e6) == millions


def test_first_weights_follow_the_paper_and_the_seed() -> None:
    config = GPT2Config(500, 96, 8, 4, 200, 64)
    first, again, other = (GPT2(config).initialise(seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert first.embedding.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert first.layers[3].attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)
    for added in (first.layers[3].attention.o_proj, first.layers[3].feed_forward.down_proj):
        assert added.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert not first.layers[0].attention.q_proj.bias.any() and (first.norm.weight == 1).all()


def test_dropout_is_reproducible_and_for_training_alone() -> None:
    model, ids = GPT2(GPT2Config(V, 30, 2, 5, 40, 32)).initialise(0), torch.randint(V, (2, 9))
    outs: list[Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(model.train()(ids))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert torch.equal(model.eval()(ids), model(ids))


def test_gradient_checkpointing_changes_nothing() -> None:
    ids, gradients = torch.randint(V, (2, 9)), []
    for recompute in (False, True):
        model = GPT2(GPT2Config(V, 30, 2, 5, 40, 32), gradient_checkpointing=recompute).initialise(0).train()
        torch.manual_seed(3)
        model(ids).logsumexp(-1).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_text_longer_than_the_positions_is_refused() -> None:
    model = GPT2(GPT2Config(V, 30, 1, 5, 40, 8))
    with pytest.raises(UsageError, match="reaches position 8; this model has learned 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))


REFUSED = [
    ({"n_head": 7}, "n_head is 7; it must divide n_embd, which is 30"),
    ({"n_layer": 10**9}, "n_layer is 1000000000"),
    ({"attn_pdrop": 1.5}, "attn_pdrop is 1.5"),
    ({"attn_pdrop": -0.1}, "attn_pdrop is -0.1"),
    ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
    ({"activation_function": "swish"}, "activation_function is 'swish'; known are gelu_new"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ({"n_positions": None}, "fields \\['n_positions'\\] are missing"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=str)
def test_a_configuration_is_refused_by_the_name_of_its_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_from_hf({"model_type": "gpt2"} | SMALL | changes)


def test_every_tensor_that_does_not_fit_is_in_one_message(tmp_path: Path) -> None:
    twins(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.ln_1.weight"], tensors["transformer.h.2.attn.c_attn.weight"]
    tensors["transformer.h.0.attn.c_attn.bias"] = torch.zeros(91)
    tensors["transformer.h.3.ln_1.weight"] = torch.zeros(30)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read_model(tmp_path)
    for part in (
        "transformer.h.1.ln_1.weight is missing",
        "transformer.h.2.attn.c_attn.weight is missing",
        "transformer.h.3.ln_1.weight is superfluous",
        "transformer.h.0.attn.c_attn.bias is (91,), not (90,)",
    ):
        assert part in str(caught.value)
