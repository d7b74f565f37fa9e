"""BERT and RoBERTa in Hugging Face directories, bare or with a head. The class that config.json names says which."""

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from lamoid.checkpoints.config_fields import allow_only, make_config, read_fields, rename
from lamoid.checkpoints.hf_gpt2 import read_activation, write_activation
from lamoid.checkpoints.name_maps import BERT_FIELDS, BERT_HEADS, ENCODER_TENSORS, ROBERTA_HEADS
from lamoid.checkpoints.spelling import Spelling, Tensors
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.bert import Bert, BertConfig
from lamoid.models.heads import (
    HeadedEncoder,
    HeadKind,
    MLMHead,
    NSPHead,
    PooledEncoder,
    Pooler,
    PretrainingHead,
    SequenceHead,
    SpanHead,
    TokenHead,
    make_head,
)
from lamoid.models.roberta import Roberta, RobertaConfig

CLASSES: dict[str, HeadKind | None] = {
    "BertModel": None,
    "BertForMaskedLM": "mlm",
    "BertForNextSentencePrediction": "nsp",
    "BertForPreTraining": "pretraining",
    "BertForSequenceClassification": "sequence",
    "BertForQuestionAnswering": "span",
    "BertForTokenClassification": "token",
    "RobertaModel": None,
    "RobertaForMaskedLM": "mlm",
    "RobertaForSequenceClassification": "sequence",
    "RobertaForQuestionAnswering": "span",
    "RobertaForTokenClassification": "token",
}
"""transformers' classes, and the head that each has."""
KINDS: dict[type, HeadKind] = {
    MLMHead: "mlm",
    NSPHead: "nsp",
    PretrainingHead: "pretraining",
    SequenceHead: "sequence",
    SpanHead: "span",
    TokenHead: "token",
}
_REQUIRED = ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_seq_len")
_ONLY: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
}
MOST_LABELS = 2**16
_MLM = {"bert": "cls.predictions.", "roberta": "lm_head."}
_BUFFERS = re.compile(r"(^|\.)embeddings\.(position_ids|token_type_ids)$")
_ENCODER_PARTS = ("embeddings.", "encoder.", "pooler.")


def _read_bert(raw: dict[str, Any]) -> BertConfig:
    config: BertConfig = make_config(BertConfig, _read_fields(BertConfig, raw), BERT_FIELDS)
    return config


def _read_roberta(raw: dict[str, Any]) -> RobertaConfig:
    fields = {"pad_id": 1} | _read_fields(RobertaConfig, raw)
    n_unused = fields["pad_id"] + 1
    if fields["max_seq_len"] <= n_unused:
        raise CheckpointError(f"max_position_embeddings is {fields['max_seq_len']}; the first {n_unused} are not used")
    fields["max_seq_len"] -= n_unused
    config: RobertaConfig = make_config(RobertaConfig, fields, BERT_FIELDS)
    return config


def _read_fields(kind: type, raw: dict[str, Any]) -> dict[str, Any]:
    allow_only(raw, _ONLY, "encoder")
    fields = {"n_segments": 2, "norm_eps": 1e-12} | read_fields(kind, BERT_FIELDS, raw, _REQUIRED)
    fields.setdefault("head_dropout", fields.get("dropout", 0.1))
    fields["activation"] = read_activation(raw, "hidden_act", "gelu")
    return fields


def _write_bert(config: BertConfig) -> dict[str, Any]:
    return {"model_type": "bert", **_write_fields(config)}


def _write_roberta(config: RobertaConfig) -> dict[str, Any]:
    longest = config.max_seq_len + config.pad_id + 1
    return {"model_type": "roberta", **_write_fields(config), "max_position_embeddings": longest}


def _write_fields(config: BertConfig | RobertaConfig) -> dict[str, Any]:
    fields = {theirs: getattr(config, ours) for ours, theirs in BERT_FIELDS.items()}
    return {**fields, "hidden_act": write_activation(config.activation), "position_embedding_type": "absolute"}


def _build(config: BertConfig | RobertaConfig, raw: dict[str, Any], names: Collection[str]) -> nn.Module:
    """The encoder and the head that the files have; `BertForMaskedLM` with NSP's tensors, as BERT was published, has both."""
    prefix = "Bert" if isinstance(config, BertConfig) else "Roberta"
    known = [name for name in CLASSES if name.startswith(prefix)]
    named = raw.get("architectures") or [known[0]]
    if not isinstance(named, list) or named[0] not in known:
        raise CheckpointError(f"architectures is {named!r:.80}; known are {', '.join(known)}")
    kind = CLASSES[named[0]]
    if kind == "mlm" and "cls.seq_relationship.weight" in names:
        kind = "pretraining"
    encoder = Bert(config) if isinstance(config, BertConfig) else Roberta(config)
    if kind is not None:
        return HeadedEncoder(encoder, make_head(encoder, kind, _labels(raw) if kind in ("sequence", "token") else ()))
    if any(name.endswith("pooler.dense.weight") for name in names):
        return PooledEncoder(encoder, Pooler(config.d_model))
    return encoder


