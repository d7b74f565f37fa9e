"""`lamoid inspect`: what a model makes of a text, and its parts, as pictures on one page; or what it costs."""

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from lamoid.errors import DataError, UsageError
from lamoid.recipes.recipe import option, say


@dataclass(frozen=True)
class Recipe:
    """Write a page about the inside of a model that reads a text: attention, norms, logits of each layer, positions, cache.

    The page needs no network and no script; the text has at most 128 tokens. --cost prints what the model costs instead.
    """

    model: str = option(
        "", "a model directory, a GGUF file, or a fetched model such as smollm2 or minilm", positional=True
    )
    text: str = option("", "the text that the model reads", positional=True)
    out: str = option("", "the page to write, such as page.html")
    cost: bool = option(False, "print the table of costs; no text is needed, and no weights are read")
    tokens: int | None = option(None, "with --cost: how long the text is (default: 1024, or what the model takes)")
    threads: int | None = option(None, "cores to compute on (default: all)")
    json: bool = option(
        False, "print one JSON object: tokens, figures, lengths, the logit lens, what comes next; or the costs"
    )


def run(recipe: Recipe) -> int:
    """Trace the text, draw what came by, write the page."""
    if recipe.cost:
        return _print_cost(recipe)
    if not recipe.model or not recipe.text or not (recipe.out or recipe.json):
        raise UsageError(
            'a model, a text and --out are needed, such as: lamoid inspect smollm2 "Once upon a time" --out page.html'
        )
    import torch

    from lamoid.checkpoints.store import atomic_file
    from lamoid.inspect.model_page import look_inside, page, sections, summary
    from lamoid.recipes.load import load, set_threads

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


def _print_cost(recipe: Recipe) -> int:
    from lamoid.inspect.cost import cost_rows
    from lamoid.recipes.load import load_config

    if not recipe.model:
        raise UsageError("a model is needed, such as: lamoid inspect smollm2 --cost")
    config = load_config(recipe.model)
    tokens = min(1024, config.max_seq_len) if recipe.tokens is None else recipe.tokens
    if not 1 <= tokens <= config.max_seq_len:
        raise UsageError(f"tokens is {tokens}; this model takes 1 to {config.max_seq_len}")
    rows = cost_rows(config, tokens=tokens)
    if recipe.json:
        print(json.dumps([row._asdict() for row in rows]))
        return 0
    for section, lines in groupby(rows, key=lambda row: row.section):
        print(section)
        for row in lines:
            value = f"{row.value:,}" if isinstance(row.value, int) else f"{row.value:.4g}"
            print(f"  {row.name:<34}{value:>22} {row.unit}")
    return 0
