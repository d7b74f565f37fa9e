"""BERT and RoBERTa with every head against their twins in transformers, through real files in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.models.twins import assert_equal_outputs, padded_ids, scatter, train_explicitly
from torch import Tensor, nn

from lamoid.checkpoints.hf import config_from_hf, config_to_hf, read_model, write_model
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.bert import Bert, BertConfig
from lamoid.models.heads import HeadedEncoder, PooledEncoder, attach_head, first_pool, mean_pool
from lamoid.models.roberta import Roberta, RobertaConfig

V = 53
SHAPE: dict[str, Any] = dict(
    vocab_size=V, hidden_size=30, num_hidden_layers=3, num_attention_heads=5, intermediate_size=41,
    max_position_embeddings=32, id2label={0: "không", 1: "có", 2: "可能"}, label2id={"không": 0, "có": 1, "可能": 2},
)  # fmt: skip
BERTS = ["Model", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction", "ForSequenceClassification",
         "ForQuestionAnswering", "ForTokenClassification"]  # fmt: skip
ROBERTAS = [name for name in BERTS if name not in ("ForPreTraining", "ForNextSentencePrediction")]
ALL = [("Bert", name) for name in BERTS] + [("Roberta", name) for name in ROBERTAS]
OUTPUTS = {
    "Model": ["last_hidden_state"],
    "ForMaskedLM": ["logits"],
    "ForPreTraining": ["prediction_logits", "seq_relationship_logits"],
    "ForNextSentencePrediction": ["logits"],
    "ForSequenceClassification": ["logits"],
    "ForTokenClassification": ["logits"],
}


def twins(path: Path, family: str, kind: str, **changes: Any) -> tuple[Any, nn.Module]:
    fields = SHAPE | ({"type_vocab_size": 1, "max_position_embeddings": 34} if family == "Roberta" else {}) | changes
    if kind not in ("ForSequenceClassification", "ForTokenClassification"):
        fields = {k: v for k, v in fields.items() if "label" not in k}
    config = getattr(transformers, f"{family}Config")(**fields, attn_implementation="eager")
    theirs = scatter(getattr(transformers, family + kind)(config))
    theirs.save_pretrained(path)
    return theirs, read_model(path)


def outputs_of(theirs: Any, kind: str, **inputs: Tensor) -> list[Tensor]:
    out = theirs(**inputs)
    if kind == "ForQuestionAnswering":
        return [torch.stack((out.start_logits, out.end_logits), dim=-1)]
    return [out[name] for name in OUTPUTS[kind]]


def as_list(out: Any) -> list[Tensor]:
    return list(out) if isinstance(out, tuple) else [out]


@pytest.mark.parametrize(("family", "kind"), ALL)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_every_output_equals_transformers(family: str, kind: str, side: str, tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path, family, kind)
    pad_id = ours.config.pad_id  # type: ignore[union-attr]
    ids, mask = padded_ids(V, side, pad_id)  # type: ignore[arg-type]
    segments = torch.randint(2, ids.shape) if family == "Bert" else torch.zeros_like(ids)
    expected = outputs_of(theirs, kind, input_ids=ids, attention_mask=mask, token_type_ids=segments)
    found = as_list(ours(ids, mask, segments))
    assert len(found) == len(expected)
    for mine, yours in zip(found, expected, strict=True):
        is_by_token = mine.dim() == 3
        assert_equal_outputs(mine[mask.bool()] if is_by_token else mine, yours[mask.bool()] if is_by_token else yours)
    for mine, yours in zip(as_list(ours(ids[:1])), outputs_of(theirs, kind, input_ids=ids[:1]), strict=True):
        assert_equal_outputs(mine, yours)


@pytest.mark.parametrize(("family", "kind"), [one for one in ALL if one != ("Roberta", "ForSequenceClassification")])
def test_dropout_stands_where_transformers_has_it(family: str, kind: str, tmp_path: Path) -> None:
    """The same seed drops the same: embeddings, weights of attention, what each sublayer adds, what a class is made from."""
    shares = dict(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, classifier_dropout=0.4)
    theirs, ours = twins(tmp_path, family, kind, **shares)
    train_explicitly(ours)
    ids = torch.randint(2, V, (2, 11))
    torch.manual_seed(1)
    found = as_list(ours(ids))
    torch.manual_seed(1)
    for mine, yours in zip(found, outputs_of(theirs.train(), kind, input_ids=ids), strict=True):
        assert_equal_outputs(mine, yours)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "kind"), ALL)
@torch.no_grad()
def test_what_lamoid_writes_opens_in_transformers(family: str, kind: str, tied: bool, tmp_path: Path) -> None:
    original, ours = twins(tmp_path / "theirs", family, kind, tie_word_embeddings=tied)
    (tmp_path / "ours").mkdir()
    write_model(tmp_path / "ours", ours, None)
    class_name = json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"][0]
    assert class_name == family + kind
    theirs, info = getattr(transformers, class_name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected, found = original.state_dict(), theirs.eval().state_dict()
    unused = [] if tied else [name for name in expected if name in ("cls.predictions.bias", "lm_head.bias")]
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items() if key not in unused)
    assert theirs.config.id2label == original.config.id2label
    ids = torch.randint(5, V, (2, 9))
    for mine, yours in zip(as_list(ours(ids)), outputs_of(theirs, kind, input_ids=ids), strict=True):
        assert_equal_outputs(mine, yours)
    again = read_model(tmp_path / "ours")
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@pytest.mark.parametrize(
    "changes",
    [{}, dict(hidden_act="relu"), dict(hidden_act="gelu_new", layer_norm_eps=1e-3), dict(num_attention_heads=1)],
    ids=str,
)
@torch.no_grad()
def test_other_settings(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path, family, "ForMaskedLM", **changes)
    ids = torch.randint(5, V, (2, 9))
    assert_equal_outputs(ours(ids), theirs(ids).logits)
    written = config_to_hf(ours.config)
    assert config_from_hf(written) == ours.config
    for field in ("hidden_size", "max_position_embeddings", "type_vocab_size", "pad_token_id", "layer_norm_eps"):
        assert written[field] == getattr(theirs.config, field)


@pytest.mark.parametrize("path", ["explicit", "tiled"])
@pytest.mark.parametrize("family", [Bert, Roberta])
@torch.no_grad()
def test_every_attention_path_gives_the_same(path: Any, family: type, tmp_path: Path) -> None:
    config = (BertConfig if family is Bert else RobertaConfig)(V, 30, 2, 5, 41, 32)
    fused, other = scatter(family(config)), family(config, attention_path=path).eval()
    other.load_state_dict(fused.state_dict())
    ids, mask = padded_ids(V, "right", config.pad_id)
    torch.testing.assert_close(other(ids, mask)[mask.bool()], fused(ids, mask)[mask.bool()], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mlm_logits_at_chosen_positions_alone(tmp_path: Path) -> None:
    _, model = twins(tmp_path, "Bert", "ForPreTraining")
    assert isinstance(model, HeadedEncoder)
    ids, chosen = torch.randint(5, V, (2, 9)), torch.rand(2, 9) < 0.3
    chosen[0, 0] = True
    hidden, seen = model.encoder(ids), []
    model.head.mlm.decoder.register_forward_hook(lambda module, inputs, out: seen.append(out.shape))  # type: ignore[union-attr]
    torch.testing.assert_close(model.head.mlm(hidden[chosen]), model(ids)[0][chosen])  # type: ignore[operator, union-attr]
    assert seen[0] == (int(chosen.sum()), V)


@torch.no_grad()
def test_berts_published_files_have_both_heads_and_old_names(tmp_path: Path) -> None:
    """`BertForMaskedLM` in config.json, NSP's tensors in the file, gamma and beta, tied weights twice, a buffer."""
    theirs, _ = twins(tmp_path, "Bert", "ForPreTraining")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in tensors.items()
    }
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    tensors["bert.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    change_config(tmp_path, architectures=["BertForMaskedLM"])
    ours = read_model(tmp_path)
    ids = torch.randint(5, V, (2, 9))
    for mine, yours in zip(ours(ids), outputs_of(theirs, "ForPreTraining", input_ids=ids), strict=True):
        assert_equal_outputs(mine, yours)


def change_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


REFUSED = [
    ({"num_attention_heads": 7}, "num_attention_heads is 7; it must divide hidden_size, which is 30"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ({"is_decoder": True}, "is_decoder is True"),
    ({"hidden_act": "swish"}, "hidden_act is 'swish'"),
    ({"hidden_dropout_prob": 1}, "hidden_dropout_prob is 1.0"),
    ({"type_vocab_size": 0}, "type_vocab_size is 0"),
    ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    (
        {"architectures": ["BertForMultipleChoice"]},
        r"architectures is \['BertForMultipleChoice'\]; known are BertModel",
    ),
    ({"architectures": "BertModel"}, "architectures is 'BertModel'"),
    (
        {"architectures": ["BertForTokenClassification"], "id2label": {"1": "x"}},
        "id2label has 1 names but none for '0'",
    ),
    ({"architectures": ["BertForTokenClassification"], "id2label": []}, "id2label is"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:50])
def test_a_configuration_is_refused_by_the_name_of_its_field(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    twins(tmp_path, "Bert", "Model")
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        read_model(tmp_path)


def test_a_roberta_without_room_for_positions_is_refused() -> None:
    fields = {k: v for k, v in SHAPE.items() if "label" not in k} | {"max_position_embeddings": 2}
    with pytest.raises(CheckpointError, match="max_position_embeddings is 2; the first 2 are not used"):
        config_from_hf({"model_type": "roberta", **fields})


def test_every_tensor_that_does_not_fit_is_in_one_message(tmp_path: Path) -> None:
    twins(tmp_path, "Bert", "ForSequenceClassification")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["classifier.weight"], tensors["bert.encoder.layer.1.output.LayerNorm.bias"]
    tensors |= {"classifier.bias": torch.zeros(4), "qa_outputs.bias": torch.zeros(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read_model(tmp_path)
    for part in (
        "classifier.weight is missing",
        "bert.encoder.layer.1.output.LayerNorm.bias is missing",
        "classifier.bias is (4,), not (3,)",
        "qa_outputs.bias is superfluous",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@pytest.mark.parametrize("kind", ["mlm", "sequence", "span", "token"])
def test_a_new_head_is_drawn_from_its_seed(family: str, kind: Any, tmp_path: Path) -> None:
    _, bare = twins(tmp_path, family, "Model")
    assert isinstance(bare, PooledEncoder)
    labels = ("A", "B", "C", "D") if kind in ("sequence", "token") else ()
    first, again, other = (attach_head(bare, kind, seed, labels) for seed in (1, 1, 2))
    parts = [dict(model.head.named_parameters()) for model in (first, again, other)]
    assert all(torch.equal(p, parts[1][name]) for name, p in parts[0].items())
    drawn = [name for name, p in parts[0].items() if p.dim() == 2 and "pooler" not in name and "decoder" not in name]
    assert drawn and not any(torch.equal(parts[0][name], parts[2][name]) for name in drawn)
    encoder = dict(first.encoder.named_parameters())
    assert all(torch.equal(p, encoder[name]) for name, p in bare.encoder.named_parameters())
    if kind == "sequence":  # the pooler that was there stays
        assert torch.equal(first.head.pooler.dense.weight, bare.pooler.dense.weight)  # type: ignore[union-attr]
    if kind == "mlm":
        assert first.head.decoder.weight is first.encoder.embedding.weight  # type: ignore[union-attr]
    (tmp_path / "headed").mkdir()
    write_model(tmp_path / "headed", first, None)
    head = read_model(tmp_path / "headed").head
    assert getattr(head, "labels", ()) == labels


def test_a_head_takes_the_place_of_another(tmp_path: Path) -> None:
    _, model = twins(tmp_path, "Bert", "ForPreTraining")
    classifier = attach_head(model, "sequence", 0, ("yes", "no"))  # type: ignore[arg-type]
    pooler = model.head.nsp.pooler.dense.weight  # type: ignore[union-attr]
    assert torch.equal(classifier.head.pooler.dense.weight, pooler)  # type: ignore[union-attr, arg-type]
    assert classifier(torch.zeros(3, 7, dtype=torch.int64)).shape == (3, 2)  # type: ignore[union-attr]


def test_labels_belong_to_classes_alone() -> None:
    bert = Bert(BertConfig(V, 30, 1, 5, 41))
    with pytest.raises(UsageError, match="labels are \\(\\) for a head of kind 'sequence'"):
        attach_head(bert, "sequence", 0)
    with pytest.raises(UsageError, match="for a head of kind 'span'"):
        attach_head(bert, "span", 0, ("x",))


def test_robertas_in_transformers_have_no_nsp(tmp_path: Path) -> None:
    roberta = Roberta(RobertaConfig(V, 30, 1, 5, 41)).initialise(0)
    with pytest.raises(UsageError, match="'nsp' has no class in transformers"):
        write_model(tmp_path, attach_head(roberta, "nsp", 0), None)


def test_pooling_leaves_padding_out() -> None:
    hidden, mask = torch.randn(3, 4, 5), torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    means, firsts = mean_pool(hidden, mask), first_pool(hidden, mask)
    torch.testing.assert_close(means[0], hidden[0, :2].mean(0))
    torch.testing.assert_close(means[1], hidden[1, 2:].mean(0))
    assert not means[2].any()
    assert torch.equal(firsts[:2], torch.stack((hidden[0, 0], hidden[1, 2])))
