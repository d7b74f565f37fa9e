"""Several small models over the same seeds, beside one of them: the seeds are the pairs."""

import statistics
from collections.abc import Mapping
from typing import Any

from lamoid.inspect.charts import Point, bar_chart, line_chart
from lamoid.recipes.lab.experiment import Facts, Keep, Settings, Table
from lamoid.recipes.lab.paired import Effect, differences
from lamoid.recipes.lab.small_models import trained

Arms = Mapping[str, Mapping[str, Any]]
"""Name -> what differs from the budget and from the variant's defaults."""


def run_arms(arms: Arms, s: Settings, keep: Keep, lengths: tuple[int, ...] = ()) -> Facts:
    """The runs of each arm, seed by seed; all arms of a seed come before the next one, so that a stopped report compares."""
    runs: dict[str, list[Any]] = {name: [] for name in arms}
    for seed in range(s["seeds"]):
        for name, changes in arms.items():
            runs[name].append(trained(keep, s, changes, seed, lengths))
    return {"runs": runs}


def losses(facts: Facts, arm: str) -> list[float]:
    """Held-out losses, one a seed."""
    return [run["loss"] for run in facts["runs"][arm]]


def gap(facts: Facts, arm: str, beside: str) -> Effect:
    """How much higher the first one's loss is."""
    return differences(losses(facts, arm), losses(facts, beside))


def tabulate_arms(facts: Facts, beside: str) -> Table:
    """Means over the seeds, and the difference to one arm with its interval."""
    rows = []
    for name, runs in facts["runs"].items():
        apart = gap(facts, name, beside)
        told = "" if name == beside else f"{apart.mean:+.4f} ({apart.low:+.4f} to {apart.high:+.4f})"
        lost = sum(run["diverged"] for run in runs)
        millions = f"{runs[0]['parameters'] / 1e6:.3f}"
        step = f"{1e3 * statistics.median(run['step_s'] for run in runs):.0f}"
        rows.append([name, f"{statistics.fmean(losses(facts, name)):.4f}", told, millions, step, lost])
    columns = (
        "",
        "held-out loss (nats a token)",
        f"beside {beside} (95 %)",
        "parameters (M)",
        "step (CPU ms)",
        "diverged",
    )
    return Table(columns, rows)


def draw_arms(facts: Facts, beside: str, title: str) -> list[str]:
    """Differences of the held-out loss with their intervals, and the training curves, means over the seeds."""
    groups: dict[str, dict[str, Point]] = {}
    for name in facts["runs"]:
        if name != beside:
            apart = gap(facts, name, beside)
            groups[name] = {"difference": (apart.mean, *_finite(apart))}
    curves: dict[str, list[Point]] = {}
    for name, runs in facts["runs"].items():
        steps = [step for step, _ in min((run["curve"] for run in runs), key=len)]
        means = [statistics.fmean(run["curve"][i][1] for run in runs) for i in range(len(steps))]
        curves[name] = list(zip(steps, means, strict=True))
    curves = {name: curve for name, curve in curves.items() if curve}
    return [
        bar_chart(title, f"held-out loss beside {beside} (nats a token), 95 % intervals", groups),
        line_chart(f"{title}: while training", "step", "training loss (nats a token)", curves),
    ]


def _finite(apart: Effect) -> Point:
    return (apart.low, apart.high) if apart.n_pairs > 1 else (apart.mean, apart.mean)
