"""An adapted model as the whole model that it amounts to, and how far the two are apart."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamoid.adapt.lora import LoraLinear, merged_weight
from lamoid.adapt.nf4 import Nf4Linear
from lamoid.adapt.paths import FROZEN, replace_layer
from lamoid.checkpoints.certificate import CERTIFICATE_FILE, MOST_TOKENS, Streamed, hashes
from lamoid.checkpoints.hf import read_model, write_model
from lamoid.checkpoints.source import DTYPES, Rows, Source
from lamoid.checkpoints.store import atomic_directory, write_json
from lamoid.errors import RunError, UsageError
from lamoid.models.heads import HeadedEncoder, SpanHead
from lamoid.models.llama import Llama
from lamoid.models.llama_config import parameter_shapes
from lamoid.tokenizers.framing import frame_many
from lamoid.tokenizers.gguf_vocabulary import PROBE
from lamoid.tokenizers.tokenizer import Tokenizer

MOST_MEAN_KL_NATS = 1e-6
"""Where nothing is rounded but float32 itself; a merge beyond it is wrong, and refused.

Not the largest difference of a logit, which a few ill-conditioned positions decide: SmolLM2 with a LoRA that was trained
came to 4·10⁻⁵ of the largest logit at one of 128 positions, though in float64 it is 2·10⁻⁶. The mean KL was 3·10⁻¹⁰.
"""

M = TypeVar("M", bound=nn.Module)


def merged_source(model: Llama, path: Path, tokenizer: Tokenizer | None, end_ids: tuple[int, ...]) -> Source:
    """The whole model that LoRA on a base amounts to, in float32: W + s · B A, with W dequantized where it is in NF4.

    A LoRA on the output matrix of tied embeddings unties them: the embedding stays, and the output matrix is one of its own.
    """
    tied = model.config.tied_embeddings and not isinstance(model.lm_head, LoraLinear)
    config = dataclasses.replace(model.config, tied_embeddings=tied)

    @functools.lru_cache(maxsize=1)
    def whole(name: str) -> Tensor:
        layer, kind = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if kind == "weight" and isinstance(layer, LoraLinear | Nf4Linear):
            return merged_weight(layer).detach()
        return getattr(layer, kind).detach().float()

    def read(name: str, rows: Rows) -> Tensor:
        return whole(name)[torch.from_numpy(rows)]

    return Source(path, config, dict.fromkeys(parameter_shapes(config), "F32"), read, tokenizer, end_ids)


@torch.inference_mode()
def drift(model: Llama, result: Source, ids: list[int], *, exact: bool) -> dict[str, Any]:
    """How far a merged Llama's logits are from those of the adapted model itself, over the ids of a text.

    What `compare` finds for the next token, and the perplexity of both.
    """
    streamed, tokens, positions = Streamed(result), torch.tensor([ids]), torch.arange(len(ids))[None]
    x = streamed.embed(tokens)
    for layer in range(result.config.n_layers):
        x = streamed.block(layer, x, positions)
    merged = torch.cat(list(streamed.logits(x)), dim=-1)[0]
    adapted, targets = model(tokens)[0].float(), torch.tensor(ids[1:])
    losses = {"adapter": F.cross_entropy(adapted[:-1], targets), "merged": F.cross_entropy(merged[:-1], targets)}
    perplexity = {name: math.exp(min(float(loss), 700)) for name, loss in losses.items()}
    return {"drift": {**compare([adapted], [merged], exact=exact), "perplexity": perplexity}}


@torch.inference_mode()
def merge_encoder(model: HeadedEncoder, target: Path, tokenizer: Tokenizer | None, dtype: str) -> dict[str, Any]:
    """Write an adapted encoder with its head as a whole model, in a dtype of DTYPES; returns the certificate beside it.

    The model itself is merged. What was written is read again, and what its head says about the lines of a fixed text is
    compared with what it said before. Raises UsageError where `target` exists.
    """
    if target.exists():
        raise UsageError(f"{target} exists; choose another name, or remove it first")
    lines = [[i * 7919 % model.config.vocab_size for i in range(MOST_TOKENS)]]
    if tokenizer is not None:
        texts = [line for line in PROBE.splitlines() if line.strip()]
        lines = [
            row.ids.tolist()
            for row in frame_many(tokenizer, texts, max_tokens=min(MOST_TOKENS, model.config.max_seq_len))
        ]
    exact = dtype == "F32" and in_float32(model)
    adapted = [_said(model, ids) for ids in lines]
    with atomic_directory(target) as place:
        write_model(place, merge_layers(model).to(DTYPES[dtype]), tokenizer)
        again = read_model(place, dtype=torch.float32)
        drift = compare(adapted, [_said(again, ids) for ids in lines], exact=exact)
        proof = {"format": "hf", "dtype": dtype, "result": {"sha256": hashes(place)}, "drift": drift}
        write_json(place / CERTIFICATE_FILE, proof)
    return proof


def merge_layers(model: M) -> M:
    """Put W + s · B A, in float32, in the place of every LoRA, and W in that of every matrix in NF4. Returns the model."""
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, LoraLinear | Nf4Linear) or path.endswith(f".{FROZEN}"):
            continue
        whole = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        whole.weight, whole.bias = nn.Parameter(merged_weight(layer).detach()), layer.bias  # type: ignore[assignment]
        replace_layer(model, path, whole)
    return model


def in_float32(model: nn.Module) -> bool:
    """Whether every product with a matrix in NF4 is computed in float32, so that merging rounds nothing more."""
    return all(layer.compute_dtype == torch.float32 for layer in model.modules() if isinstance(layer, Nf4Linear))


def compare(adapted: Sequence[Tensor], merged: Sequence[Tensor], *, exact: bool) -> dict[str, float]:
    """How far apart logits (n, choices) are: their difference, as it is and as a share of the largest; the mean KL
    divergence (nats) of the choice; how often both find the same one the most likely.

    Raises RunError where they differ although nothing was rounded (`exact`).
    """
    difference = max(float((q - p).abs().max()) for p, q in zip(adapted, merged, strict=True))
    kl = torch.cat([_kl(p, q) for p, q in zip(adapted, merged, strict=True)])
    same = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in zip(adapted, merged, strict=True)])
    mean_kl = float(kl.mean())
    if not math.isfinite(mean_kl) or (exact and mean_kl > MOST_MEAN_KL_NATS):
        raise RunError(
            f"the certificate failed: what the merged model says differs by {mean_kl:.2g} nats (KL) from what it said with "
            f"its adapter; {MOST_MEAN_KL_NATS:g} is allowed"
        )
    return {
        "largest_logit_difference": difference,
        "relative": difference / max(float(p.abs().max()) for p in adapted),
        "mean_kl_nats": mean_kl,
        "same_most_likely": float(same.double().mean()),
    }


def _kl(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.double().log_softmax(dim=-1), q.double().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)


def _said(model: nn.Module, ids: list[int]) -> Tensor:
    """Logits (n, choices) about a text: of classes, for the text or each token, or of tokens as an answer's two ends."""
    said = model(torch.tensor([ids]))[0].float()
    if isinstance(model.head, SpanHead):
        return said.T
    return said if said.dim() == 2 else said[None]
