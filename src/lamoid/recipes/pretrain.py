"""`lamoid pretrain`: a folder of text -> a model that writes; or an encoder, or a Transformer from pairs."""

from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import UsageError
from lamoid.recipes.recipe import say
from lamoid.recipes.settings import PretrainSettings

EVAL_BYTES = 50_000


@dataclass(frozen=True)
class Recipe(PretrainSettings):
    """Train a Llama on raw text in any script. What is not given follows from the text and the number of cores."""


def run(recipe: Recipe) -> int:
    """Prepare the text, fill in what was not given, train, and say where the model lies."""
    import torch

    from lamoid.checkpoints.run_directory import RunDirectory
    from lamoid.data.packed import PackedRows
    from lamoid.recipes.choose import build, choose, kind_of
    from lamoid.recipes.complete import sample
    from lamoid.recipes.continued import begin, compare, grown
    from lamoid.recipes.evaluation import on_text
    from lamoid.recipes.fit import fit
    from lamoid.recipes.load import check_device, keep_apart, set_threads
    from lamoid.recipes.resume import identity, whole_model, with_earlier
    from lamoid.training.distributed import processes
    from lamoid.training.objectives import next_token

    if not recipe.data or not recipe.out:
        raise UsageError("--data and --out are needed, such as: lamoid pretrain --data my_folder/ --out runs/mine")
    if recipe.grow_vocab < 0 or (recipe.grow_vocab and not recipe.init):
        raise UsageError(
            f"grow_vocab is {recipe.grow_vocab}; it must be 0, or tokens to add to the tokenizer of --init"
        )
    if recipe.init:
        keep_apart(recipe.init, recipe.out)
    set_threads(recipe.threads)
    with (
        processes(recipe.rank_timeout_s) as world,
        RunDirectory(Path(recipe.out), keep=recipe.keep, notify=say, leads=world.leads) as directory,
    ):
        given = with_earlier(recipe, directory.path)
        if (kind := kind_of(given)) == "encoder":
            from lamoid.recipes.mlm import pretrain_encoder

            return pretrain_encoder(given, directory)
        if kind == "transformer":
            from lamoid.recipes.translate import pretrain_transformer

            return pretrain_transformer(given, directory)
        initial = begin(given)
        chosen, text, config = choose(given, initial, say)
        assert chosen.context and chosen.batch_rows
        model = grown(initial, text) or build(config).initialise(chosen.seed)
        del initial  # with --grow-vocab another model, of which there need not be two
        model.gradient_checkpointing = chosen.gradient_checkpointing
        model.to(dtype=getattr(torch, chosen.dtype), device=check_device(chosen.device))
        documents, n_bytes = text.heldout_documents(EVAL_BYTES)
        code = fit(
            chosen,
            directory,
            model,
            whole_model(model, text.tokenizer),
            PackedRows(text.tokens, chosen.context, chosen.batch_rows, chosen.seed),
            next_token,
            evaluate=on_text(model, documents, n_bytes, chosen.context),
            sample=lambda: sample(model, text.tokenizer, chosen.prompt),
            identity=identity(chosen, text.key, text.tokenizer),
        )
    if chosen.init and world.leads and directory.steps()[-1:] == [chosen.max_steps]:
        compare(chosen, text)
    if code == 0 and world.leads:
        say(f"the best model is in {recipe.out}; try: lamoid generate {recipe.out} 'The '")
    return code
