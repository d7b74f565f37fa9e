"""`lamoid bench`: how fast the native engine runs a model here, beside what memory allows."""

import json
from dataclasses import asdict, dataclass

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option


@dataclass(frozen=True)
class Recipe:
    """Measure the native engine: tokens per second, bytes read for each, and the share of the memory's speed."""

    model: str = option("", "a model directory, a .gguf file, or the name of a fetched model", positional=True)
    prompt_tokens: int = option(256, "tokens of the prompt")
    new_tokens: int = option(64, "tokens that are decoded after it")
    rounds: int = option(5, "times that it is measured; the median counts")
    threads: int | None = option(None, "cores to compute on (default: all)")
    json: bool = option(False, "print one JSON object")


def run(recipe: Recipe) -> int:
    """Load, measure, print."""
    from lamoid.inference.speed import measure_speed
    from lamoid.recipes.engines import load_engine

    if not recipe.model:
        raise UsageError("a model is needed, such as: lamoid bench smollm2")
    for name in ("prompt_tokens", "new_tokens", "rounds"):
        if getattr(recipe, name) < 1:
            raise UsageError(f"{name} is {getattr(recipe, name)}; it must be at least 1")
    decoder, _ = load_engine(recipe.model, threads=recipe.threads)
    if recipe.prompt_tokens + recipe.new_tokens > decoder.max_seq_len:
        raise UsageError(
            f"{recipe.prompt_tokens} prompt tokens + {recipe.new_tokens} new tokens exceed the context of "
            f"{decoder.max_seq_len}; take fewer"
        )
    speed = measure_speed(decoder, recipe.prompt_tokens, recipe.new_tokens, recipe.rounds)
    if recipe.json:
        more = {"decode_bytes_per_s": speed.decode_bytes_per_s, "share": speed.share}
        team = decoder.model.team
        print(json.dumps(asdict(speed) | more | {"threads": team.n_threads, "kernels": team.path}))
        return 0
    print(f"prefill {speed.prefill_tokens_per_s:10.1f} tok/s ({recipe.prompt_tokens} tokens)")
    print(f"decode  {speed.decode_tokens_per_s:10.1f} tok/s ({recipe.new_tokens} tokens, one sequence)")
    print(
        f"{speed.bytes_per_token / 1e6:.1f} MB a token: {speed.decode_bytes_per_s / 1e9:.1f} of the "
        f"{speed.limit_bytes_per_s / 1e9:.1f} GB/s that {decoder.model.team.n_threads} threads read here ({speed.share:.0%})"
    )
    return 0