def _labels(raw: dict[str, Any]) -> tuple[str, ...]:
    n_labels = raw.get("num_labels", 2)
    labels = raw.get("id2label")
    if labels is None and type(n_labels) is int and 0 < n_labels <= MOST_LABELS:
        return tuple(f"LABEL_{i}" for i in range(n_labels))
    if not isinstance(labels, dict) or not 0 < len(labels) <= MOST_LABELS:
        raise CheckpointError(f"id2label is {str(labels)[:80]}; it must name 1 to {MOST_LABELS} classes")
    try:
        return tuple(str(labels[str(i)]) for i in range(len(labels)))
    except KeyError as error:
        raise CheckpointError(f"id2label has {len(labels)} names but none for {error}; ids run from 0") from error


def _describe(model: nn.Module) -> dict[str, Any]:
    """The class, and the names of its labels. Raises UsageError for a head that transformers' RoBERTa does not have."""
    prefix = "Bert" if isinstance(model.config, BertConfig) else "Roberta"
    kind = KINDS[type(model.head)] if isinstance(model, HeadedEncoder) else None
    found = [name for name, head in CLASSES.items() if name.startswith(prefix) and head == kind]
    if not found:
        raise UsageError(
            f"a {prefix} with a head of kind {kind!r:.80} has no class in transformers; take a Bert, or MLM alone"
        )
    described: dict[str, Any] = {"architectures": found}
    if isinstance(model, HeadedEncoder) and isinstance(model.head, SequenceHead | TokenHead):
        labels = model.head.labels
        described["id2label"] = {str(i): label for i, label in enumerate(labels)}
        described["label2id"] = {label: i for i, label in enumerate(labels)}
    return described


def _rename(model: nn.Module, name: str) -> str:
    family, heads = _family(model)
    if not isinstance(model, HeadedEncoder):
        return rename(name.removeprefix("encoder."), ENCODER_TENSORS)
    if not name.startswith("head."):
        return f"{family}." + rename(name.removeprefix("encoder."), ENCODER_TENSORS)
    kind, part = KINDS[type(model.head)], name.removeprefix("head.")
    group, _, rest = part.partition(".") if kind == "pretraining" else (kind, "", part)
    theirs = rename(rest, heads[group])
    return theirs.replace(".decoder.bias", ".bias") if _is_tied(model) else theirs


def _family(model: nn.Module) -> tuple[str, dict[str, list[tuple[str, str]]]]:
    return ("bert", BERT_HEADS) if isinstance(model.config, BertConfig) else ("roberta", ROBERTA_HEADS)


def _is_tied(model: nn.Module) -> bool:
    return bool(model.config.tied_embeddings)  # type: ignore[union-attr]


def _clean(model: nn.Module, tensors: Tensors) -> Tensors:
    """Without buffers and copies of what is tied; names as today's files have them, with the prefix that the class has."""
    family, _ = _family(model)
    prefix = f"{family}." if isinstance(model, HeadedEncoder) else ""
    cleaned: Tensors = {}
    for name, tensor in tensors.items():
        if _BUFFERS.search(name):
            continue
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
        bare = name.removeprefix(f"{family}.")
        cleaned[prefix + bare if bare.startswith(_ENCODER_PARTS) else name] = tensor
    mlm = _MLM[family]
    if _is_tied(model):
        cleaned.pop(f"{mlm}decoder.weight", None)
        bias = cleaned.pop(f"{mlm}decoder.bias", None)
        if bias is not None:
            cleaned.setdefault(f"{mlm}bias", bias)
    elif f"{mlm}decoder.bias" in cleaned:
        cleaned[f"{mlm}bias"] = cleaned[f"{mlm}decoder.bias"]
    return cleaned


def _pack(model: nn.Module, tensors: Tensors) -> Tensors:
    """An untied MLM head carries its bias twice there, of which one is not used."""
    mlm = _MLM[_family(model)[0]]
    if f"{mlm}decoder.bias" not in tensors:
        return tensors
    return tensors | {f"{mlm}bias": tensors[f"{mlm}decoder.bias"].clone()}


BERT, ROBERTA = (
    Spelling(
        config=config,
        read_config=read,
        write_config=write,
        build=_build,
        describe=_describe,
        rename=_rename,
        tie=lambda model: model.tie_weights() if isinstance(model, HeadedEncoder) else None,
        clean=_clean,
        pack=_pack,
    )
    for config, read, write in ((BertConfig, _read_bert, _write_bert), (RobertaConfig, _read_roberta, _write_roberta))
)
