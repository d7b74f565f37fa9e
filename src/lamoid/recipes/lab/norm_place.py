"""Pre-LN and Post-LN with and without a warm-up, and a decoder without residual sums.

Claims: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", section 4: with Post-LN "the learning rate
warm-up stage is essential", with Pre-LN it can be left out. He et al. 2016: without residual sums deep stacks do not train.

A stack of eight layers either trains at a rate or stays at the loss of single tokens' frequencies, 4.33 nats. So each stack is
tried at rates that double, and what is compared, seed by seed, is the highest at which it trains.
"""

import math
import statistics
from typing import Any

from lamoid.inspect.charts import heat_map
from lamoid.recipes.lab.arms import gap, losses, run_arms, tabulate_arms
from lamoid.recipes.lab.budget import BUDGET, TRIAL
from lamoid.recipes.lab.experiment import (
    Check,
    Experiment,
    Facts,
    Keep,
    Settings,
    Table,
    decide,
    in_units,
)
from lamoid.recipes.lab.paired import differences

PRE, PRE_COLD, POST, POST_COLD = "Pre-LN", "Pre-LN, no warm-up", "Post-LN", "Post-LN, no warm-up"
BARE = "Pre-LN, no residual sums"
COMMON: dict[str, Any] = {"norm": "layernorm"}
STACKS = {
    PRE: COMMON,
    PRE_COLD: COMMON | {"warmup": 0},
    POST: COMMON | {"norm_place": "post"},
    POST_COLD: COMMON | {"norm_place": "post", "warmup": 0},
}
RATE = BUDGET["rate"]
TRAINS, COSTS, FACTOR = 4.0, 0.1, 1.5


def measure(s: Settings, keep: Keep) -> Facts:
    """Each stack at each rate; the one without residual sums at the budget's own."""
    arms = {at(stack, rate): changes | {"rate": rate} for stack, changes in STACKS.items() for rate in s["rates"]}
    return run_arms({**arms, BARE: COMMON | {"residual": "none"}}, s, keep) | {"rates": list(s["rates"])}


def at(stack: str, rate: float) -> str:
    """The name of a stack at a rate."""
    return f"{stack}, rate {rate:g}"


def highest(facts: Facts, stack: str) -> list[float]:
    """log₂ of the highest rate at which the held-out loss gets below TRAINS, one a seed; half the lowest where none does."""
    runs = [(rate, losses(facts, at(stack, rate))) for rate in facts["rates"]]
    none = min(facts["rates"]) / 2
    return [math.log2(max([none, *(rate for rate, run in runs if run[i] < TRAINS)])) for i in range(len(runs[0][1]))]


def judge(facts: Facts) -> list[Check]:
    """Highest rates in doublings, and what residual sums are worth."""
    high = {stack: highest(facts, stack) for stack in STACKS}
    post, ahead = differences(high[POST], high[POST_COLD]), differences(high[PRE_COLD], high[POST])
    bare = gap(facts, BARE, at(PRE, RATE))
    parts = (
        f"with a warm-up Post-LN trains at rates at least {FACTOR} times as high",
        "Pre-LN without a warm-up trains at rates as high as Post-LN with one",
        f"without residual sums at least {COSTS} nats are lost",
    )
    return [
        Check(parts[0], decide(post, math.log2(FACTOR)), in_units(post, "doublings", 2)),
        Check(parts[1], decide(ahead, 0.0), in_units(ahead, "doublings", 2)),
        Check(parts[2], decide(bare, COSTS), in_units(bare, "nats")),
    ]


def tabulate(facts: Facts) -> Table:
    """Every stack at every rate."""
    return tabulate_arms(facts, beside=at(PRE, RATE))


def draw(facts: Facts) -> list[str]:
    """A map of the mean final loss."""
    values = [[statistics.fmean(losses(facts, at(stack, rate))) for rate in facts["rates"]] for stack in STACKS]
    title, rates = "Held-out loss at the end (nats a token)", [f"{rate:g}" for rate in facts["rates"]]
    return [heat_map(title, "highest learning rate", "stack of eight layers", rates, list(STACKS), values)]


EXPERIMENT = Experiment(
    name="norm-place",
    claim="Post-LN needs a warm-up, Pre-LN does not; without residual sums a deep stack does not train.",
    question="At what rates does a stack train, by the norm's place, the warm-up and the residual sum?",
    budget="105 runs of 300 steps, 8 layers",
    rule=f"Paired over seeds, intervals 95 %, of the highest rate at which the held-out loss gets below {TRAINS}: a warm-up "
    f"raises Post-LN's at least {FACTOR} times, and Pre-LN's without one is no lower than Post-LN's with one. "
    f"Without residual sums Pre-LN's loss is higher by at least {COSTS}.",
    settings=BUDGET | {"layers": 8, "steps": 300, "rates": (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), "seeds": 5},
    trial=TRIAL | {"rates": (5e-3, 1e-2), "seeds": 2},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
    trains=True,
)
