"""`lamoid lab report`: all experiments, and one page with their verdicts and pictures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamoid.recipes.lab.run_experiment import TRIAL_FOLDER
from lamoid.recipes.recipe import option, say

PAGE_FILE, RESULTS_FILE, SUMMARY_FILE = "report.html", "report.json", "summary.json"
_SUMMARY = ("name", "verdict", "reason", "checks", "settings", "machine", "date", "seconds")


@dataclass(frozen=True)
class Recipe:
    """Run every experiment that is not done yet, and write the page. The same command goes on where it was stopped."""

    out: str = option("runs/lab", "the folder of results; what is there is kept")
    quick: bool = option(False, "only the experiments that train nothing")
    threads: int | None = option(None, "cores to compute on (default: all)")
    trial: bool = option(
        False, f"tiny budgets, to see that it works: no verdicts; all goes to {TRIAL_FOLDER}/ of --out"
    )
    json: bool = option(False, f"print the results, which are also in {RESULTS_FILE} of --out, as one JSON object")


def run(recipe: Recipe) -> int:
    """Run them in order, each result safe on disk before the next one begins; then write the page."""
    from lamoid.checkpoints.store import atomic_file, write_json
    from lamoid.recipes.lab.experiments import EXPERIMENTS, find
    from lamoid.recipes.lab.page import html_page
    from lamoid.recipes.lab.records import machine, perform
    from lamoid.recipes.load import set_threads

    set_threads(recipe.threads)
    out = Path(recipe.out) / TRIAL_FOLDER if recipe.trial else Path(recipe.out)
    wanted = [e for e in map(find, EXPERIMENTS) if not (recipe.quick and e.trains)]
    results = list[dict[str, Any]]()
    for number, experiment in enumerate(wanted, start=1):
        results.append(perform(experiment, out, trial=recipe.trial))
        say(f"[{number}/{len(wanted)}] {experiment.name}: {results[-1]['verdict']}")
    report = {"machine": machine(), "results": results}
    pictures = {figure: (out / figure).read_text(encoding="utf-8") for r in results for figure in r["figures"]}
    write_json(out / RESULTS_FILE, report)
    write_json(out / SUMMARY_FILE, {"results": [{key: result[key] for key in _SUMMARY} for result in results]})
    with atomic_file(out / PAGE_FILE) as temporary:
        temporary.write_text(html_page(results, pictures), encoding="utf-8")
    if recipe.json:
        print(json.dumps(report, ensure_ascii=False))
        return 0
    width = max(len(result["name"]) for result in results)
    for result in results:
        print(f"{result['name']:<{width}}  {result['verdict']}")
    print(f"the page: {out / PAGE_FILE}")
    return 0
