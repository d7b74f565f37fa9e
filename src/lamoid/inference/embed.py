"""One vector for a text: an encoder's hidden states, pooled."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from lamoid.errors import DataError, UsageError
from lamoid.models.heads import Encoder, first_pool, mean_pool
from lamoid.tokenizers.tokenizer import Tokenizer, read_config

BATCH_TOKENS = 4096
MODULES_FILE, POOLING_FILE, LENGTH_FILE = "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"


@dataclass(frozen=True)
class Pooling:
    """How vectors are made: `mean` over the tokens or the `first` one, scaled to length 1 or not, of so many tokens."""

    kind: str = "mean"
    normalise: bool = False
    max_tokens: int | None = None


def read_pooling(directory: Path) -> Pooling:
    """What a sentence-transformers directory says; plain means of a directory that says nothing.

    Raises DataError for a pooling that is neither the mean nor the first token.
    """
    pooling, length = read_config(directory / POOLING_FILE), read_config(directory / LENGTH_FILE)
    chosen = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True]
    kinds = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
    if len(chosen) > 1 or any(name not in kinds for name in chosen):
        raise DataError(f"{directory / POOLING_FILE} says {', '.join(chosen)}; known are {' or '.join(kinds)}")
    most = length.get("max_seq_length")
    return Pooling(
        kind=kinds[chosen[0]] if chosen else "mean",
        normalise="sentence_transformers.models.Normalize" in _module_types(directory / MODULES_FILE),
        max_tokens=most if type(most) is int and most > 2 else None,
    )


@torch.inference_mode()
def embed(
    model: Encoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pooling: Pooling,
    *,
    on_texts: Callable[[int], object] = lambda n: None,
) -> Float[np.ndarray, "N D"]:
    """The vector of each text, in order, in fp32. Texts of like length are read together; longer ones than fit are cut.

    A cut text keeps its last token, which closes it (`[SEP]`). Raises UsageError where there is no text.
    """
    if not texts:
        raise UsageError("there is no text to embed; give at least one line")
    model.eval()
    config = model.config
    most = min(pooling.max_tokens or config.max_seq_len, config.max_seq_len)
    encoded = tokenizer.encode_many(texts, add_special_tokens=True)
    rows = [ids if len(ids) <= most else [*ids[: most - 1], ids[-1]] for ids in encoded]
    device = next(model.parameters()).device
    vectors = np.zeros((len(texts), config.d_model), dtype=np.float32)
    pool = mean_pool if pooling.kind == "mean" else first_pool
    for group in _groups([len(ids) for ids in rows]):
        longest = max(len(rows[i]) for i in group)
        ids = torch.tensor([rows[i] + [config.pad_id] * (longest - len(rows[i])) for i in group], device=device)
        lengths = torch.tensor([len(rows[i]) for i in group], device=device)
        mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
        pooled = pool(model(ids, mask).float(), mask)
        vectors[group] = (F.normalize(pooled, dim=-1) if pooling.normalise else pooled).cpu().numpy()
        on_texts(len(group))
    return vectors


def _groups(lengths: list[int]) -> list[list[int]]:
    """Numbers of texts, those of like length together, at most BATCH_TOKENS tokens with their padding."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= BATCH_TOKENS:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _module_types(file: Path) -> list[str]:
    if not file.is_file():
        return []
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
        return [str(module.get("type")) for module in modules]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is no list of modules: {error}") from error
