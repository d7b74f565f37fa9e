"""`lamoid get`: fetch a named model once; afterwards its name stands wherever a model directory may."""

from dataclasses import dataclass

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option, say


@dataclass(frozen=True)
class Recipe:
    """Fetch a model into the user's cache, checked and whole. The same command after an interruption goes on."""

    name: str = option("", "smollm2, minilm, or hf:ORG/NAME from the Hugging Face Hub", positional=True)


def run(recipe: Recipe) -> int:
    """Fetch, and print where the model lies."""
    from lamoid.recipes.catalogue import known_names
    from lamoid.recipes.fetch import fetch

    if not recipe.name:
        raise UsageError(f"a name is needed, such as: lamoid get smollm2; known are {known_names()}")
    print(fetch(recipe.name, say))
    return 0
