"""AdamW beside Adam with L2 in the gradient, over weight decay and learning rate.

Claim: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", figure 2: with the decay beside the adaptive step the
best settings of decay and learning rate depend less on each other, and a wrong decay costs less; with L2 in the gradient, which
Adam divides by √v̂ as well, the loss depends on both. The gain after many epochs is not looked at: here no text is seen twice.
"""

import statistics
from functools import partial

from lamoid.inspect.charts import heat_map
from lamoid.recipes.lab.arms import losses, run_arms, tabulate_arms
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, decide, decide_at_most, in_units
from lamoid.recipes.lab.paired import differences
from lamoid.recipes.lab.small_models import BUDGET, TRIAL

KINDS = {"adamw": "AdamW", "adam-l2": "Adam + L2"}
LEAST, NEAR = 0.05, 0.02


def measure(s: Settings, keep: Keep) -> Facts:
    """Both optimizers at every pair of decay and rate."""
    grid = [(kind, decay, rate) for kind in KINDS for decay in s["decays"] for rate in s["rates"]]
    arms = {_name(*cell): dict(zip(("kind", "weight_decay", "rate"), cell, strict=True)) for cell in grid}
    return run_arms(arms, s, keep) | {"decays": list(s["decays"]), "rates": list(s["rates"])}


def _name(kind: str, decay: float, rate: float) -> str:
    return f"{KINDS[kind]}, decay {decay:g}, rate {rate:g}"


def best(facts: Facts, kind: str, decay: float) -> list[float]:
    """For each seed the lowest loss over the rates."""
    by_rate = [losses(facts, _name(kind, decay, rate)) for rate in facts["rates"]]
    return [min(of_seed) for of_seed in zip(*by_rate, strict=True)]


def judge(facts: Facts) -> list[Check]:
    """What the worst decay costs beside the best, each at its best rate; and the best of all."""
    by_decay = {kind: list(zip(*(best(facts, kind, d) for d in facts["decays"]), strict=True)) for kind in KINDS}
    spread = {kind: [max(of_seed) - min(of_seed) for of_seed in seeds] for kind, seeds in by_decay.items()}
    lowest = {kind: [min(of_seed) for of_seed in seeds] for kind, seeds in by_decay.items()}
    less, beside = differences(spread["adam-l2"], spread["adamw"]), differences(lowest["adamw"], lowest["adam-l2"])
    part = f"a wrong decay costs AdamW at least {LEAST} nats less"
    return [
        Check(part, decide(less, LEAST), in_units(less, "nats")),
        Check(
            f"AdamW's best is at most {NEAR} nats above the other's",
            decide_at_most(beside, NEAR),
            in_units(beside, "nats"),
        ),
    ]


def draw(facts: Facts) -> list[str]:
    """A map of the mean final loss for each optimizer."""
    rates, decays = ([f"{value:g}" for value in facts[key]] for key in ("rates", "decays"))
    maps = []
    for kind, name in KINDS.items():
        values = [[statistics.fmean(losses(facts, _name(kind, d, r))) for r in facts["rates"]] for d in facts["decays"]]
        title = f"{name}: held-out loss (nats a token)"
        maps.append(heat_map(title, "learning rate", "weight decay", rates, decays, values))
    return maps


EXPERIMENT = Experiment(
    name="adamw",
    claim="AdamW depends less on its weight decay than Adam with L2, and its best is as good.",
    question="What is the final loss over weight decay and learning rate with both?",
    budget="36 runs of 400 steps",
    rule=f"Paired over seeds, 95 % intervals, each decay at its best rate: between the best and the worst decay AdamW loses at "
    f"least {LEAST} nats less; its best loss is at most {NEAR} nats above Adam + L2's.",
    settings=BUDGET | {"decays": (0.01, 0.1, 1.0), "rates": (1e-3, 3e-3), "seeds": 3},
    trial=TRIAL | {"seeds": 2, "decays": (0.1, 1.0), "rates": (3e-3,)},
    measure=measure,
    judge=judge,
    tabulate=partial(tabulate_arms, beside="AdamW, decay 0.1, rate 0.003"),
    draw=draw,
    trains=True,
)
