"""`lamoid pretrain`: a folder of text -> a model that writes; or an encoder, or a Transformer from pairs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamoid.errors import UsageError
from lamoid.recipes.recipe import say
from lamoid.recipes.settings import PretrainSettings

if TYPE_CHECKING:
    from lamoid.recipes.ready import Training

EVAL_BYTES = 50_000


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
    import torch

    from lamoid.data.packed import PackedRows
    from lamoid.recipes import mlm, translate
    from lamoid.recipes.choose import build, choose, kind_of
    from lamoid.recipes.complete import sample
    from lamoid.recipes.continued import begin, compare, grown
    from lamoid.recipes.evaluation import on_text
    from lamoid.recipes.load import check_device, set_threads
    from lamoid.recipes.ready import Training
    from lamoid.recipes.resume import identity, whole_model
    from lamoid.training.objectives import next_token

    set_threads(recipe.threads)
    if (kind := kind_of(recipe)) != "decoder":
        return (mlm if kind == "encoder" else translate).ready(recipe, say)
    initial = begin(recipe)
    s, text, config = choose(recipe, initial, say)
    assert s.context and s.batch_rows and s.max_steps
    model = grown(initial, text) or build(config).initialise(s.seed)
    del initial  # with --grow-vocab another model
    model.gradient_checkpointing = s.gradient_checkpointing
    model.to(dtype=getattr(torch, s.dtype), device=check_device(s.device))
    return Training(
        s,
        model,
        whole_model(model, text.tokenizer),
        PackedRows(text.tokens, s.context, s.batch_rows, s.seed),
        next_token,
        on_text(model, *text.heldout_documents(EVAL_BYTES), s.context),
        lambda: sample(model, text.tokenizer, s.prompt),
        identity(s, text.key, text.tokenizer),
        n_epochs=s.max_steps * s.context * s.batch_rows * s.accumulate / len(text.tokens),
        hint=f"lamoid generate {s.out} 'The '",
        compare=(lambda: compare(s, text)) if s.init else None,
    )
