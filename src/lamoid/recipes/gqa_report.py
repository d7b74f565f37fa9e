"""What fewer key/value heads gain and cost: bytes of the KV cache, decoding speed, held-out loss."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lamoid.adapt.gqa import cache_bytes_per_token
from lamoid.inference.decoder import TorchDecoder
from lamoid.models.llama import Llama

if TYPE_CHECKING:
    from lamoid.recipes.prepare import PreparedText

MOST_PROMPT_TOKENS, MOST_NEW_TOKENS, ROUNDS = 2048, 32, 5


def compare_decoding(before: Llama, after: Llama, text: "PreparedText") -> dict[str, Any]:
    """Of two models: bytes of the cache, for one position and for a whole context, and tokens decoded a second."""
    models = {"before": before, "after": after}
    per_token = {name: cache_bytes_per_token(model) for name, model in models.items()}
    context = before.config.max_seq_len
    prompt, n_new = text.tokens[:MOST_PROMPT_TOKENS].tolist(), MOST_NEW_TOKENS
    if len(prompt) + (ROUNDS + 1) * n_new > context:  # as much of both as fits
        n_new = max(min(context // 16, MOST_NEW_TOKENS), 1)
        prompt = prompt[: max(context - (ROUNDS + 1) * n_new, 1)]
    return {
        "kv_heads": {name: model.config.n_kv_heads for name, model in models.items()},
        "cache_bytes": {
            "per_token": per_token,
            "full_context": {name: context * n_bytes for name, n_bytes in per_token.items()},
            "context": context,
            "dtype": str(before.embedding.weight.dtype).removeprefix("torch."),
        },
        "decode_tokens_per_s": decoding_rates(models, prompt, n_new) | {"prompt_tokens": len(prompt)},
    }


def decoding_rates(
    models: Mapping[str, Llama], prompt: Sequence[int], n_new: int, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Tokens per second of decoding one sequence behind a prompt: median, lowest and highest of the rounds.

    In every round each model in turn decodes `n_new` more tokens; a first round does not count.
    """
    decoders = {name: TorchDecoder(model) for name, model in models.items()}
    for decoder in decoders.values():
        decoder.prefill([prompt])
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, decoder in decoders.items():
            began = time.perf_counter()
            for _ in range(n_new):
                decoder.step([prompt[-1]])
            rates[name].append(n_new / (time.perf_counter() - began))
    counted = {name: values[1:] for name, values in rates.items()}
    return {
        name: {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
        for name, values in counted.items()
    }


def describe(report: Mapping[str, Any]) -> str:
    """The report as a table for people."""
    heads, loss, cache, rates = (report[key] for key in ("kv_heads", "loss", "cache_bytes", "decode_tokens_per_s"))
    done = report["uptraining"]
    share = f", {done['alpha']:.1%} of the original tokens" if done["alpha"] else ""
    lines = [
        f"{heads['before']} -> {heads['after']} key/value heads, uptrained for {done['steps']:,} steps{share}",
        f"held-out loss {loss['before']:.4f}; for each way     converted               uptrained",
    ]
    for way, converted in loss["converted"].items():
        columns = [converted, *([loss["uptrained"][way]] if way in loss["uptrained"] else [])]
        cells = "".join(f"{value:14.4f} ({value / loss['before'] - 1:+.1%})" for value in columns)
        lines.append(f"  {way:<22}{cells}")
    for what, n_bytes in (("token", cache["per_token"]), (f"{cache['context']:,} tokens", cache["full_context"])):
        lines.append(f"KV cache per {what}: {n_bytes['before']:,} -> {n_bytes['after']:,} bytes ({cache['dtype']})")
    before, after = rates["before"]["median"], rates["after"]["median"]
    behind = f"behind {rates['prompt_tokens']:,} tokens"
    lines.append(f"decoding {behind}: {before:.1f} -> {after:.1f} tokens/s ({after / before:.2f} x)")
    return "\n".join(lines)
