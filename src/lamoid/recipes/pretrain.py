"""`lamoid pretrain`: a folder of text -> a model that writes; or an encoder, or a Transformer from pairs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamoid.errors import UsageError
from lamoid.recipes.recipe import say
from lamoid.recipes.settings import PretrainSettings

if TYPE_CHECKING:
    from lamoid.recipes.ready import Training


@dataclass(frozen=True)
class Recipe(PretrainSettings):
    """Train a Llama on raw text in any script. What is not given follows from the text and the number of cores."""


def run(recipe: Recipe) -> int:
    """Prepare the text, fill in what was not given, train, and say where the model lies."""
    from lamoid.recipes.fit import fit_in_directory
    from lamoid.recipes.load import keep_apart

    if not recipe.data or not recipe.out:
        raise UsageError("--data and --out are needed, such as: lamoid pretrain --data my_folder/ --out runs/mine")
    if recipe.init:
        keep_apart(recipe.init, recipe.out)
    return fit_in_directory(recipe, ready)


def ready(recipe: PretrainSettings) -> "Training":
    """The run of these settings, up to its first step: text prepared, settings filled in, model made."""
    from lamoid.recipes import mlm, translate
    from lamoid.recipes.choose import build, choose, kind_of
    from lamoid.recipes.continued import begin, compare, grown
    from lamoid.recipes.load import set_threads
    from lamoid.recipes.ready import ready_on_text

    set_threads(recipe.threads)
    if (kind := kind_of(recipe)) != "decoder":
        return (mlm if kind == "encoder" else translate).ready(recipe, say)
    initial = begin(recipe)
    s, text, config = choose(recipe, initial, say)
    model = grown(initial, text) or build(config).initialise(s.seed)
    gain = (lambda: compare(s, text)) if s.init else None
    return ready_on_text(s, model, text, hint=f"lamoid generate {s.out} 'The '", compare=gain)
