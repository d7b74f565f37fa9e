"""`lamoid finetune`: a model that exists and examples of what it should do -> one that does it."""

from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import UsageError
from lamoid.recipes.recipe import say
from lamoid.recipes.settings import FinetuneSettings


@dataclass(frozen=True)
class Recipe(FinetuneSettings):
    """Teach a model to answer as in these conversations: all its weights, adapters, LoRA, or LoRA on a 4-bit base."""


def run(recipe: Recipe) -> int:
    """Read the data, adapt the model, fill in what was not given, train, and say where the result lies."""
    from lamoid.checkpoints.run_directory import RunDirectory
    from lamoid.recipes.evaluation import on_answers
    from lamoid.recipes.fit import fit
    from lamoid.recipes.instruct import answer, choose, read_data, show_first
    from lamoid.recipes.load import check_device, keep_apart, load_with_tokenizer, model_directory
    from lamoid.recipes.methods import adapt, describe, form_of
    from lamoid.recipes.resume import identity, with_earlier
    from lamoid.training.distributed import processes
    from lamoid.training.objectives import next_token

    if not recipe.model or not recipe.data or not recipe.out:
        raise UsageError(
            "a model, --data and --out are needed, such as: lamoid finetune smollm2 --data chats.jsonl --out runs/mine"
        )
    keep_apart(recipe.model, recipe.out)
    with (
        processes(recipe.rank_timeout_s) as world,
        RunDirectory(Path(recipe.out), keep=recipe.keep, notify=say, leads=world.leads) as directory,
    ):
        if recipe.task != "chat":
            from lamoid.recipes.label import tune_encoder

            code = tune_encoder(with_earlier(recipe, directory.path), directory)
            say(f"the best model is in {recipe.out}; try: lamoid predict {recipe.out} texts.txt")
            return code
        given, origin = with_earlier(recipe, directory.path), model_directory(recipe.model).absolute()
        model, tokenizer = load_with_tokenizer(origin, recipe.threads)
        data = read_data(given, origin, tokenizer, model.config.max_seq_len, say)
        show_first(data, tokenizer, say)
        chosen = choose(given, data)
        adapt(model.to(check_device(chosen.device)), chosen)
        model.gradient_checkpointing = chosen.gradient_checkpointing
        say(f"method: {chosen.method}; {describe(model)}")
        say(
            f"schedule: {chosen.max_steps:,} steps; an epoch has {data.training.rows_per_epoch:,} rows of {chosen.context}"
        )
        code = fit(
            chosen,
            directory,
            model,
            form_of(chosen.method, model, tokenizer, origin),
            data.training,
            next_token,
            evaluate=on_answers(model, data.heldout),
            sample=lambda: answer(model, tokenizer, data),
            identity=identity(chosen, data.key, tokenizer),
        )
    if code == 0 and world.leads:
        say(f"the best model is in {recipe.out}; try: lamoid chat {recipe.out}")
    return code
