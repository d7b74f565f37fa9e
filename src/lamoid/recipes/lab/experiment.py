"""What an experiment is: plain data and functions, with the rule of its verdict written down before it is run."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lamoid.recipes.lab.paired import Effect

Verdict = Literal["holds", "does not hold here", "undecided"]
Settings = Mapping[str, Any]
Facts = dict[str, Any]
"""What was measured, as JSON can hold it. With the key `missing`, why it could not be measured."""
Keep = Callable[[str, Settings, Callable[[], Any]], Any]
"""keep(what, settings, measure) is what `measure()` gave for these settings before on this machine, or gives now."""


@dataclass(frozen=True)
class Check:
    """One part of a claim, what came of it, and the numbers that say so."""

    part: str
    verdict: Verdict
    numbers: str


@dataclass(frozen=True)
class Table:
    """Columns with their units, and rows of texts and numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int]]


@dataclass(frozen=True)
class Experiment:
    """The docstring of its file names the source of the claim. `settings` are the whole budget and decide the result.

    `trial` replaces settings by ones that are so small that they only show that the machinery works; no verdict comes
    of it. `measure(settings, keep)` may keep its parts, so that an interrupted run goes on. All that follows (`judge`,
    `tabulate`, `draw`, the latter as SVG) is made of the facts alone.
    """

    name: str
    claim: str
    question: str
    budget: str
    rule: str
    settings: Settings
    trial: Settings
    measure: Callable[[Settings, Keep], Facts]
    judge: Callable[[Facts], list[Check]]
    tabulate: Callable[[Facts], Table]
    draw: Callable[[Facts], list[str]]
    trains: bool = False

    @property
    def about(self) -> str:
        """The docstring of its file."""
        return inspect.getdoc(inspect.getmodule(self.judge)) or ""


def decide(seen: Effect, at_least: float) -> Verdict:
    """holds: the whole interval lies at or above the bound; does not hold here: below it; undecided: the bound is inside."""
    if seen.low >= at_least:
        return "holds"
    return "does not hold here" if seen.high < at_least else "undecided"


def decide_at_most(seen: Effect, most: float) -> Verdict:
    """holds: the whole interval lies at or below the bound; does not hold here: above it; undecided: the bound is inside."""
    if seen.high <= most:
        return "holds"
    return "does not hold here" if seen.low > most else "undecided"


def decide_exactly(is_so: bool) -> Verdict:
    """For what is computed and not sampled."""
    return "holds" if is_so else "does not hold here"


def together(checks: Sequence[Check]) -> Verdict:
    """A claim holds when all of its parts do, and fails with the first of them that fails."""
    verdicts = {check.verdict for check in checks}
    if "does not hold here" in verdicts:
        return "does not hold here"
    return "holds" if verdicts == {"holds"} else "undecided"


def percent(*logarithms: float) -> tuple[float, ...]:
    """Logarithms of ratios as changes in percent."""
    return tuple(100 * math.expm1(min(value, 50.0)) for value in logarithms)


def in_percent(seen: Effect) -> str:
    """An effect on the logarithm of a ratio as a change in percent, with its interval and what could have been seen."""
    mean, low, high, smallest = percent(seen.mean, seen.low, seen.high, seen.smallest)
    return f"{mean:+.1f} % ({low:+.1f} to {high:+.1f}, {seen.n_pairs} pairs; smallest to be seen {smallest:.1f} %)"


def in_units(seen: Effect, unit: str, digits: int = 3) -> str:
    """An effect with its interval and what could have been seen."""
    mean, low, high = (f"{value:+.{digits}f}" for value in (seen.mean, seen.low, seen.high))
    return f"{mean} {unit} ({low} to {high}, {seen.n_pairs} pairs; smallest to be seen {seen.smallest:.{digits}f})"
