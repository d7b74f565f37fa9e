"""`lamoid generate`: continue a prompt, or with a Transformer translate it."""

import json
import sys
import time
from dataclasses import asdict, dataclass

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option, say
from lamoid.recipes.settings import GenerationSettings

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class Recipe(GenerationSettings):
    """Continue a prompt, printing the text as it comes; with a Transformer print its target, found greedily or with a beam."""

    model: str = option("", "a model directory, a .gguf file, or the name of a fetched model", positional=True)
    prompt: str = option("", "the text to continue; - reads it from standard input", positional=True)
    max_new_tokens: int | None = option(
        None, "at most this many tokens (default: 128; Transformer: 50 more than the prompt has)"
    )
    beams: int = option(1, "Transformer: the most likely targets that are followed at a time; 1 is greedy")
    json: bool = option(False, "print one JSON object: text, ids, log_probabilities, finish_reason, …")


def run(recipe: Recipe) -> int:
    """Load, stream, and say how fast it was on standard error."""
    from lamoid.inference.generate import stream
    from lamoid.recipes.engines import open_decoder
    from lamoid.recipes.load import is_transformer

    if not recipe.model:
        raise UsageError('a model and a prompt are needed, such as: lamoid generate runs/mine "Once upon"')
    r = recipe
    prompt = sys.stdin.read() if r.prompt == "-" else r.prompt
    if is_transformer(r.model):
        from lamoid.recipes.translated import translate_prompt

        return translate_prompt(r, prompt)
    if r.beams != 1:
        raise UsageError(
            f"beams is {r.beams}; {r.model} is no Transformer, whose targets alone are searched with a beam"
        )
    n_new = DEFAULT_NEW_TOKENS if r.max_new_tokens is None else r.max_new_tokens
    settings = dict(sampling=r.sampling(), max_new_tokens=n_new, stop=r.stop, seed=r.seed)
    decoder, tokenizer = open_decoder(r.model, r.engine, r.threads, say, speculate=r.speculate)
    began, done = time.perf_counter(), None
    chunks = stream(decoder, tokenizer, [prompt], **settings)  # type: ignore[arg-type]
    if not r.json:
        print(prompt, end="", flush=True)
    for chunk in chunks:
        done = chunk.completion or done
        if not r.json:
            print(chunk.text, end="", flush=True)
    assert done is not None
    seconds = time.perf_counter() - began
    if r.json:
        print(json.dumps({"prompt": prompt, **asdict(done), "seconds": seconds}, ensure_ascii=False))
    else:
        print()
        if sys.stderr.isatty():
            print(f"{len(done.ids)} tokens, {len(done.ids) / seconds:.1f} tok/s", file=sys.stderr)
    return 0
