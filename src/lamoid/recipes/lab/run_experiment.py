"""`lamoid lab run`: one experiment, its table, its picture and its verdict."""

import json
from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option

TRIAL_FOLDER = "trial"


@dataclass(frozen=True)
class Recipe:
    """Run one experiment, or take what it gave before with the same settings on this machine."""

    name: str = option("", "the experiment; lamoid lab list shows them", positional=True)
    out: str = option("runs/lab", "the folder of results; what is there is kept")
    threads: int | None = option(None, "cores to compute on (default: all)")
    trial: bool = option(
        False, f"a tiny budget, to see that it works: no verdict; results go to {TRIAL_FOLDER}/ of --out"
    )
    json: bool = option(False, "print the result as one JSON object")


def run(recipe: Recipe) -> int:
    """Measure what is not there yet, judge, print."""
    if not recipe.name:
        raise UsageError("an experiment is needed, such as: lamoid lab run rope-relative (see lamoid lab list)")
    from lamoid.recipes.lab.experiments import find
    from lamoid.recipes.lab.page import as_text
    from lamoid.recipes.lab.records import perform
    from lamoid.recipes.load import set_threads

    experiment = find(recipe.name)
    set_threads(recipe.threads)
    out = Path(recipe.out) / TRIAL_FOLDER if recipe.trial else Path(recipe.out)
    result = perform(experiment, out, trial=recipe.trial)
    if recipe.json:
        print(json.dumps(result, ensure_ascii=False))
        return 0
    print(as_text(result))
    for figure in result["figures"]:
        print(f"figure: {out / figure}")
    return 0
