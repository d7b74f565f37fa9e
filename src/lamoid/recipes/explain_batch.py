"""`lamoid explain-batch`: every token of a real batch, as trained, masked or padding, and whose document it is."""

import json
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option, say


@dataclass(frozen=True)
class Recipe:
    """Show a batch of a run, or of data that one could fine-tune a model on, and warn about what looks wrong in it."""

    run: str = option("", "directory of a run of pretrain or finetune", positional=True)
    data: list[str] = option([], "without a run: files, folders or globs of conversations, as finetune takes them")
    model: str = option("", "the model whose tokenizer and chat format they are for")
    template: str = option("", "llama-2, llama-3, or a .jinja file (default: the template that the model carries)")
    train_on: str = option("all", "which of a conversation's answers are trained", choices=("all", "last"))
    context: int | None = option(None, "tokens in a row (default: as finetune chooses)")
    long: str = option("cut", "what happens to a conversation that is longer than a row", choices=("cut", "drop"))
    batch_rows: int | None = option(None, "rows in a micro-batch (default: as finetune chooses)")
    heldout_share: float = option(0.05, "share of the conversations that is held out, at least one")
    seed: int = option(0, "decides the held-out conversations and the order of the data")
    skip_bad: bool = option(False, "count lines that cannot be read, and go on without them")
    step: int = option(1, "the step whose first micro-batch is shown")
    json: bool = option(False, "print one JSON object, with the id, text, state, document and position of every token")
    html: str = option("", "write a page of HTML into this file")


def run(recipe: Recipe) -> int:
    """Rebuild the data as the run did, take the step's batch, show it, and say what looks wrong."""
    from lamoid.checkpoints.store import atomic_file
    from lamoid.inspect.batch_picture import facts, legend, lines, page, summary
    from lamoid.inspect.batch_warnings import find_warnings
    from lamoid.recipes.batches import open_data, open_run
    from lamoid.recipes.settings import FinetuneSettings

    if bool(recipe.run) == bool(recipe.data) or bool(recipe.data) != bool(recipe.model):
        raise UsageError(
            "give a run, such as: lamoid explain-batch runs/mine, or data and a model, such as: "
            "lamoid explain-batch --data chats.jsonl --model smollm2"
        )
    if recipe.run:
        found = open_run(Path(recipe.run), say)
    else:
        names = {f.name for f in fields(FinetuneSettings)} & {f.name for f in fields(Recipe)}
        found = open_data(FinetuneSettings(**{name: getattr(recipe, name) for name in names}), say)
    position = found.position(recipe.step)
    view = found.view(position)
    warnings = find_warnings(view, found.tokenizer, found.encoder)
    title = f"Step {recipe.step:,}" + (f", micro-batch 1 of {found.accumulate}" if found.accumulate > 1 else "")
    if recipe.html:
        with atomic_file(Path(recipe.html)) as temporary:
            temporary.write_text(page(view, warnings, title), encoding="utf-8")
        say(f"written to {recipe.html}")
    if recipe.json:
        place = {"step": recipe.step, "epoch": position[0], "row_of_epoch": position[1]}
        print(json.dumps(place | facts(view, warnings), ensure_ascii=False))
    elif not recipe.html:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(f"{title}: {summary(view)}\n{legend(colour=colour)}")
        for line in lines(view, colour=colour):
            print(line)
    for warning in warnings:
        say(f"warning: {warning}")
    return 0
