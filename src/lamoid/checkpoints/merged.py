"""An adapted model as the whole model that it amounts to, and how far the two are apart."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lamoid.adapt.lora import LoraLinear, merged_weight
from lamoid.adapt.nf4 import Nf4Linear
from lamoid.checkpoints.certificate import Streamed
from lamoid.checkpoints.source import Rows, Source
from lamoid.errors import RunError
from lamoid.models.llama import Llama
from lamoid.models.llama_config import parameter_shapes
from lamoid.tokenizers.tokenizer import Tokenizer

MOST_MEAN_KL_NATS = 1e-6
"""Where nothing is rounded but float32 itself; a merge beyond it is wrong, and refused.

Not the largest difference of a logit, which a few ill-conditioned positions decide: SmolLM2 with a LoRA that was trained
came to 4·10⁻⁵ of the largest logit at one of 128 positions, though in float64 it is 2·10⁻⁶. The mean KL was 3·10⁻¹⁰.
"""


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
    """How far a merged model's logits are from those of the adapted model itself, over the ids of a text.

    The difference, as it is and as a share of the largest logit; the mean KL divergence (nats) of the next token; how
    often both find the same token the most likely; the perplexity of both. Raises RunError where they differ although
    nothing was rounded (`exact`).
    """
    streamed, tokens, positions = Streamed(result), torch.tensor([ids]), torch.arange(len(ids))[None]
    x = streamed.embed(tokens)
    for layer in range(result.config.n_layers):
        x = streamed.block(layer, x, positions)
    merged = torch.cat(list(streamed.logits(x)), dim=-1)[0]
    adapted = model(tokens)[0].float()
    difference = float((merged - adapted).abs().max())
    p, q = adapted.double().log_softmax(dim=-1), merged.double().log_softmax(dim=-1)
    mean_kl = float((p.exp() * (p - q)).sum(dim=-1).mean())
    if not math.isfinite(mean_kl) or (exact and mean_kl > MOST_MEAN_KL_NATS):
        raise RunError(
            f"the certificate failed: the next tokens of the merged model differ by {mean_kl:.2g} nats (KL) from the "
            f"adapter's; {MOST_MEAN_KL_NATS:g} is allowed"
        )
    targets = torch.tensor(ids[1:])
    return {
        "drift": {
            "largest_logit_difference": difference,
            "relative": difference / float(adapted.abs().max()),
            "mean_kl_nats": mean_kl,
            "same_most_likely_token": float((merged.argmax(-1) == adapted.argmax(-1)).double().mean()),
            "perplexity": {
                "adapter": math.exp(min(float(F.nll_loss(p[:-1], targets)), 700)),
                "merged": math.exp(min(float(F.nll_loss(q[:-1], targets)), 700)),
            },
        }
    }
