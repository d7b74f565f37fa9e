"""`lamoid inspect`: what a model makes of a text, and its parts, as pictures on one page."""

import json
from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import DataError, UsageError
from lamoid.recipes.recipe import option, say


@dataclass(frozen=True)
class Recipe:
    """Write a page about the inside of a model that reads a text: attention, norms, logits of each layer, positions, cache.

    The page is one file that needs no network and no script. The text has at most 128 tokens.
    """

    model: str = option(
        "", "a model directory, a GGUF file, or a fetched model such as smollm2 or minilm", positional=True
    )
    text: str = option("", "the text that the model reads", positional=True)
    out: str = option("", "the page to write, a file that ends in .html")
    threads: int | None = option(None, "cores to compute on (default: all)")
    json: bool = option(False, "print one JSON object: tokens, lengths, the logit lens, what comes next, the pictures")


def run(recipe: Recipe) -> int:
    """Trace the text, draw what came by, write the page."""
    import torch

    from lamoid.checkpoints.store import atomic_file
    from lamoid.inspect.model_page import look_inside, page, sections, summary
    from lamoid.recipes.load import load, set_threads

    if not recipe.model or not recipe.text or not (recipe.out or recipe.json):
        raise UsageError(
            'a model, a text and --out are needed, such as: lamoid inspect smollm2 "Once upon a time" --out page.html'
        )
    set_threads(recipe.threads)
    model, tokenizer = load(recipe.model, dtype=torch.float32)
    if tokenizer is None:
        raise DataError(f"{recipe.model} has no tokenizer; put its tokenizer.json beside the model")
    inside = look_inside(model, tokenizer, Path(recipe.model).name, recipe.text)
    figures = sections(inside)
    if recipe.out:
        with atomic_file(Path(recipe.out)) as temporary:
            temporary.write_text(page(inside, figures), encoding="utf-8")
        say(f"written to {recipe.out}")
    if recipe.json:
        print(json.dumps(summary(inside, figures) | ({"out": recipe.out} if recipe.out else {}), ensure_ascii=False))
    return 0
