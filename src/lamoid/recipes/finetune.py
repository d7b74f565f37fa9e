"""`lamoid finetune`: a model that exists and examples of what it should do -> one that does it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamoid.errors import UsageError
from lamoid.recipes.recipe import say
from lamoid.recipes.settings import FinetuneSettings

if TYPE_CHECKING:
    from lamoid.recipes.ready import Training


@dataclass(frozen=True)
class Recipe(FinetuneSettings):
    """Teach a model to answer as in these conversations: all its weights, adapters, LoRA, or LoRA on a 4-bit base."""


def run(recipe: Recipe) -> int:
    """Read the data, adapt the model, fill in what was not given, train, and say where the result lies."""
    from lamoid.recipes.fit import fit_in_directory
    from lamoid.recipes.load import keep_apart

    if not recipe.model or not recipe.data or not recipe.out:
        raise UsageError(
            "a model, --data and --out are needed, such as: lamoid finetune smollm2 --data chats.jsonl --out runs/mine"
        )
    keep_apart(recipe.model, recipe.out)
    return fit_in_directory(recipe, ready)


def ready(recipe: FinetuneSettings) -> "Training":
    """The run of these settings, up to its first step: data read, settings filled in, model adapted."""
    from lamoid.recipes import instruct, label

    return (instruct if recipe.task == "chat" else label).ready(recipe, say)
