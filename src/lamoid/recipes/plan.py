"""`lamoid plan VERB …`: what a training would take, before it begins."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option, parse

if TYPE_CHECKING:
    from lamoid.recipes.ready import Training

PLANNED = {verb: f"lamoid.recipes.{verb}" for verb in ("pretrain", "finetune", "gqa")}
OWN_FLAGS, HELP = ("--json", "--calibrate", "--no-calibrate"), ("-h", "--help")


@dataclass(frozen=True)
class Recipe:
    """Put `plan` in front of a command: parameters, memory by kind, operations, time and disk of that very run.

    lamoid plan pretrain …    lamoid plan finetune …    lamoid plan gqa …

    Nothing is trained, and nothing is written into --out, which may be left out.
    """

    verb: str = option("", "pretrain, finetune or gqa, and then its own settings", positional=True)
    json: bool = option(False, "print one JSON object, in bytes, seconds and operations")
    calibrate: bool = option(True, "measure the time on a few steps of the run, at a rate of zero")


@dataclass(frozen=True)
class Plan:
    """The settings of the plan, and of the command behind it."""

    own: Recipe
    planned: Any


def read(words: Sequence[str], program: str) -> Plan:
    """The plan of these words. Raises UsageError for a verb that cannot be planned, and whatever the verb's settings raise."""
    verb = words[0] if words else ""
    if verb not in PLANNED:
        parse(Recipe, [word for word in words if word in HELP], program)
        raise UsageError(f"{verb!r} cannot be planned; wanted: lamoid plan {'|'.join(PLANNED)} and its settings")
    flags = [word for word in words if word in OWN_FLAGS]
    rest = [word for word in words[1:] if word not in OWN_FLAGS]
    planned = parse(importlib.import_module(PLANNED[verb]).Recipe, rest, f"{program} {verb}")
    return Plan(parse(Recipe, [verb, *flags], program), planned)


def run(plan: Plan) -> int:
    """Make the run ready, predict, try a few steps where they fit, and print."""
    from lamoid.recipes.forecast import changes, describe, facts, plan_ahead
    from lamoid.recipes.resume import with_earlier
    from lamoid.recipes.uptrain import ready_to_convert

    given = plan.planned
    if not given.data or not getattr(given, "model", ""):
        raise UsageError(f"wanted: lamoid plan {plan.own.verb} as it would be called, with its data")
    given = with_earlier(given, Path(given.out)) if given.out else given
    make = ready_to_convert if plan.own.verb == "gqa" else importlib.import_module(PLANNED[plan.own.verb]).ready
    training: Training = make(given)
    found = plan_ahead(training, calibrate=plan.own.calibrate)
    other = changes(training, found.memory)
    print(json.dumps(facts(found, other), ensure_ascii=False) if plan.own.json else describe(found, other))
    return 0
