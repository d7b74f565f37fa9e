"""The proof that a conversion changed nothing, or no more than its format must: source and result side by side.

Both are read from disk in blocks of rows, so that the proof needs a block and some activations, never a model. What is
compared: the configuration, the tokenizer, every weight against the bound of its format, the output of every layer on
the same input, and the logits and the loss of a fixed text.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from lamoid.checkpoints.source import DTYPES, Source
from lamoid.checkpoints.store import file_digest
from lamoid.errors import RunError
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.nn.positions import RoPE
from lamoid.tokenizers.gguf_vocabulary import PROBE

CERTIFICATE_FILE = "certificate.json"
MOST_TOKENS = 128
FAR_POSITION = 8192 + 1000
_HALF_ROUNDING, _HALF_STEP = 2.0**-11, 2.0**-25  # of a float16: relative, and absolute where it is subnormal
_BFLOAT16_ROUNDING = 2.0**-8
_FLOAT32_SLACK = 1e-6


def certify(source: Source, result: Source, on_weights: Callable[[int], object] = lambda n: None) -> dict[str, Any]:
    """Compare a result with the source it was made from; returns the certificate, ready for JSON.

    Raises RunError naming the first thing that differs. `on_weights` hears how many weights were compared.
    """
    _check_description(source, result)
    ids = probe_ids(source)
    return {
        "source": {"name": source.path.name, "formats": _count(source), "sha256": hashes(source.path)},
        "result": {"formats": _count(result), "sha256": hashes(result.path)},
        "tied_embeddings": source.config.tied_embeddings,
        "special_ids": _special_ids(source),
        "probe_tokens": len(ids),
        "probe_sha256": hashlib.sha256(np.asarray(ids, "<i8").tobytes()).hexdigest(),
        "chat_template_sha256": _text_digest(source.tokenizer.chat_template if source.tokenizer is not None else None),
        "weights": _compare_weights(source, result, on_weights),
        **compare_layers(source, result, ids),
    }


def rounding_bound(weights: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """The largest |w′ − w| that a format allows for each weight, where w′ is what it stores for w.

        F32   0
        F16   2⁻¹¹ |w| + 2⁻²⁵                                  half a unit in the last place; subnormals have a fixed one
        BF16  2⁻⁸ |w|
        Q8_0  d / 2 + 127 ε(d),           d = max |w| / 127    half a step, and 127 times the rounding of d to float16
        Q4_0  d + 8 ε(d),                 d = max |w| / 8      a whole step: q = w/d + 8 ends at 15, and may be 16
        Q4_1  d / 2 + 15 ε(d) + ε(m),     d = (max w − min w) / 15,  m = min w

    with ε(x) = 2⁻¹¹ |x| + 2⁻²⁵, and maxima over the 32 weights of a block, plus 10⁻⁶ of the largest for float32.
    """
    if kind == "F32":
        return np.zeros_like(weights)
    if kind == "F16":
        return _half_error(weights)
    if kind == "BF16":
        return np.abs(weights) * np.float32(_BFLOAT16_ROUNDING)
    blocks = weights.reshape(-1, 32)
    largest, low = np.abs(blocks).max(axis=1), blocks.min(axis=1)
    if kind == "Q8_0":
        bound = largest / 254 + 127 * _half_error(largest / 127)
    elif kind == "Q4_0":
        bound = largest / 8 + 8 * _half_error(largest / 8)
    else:
        step = (blocks.max(axis=1) - low) / 15
        bound = step / 2 + 15 * _half_error(step) + _half_error(low)
    return np.repeat(bound + _FLOAT32_SLACK * largest, 32).reshape(weights.shape).astype(np.float32)


@torch.inference_mode()
def compare_layers(source: Source, result: Source, ids: list[int]) -> dict[str, Any]:
    """The largest differences, near and far, of each layer's output on the same input, of the logits; and both losses.

    Two rows of the same ids: one at positions 0, 1, …, the other with its second half beyond FAR_POSITION, where a
    wrong base or scaling of RoPE shows. Each block of the result gets the source's input, so that differences do not
    add up; the logits come at the end of each model's own chain. Raises RunError if an output is not finite, or if it
    differs although every weight is equal.
    """
    positions = torch.arange(len(ids)).repeat(2, 1)
    positions[1, len(ids) // 2 :] += FAR_POSITION
    exact = all(_is_exact(source.formats[name], result.formats[name]) for name in source.shapes)
    first, second = Streamed(source), Streamed(result)
    tokens = torch.tensor([ids, ids])
    x, own = first.embed(tokens), second.embed(tokens)
    differences = {"embedding": _by_row(x - own)}
    for layer in range(source.config.n_layers):
        expected = first.block(layer, x, positions)
        got = second.block(layer, x, positions)
        own = got if exact else second.block(layer, own, positions)
        differences[f"layer {layer}"] = _by_row(expected - got)
        x = expected
    logits = _compare_logits(first, second, x, own, tokens)
    differences["logits"] = logits.pop("largest_difference")
    wrong = next((where for where, value in differences.items() if not math.isfinite(sum(value))), None)
    if wrong is not None:
        raise RunError(f"the certificate failed: {wrong} is not finite, in the source or in the result")
    worst = max(differences, key=lambda where: max(differences[where]))
    if exact and max(differences[worst]) > 0:
        raise RunError(f"the certificate failed: {worst} differs by {max(differences[worst]):g}, allowed is 0")
    return {"exact": exact, "positions": [0, int(positions.max())], "layers": differences, **logits}


def probe_ids(source: Source) -> list[int]:
    """The ids of a fixed text in many scripts, at most MOST_TOKENS; without a tokenizer, ids spread over the vocabulary."""
    if source.tokenizer is None:
        return [i * 7919 % source.config.vocab_size for i in range(MOST_TOKENS)]
    return source.tokenizer.encode(PROBE)[:MOST_TOKENS]


def hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of each file of a directory, by name."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    return {file.name: file_digest(file) for file in files}


class Streamed:
    """A Llama that runs layer by layer while its matrices stay on disk."""

    def __init__(self, source: Source) -> None:
        self.source = source
        with torch.device("meta"):
            self.model = Llama(source.config)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, _StreamedLinear(source, name, module.bias is not None))
            elif name.rpartition(".")[2].endswith("norm"):
                module.weight = nn.Parameter(_whole(source, f"{name}.weight"), requires_grad=False)

    def embed(self, ids: Tensor) -> Float[Tensor, "B T D"]:
        return self.source.read("embedding.weight", ids.flatten().numpy()).float().unflatten(0, ids.shape)

    def block(self, layer: int, x: Float[Tensor, "B T D"], positions: Tensor) -> Float[Tensor, "B T D"]:
        return self.model.layers[layer](x, self.model.rope(positions), None, None, layer, False)

    def logits(self, x: Float[Tensor, "B T D"]) -> Iterator[Float[Tensor, "B T part"]]:
        """The logits, a run of ids at a time."""
        h = self.model.norm(x)
        name = "embedding.weight" if self.source.config.tied_embeddings else "lm_head.weight"
        for _, block in self.source.blocks(name):
            yield F.linear(h, block.float())


class _StreamedLinear(nn.Module):
    """x Wᵀ + b with W read from disk, some rows at a time."""

    def __init__(self, source: Source, name: str, has_bias: bool) -> None:
        super().__init__()
        self.source, self.weight_name = source, f"{name}.weight"
        self.bias = _whole(source, f"{name}.bias") if has_bias else None

    def forward(self, x: Float[Tensor, "*rest in"]) -> Float[Tensor, "*rest out"]:
        parts = [F.linear(x, block.float()) for _, block in self.source.blocks(self.weight_name)]
        y = torch.cat(parts, dim=-1)
        return y if self.bias is None else y + self.bias


def _compare_logits(first: Streamed, second: Streamed, x: Tensor, own: Tensor, ids: Tensor) -> dict[str, Any]:
    """Difference, loss and most likely token of both, over runs of the vocabulary: never all logits at once."""
    streams = (first.logits(x), second.logits(own))
    sums = [torch.full(ids.shape, -math.inf) for _ in streams]
    best = [(torch.full(ids.shape, -math.inf), torch.zeros_like(ids)) for _ in streams]
    chosen = [torch.zeros(ids.shape) for _ in streams]
    targets = ids.roll(-1, dims=1)
    difference, start = [0.0, 0.0], 0
    for parts in zip(*streams, strict=True):
        difference = [max(pair) for pair in zip(difference, _by_row(parts[0] - parts[1]), strict=True)]
        is_here = (targets >= start) & (targets < start + parts[0].shape[-1])
        for i, part in enumerate(parts):
            sums[i] = torch.logaddexp(sums[i], part.logsumexp(dim=-1))
            value, index = part.max(dim=-1)
            better = value > best[i][0]
            best[i] = (torch.where(better, value, best[i][0]), torch.where(better, index + start, best[i][1]))
            here = part.gather(-1, (targets - start).clamp(0, part.shape[-1] - 1)[..., None])[..., 0]
            chosen[i] = torch.where(is_here, here, chosen[i])
        start += parts[0].shape[-1]
    losses = [float((s - c)[0, :-1].mean()) for s, c in zip(sums, chosen, strict=True)]
    return {
        "largest_difference": difference,
        "same_most_likely_token": float((best[0][1] == best[1][1])[0].double().mean()),
        "loss": dict(zip(("source", "result"), losses, strict=True)),
        "perplexity": {"source": math.exp(min(losses[0], 700)), "result": math.exp(min(losses[1], 700))},
    }


def _compare_weights(source: Source, result: Source, on_weights: Callable[[int], object]) -> dict[str, Any]:
    """Every weight within the bound of its format. Raises RunError naming the tensor and the worst weight."""
    largest, share, where = 0.0, 0.0, ""
    for name in source.shapes:
        kind = "F32" if _is_exact(source.formats[name], result.formats[name]) else result.formats[name]
        for (_, a), (_, b) in zip(source.blocks(name), result.blocks(name), strict=True):
            weights = a.float().numpy()
            with np.errstate(invalid="ignore"):  # infinite weights are refused below
                difference = np.abs(b.float().numpy() - weights)
            bound = rounding_bound(weights, kind)
            if not (difference <= bound).all():
                worst = float((difference - bound).max())
                raise RunError(f"the certificate failed: {name} is {worst:g} beyond what {result.formats[name]} allows")
            if difference.max() > largest:
                largest, where = float(difference.max()), name
            share = max(share, float(np.divide(difference, bound, out=np.zeros_like(bound), where=bound > 0).max()))
            on_weights(a.numel())
    return {"largest_difference": largest, "where": where, "largest_share_of_bound": share}


def _is_exact(before: str, after: str) -> bool:
    """Whether a format can hold whatever another one can."""
    return after == "F32" or (before == after and after in DTYPES)


def _check_description(source: Source, result: Source) -> None:
    ours, theirs = (dataclasses.asdict(s.config) for s in (source, result))
    for field in sorted(ours.keys() - {"init_std"}):  # of no use to a trained model, and GGUF and Meta cannot say it
        same = (
            _rotate_equally(source.config, result.config) if field == "rope_scaling" else ours[field] == theirs[field]
        )
        if not same:
            raise RunError(f"the certificate failed: {field} is {theirs[field]!r}, in the source {ours[field]!r}")
    if _special_ids(source) != _special_ids(result):
        raise RunError(f"the certificate failed: special ids are {_special_ids(result)}, not {_special_ids(source)}")
    if source.tokenizer is None:
        return
    if result.tokenizer is None or source.tokenizer.encode(PROBE) != result.tokenizer.encode(PROBE):
        raise RunError("the certificate failed: the tokenizer gives other ids than the source's")
    if source.tokenizer.chat_template != result.tokenizer.chat_template:
        raise RunError("the certificate failed: the chat template is another one than the source's")


def _rotate_equally(ours: LlamaConfig, theirs: LlamaConfig) -> bool:
    """Whether RoPE does the same near and far; several parameters of a scaling can mean the same."""
    positions = torch.tensor([[0, 1, 1000, FAR_POSITION, 131_071]])
    turns = [RoPE(c.head_dim, c.rope_base, c.rope_scaling)(positions) for c in (ours, theirs)]
    return all(torch.equal(a, b) for a, b in zip(*turns, strict=True))


def _special_ids(source: Source) -> dict[str, int | None]:
    if source.tokenizer is None:
        return {}
    return {role: source.tokenizer.special_id(role) for role in sorted(source.tokenizer.specials)}


def _count(source: Source) -> dict[str, int]:
    kinds = list(source.formats.values())
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _whole(source: Source, name: str) -> Tensor:
    return source.read(name, np.arange(source.shapes[name][0])).float()


def _by_row(difference: Float[Tensor, "2 T n"]) -> list[float]:
    """The largest amount at near positions, and at far ones."""
    return [float(largest) for largest in difference.abs().amax(dim=(1, 2))]


def _text_digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _half_error(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return (np.abs(x) * _HALF_ROUNDING + _HALF_STEP).astype(np.float32)
