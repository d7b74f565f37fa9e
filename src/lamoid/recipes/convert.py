"""`lamoid convert`: a model from one format to another, with the proof that nothing changed."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import UsageError
from lamoid.recipes.progress import progress
from lamoid.recipes.recipe import option, say


@dataclass(frozen=True)
class Recipe:
    """Convert a model: a Hugging Face directory, a GGUF file, or a directory in Meta's format, into another of them.

    The result is read again and compared with the source; a certificate lies beside it. If that fails, nothing does.
    """

    source: str = option("", "the model: a directory, a .gguf file, or a fetched model's name", positional=True)
    target: str = option("", "what to write; a name that ends in .gguf makes that", positional=True)
    to: str | None = option(None, "the format (default: from the target's name)", choices=("hf", "gguf", "meta"))
    dtype: str | None = option(
        None,
        "the format of the weights (default: the source's, f32 where it is quantized)",
        choices=("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"),
    )
    threads: int | None = option(None, "cores to compute on (default: all)")
    json: bool = option(False, "print the certificate as one JSON object")


def run(recipe: Recipe) -> int:
    """Open, write, compare, and say how much changed."""
    from lamoid.checkpoints.conversion import convert, open_model
    from lamoid.recipes.load import resolve, set_threads

    if not recipe.source or not recipe.target:
        raise UsageError("a source and a target are needed, such as: lamoid convert runs/mine mine.gguf --dtype q8_0")
    set_threads(recipe.threads)
    source, target = open_model(resolve(recipe.source)), Path(recipe.target).expanduser()
    n_weights = sum(math.prod(shape) for shape in source.shapes.values())
    with progress("converting", 2 * n_weights, "w") as bar:
        dtype = recipe.dtype.upper() if recipe.dtype else None
        proof = convert(source, target, kind=recipe.to, dtype=dtype, notify=say, on_weights=bar.update)
    if recipe.json:
        print(json.dumps(proof, ensure_ascii=False))
        return 0
    weights, perplexity = proof["weights"], proof["perplexity"]
    print(f"{target}: {n_weights:,} weights as {proof['dtype'].lower()}, read again and compared with the source")
    if weights["largest_difference"]:
        print(
            f"largest change of a weight {weights['largest_difference']:.3g} ({weights['where']}), "
            f"{weights['largest_share_of_bound']:.0%} of what the format allows"
        )
    print(
        f"largest change of a logit {proof['layers']['logits'][0]:.3g}; perplexity of a fixed text "
        f"{perplexity['source']:.4f} before, {perplexity['result']:.4f} after"
    )
    return 0
