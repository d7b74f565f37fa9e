"""`lamoid predict`: what an encoder that was fine-tuned says about texts."""

import json
from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option


@dataclass(frozen=True)
class Recipe:
    """Classes, tags or answers, one line for each: of a file of texts, or for a span model of questions as JSON lines."""

    model: str = option("", "a directory that lamoid finetune --task made", positional=True)
    texts: str = option(
        "", "a text a line (pairs with a tab between); or JSON lines: question, context", positional=True
    )
    threads: int | None = option(None, "cores to compute on (default: all)")
    json: bool = option(False, "print a JSON object a line, with probabilities")


def run(recipe: Recipe) -> int:
    """Read the texts, let the model's head speak, print."""
    import torch

    from lamoid.models.heads import HeadedEncoder, SequenceHead, SpanHead, TokenHead
    from lamoid.recipes.load import load, set_threads
    from lamoid.recipes.predictions import answers, classes, line, tags

    if not recipe.model or not recipe.texts:
        raise UsageError("a model and a file of texts are needed, such as: lamoid predict runs/classifier texts.txt")
    set_threads(recipe.threads)
    model, tokenizer = load(recipe.model, dtype=torch.float32)
    ways = {SequenceHead: classes, TokenHead: tags, SpanHead: answers}
    if not isinstance(model, HeadedEncoder) or type(model.head) not in ways or tokenizer is None:
        raise UsageError(f"{recipe.model} has no head for classes, tags or spans; make one with lamoid finetune --task")
    for said in ways[type(model.head)](model, tokenizer, Path(recipe.texts)):
        print(json.dumps(said, ensure_ascii=False) if recipe.json else line(said), flush=True)
    return 0
