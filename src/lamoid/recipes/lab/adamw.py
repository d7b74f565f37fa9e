"""AdamW beside Adam with L2 in the gradient, over weight decay and learning rate, on a text that is read many times.

Claim: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", section 4: where a model would learn its text by heart,
decay beside the adaptive step generalizes better than L2 in the gradient, which Adam divides by √v̂ as well.

The same λ is not the same to the two: each has a range of its own, and is judged by the best cell of its map. Without decay both
are Adam, which is shown in both maps.
"""

import statistics
from functools import partial

from lamoid.inspect.charts import heat_map
from lamoid.recipes.lab.arms import losses, run_arms, tabulate_arms
from lamoid.recipes.lab.budget import BUDGET, TRIAL
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, decide, in_units
from lamoid.recipes.lab.paired import differences

KINDS = {"adamw": "AdamW", "adam-l2": "Adam + L2"}
LEAST = 0.05


def measure(s: Settings, keep: Keep) -> Facts:
    """Both optimizers at every pair of decay and rate."""
    arms = {}
    for rate in s["rates"]:
        for kind in KINDS:
            for decay in (0.0, *s[kind]):
                changes = {"kind": kind if decay else "adamw", "weight_decay": decay, "rate": rate}
                arms[_name(kind, decay, rate)] = changes
    return run_arms(arms, s, keep) | {"rates": list(s["rates"]), "decays": {kind: [0.0, *s[kind]] for kind in KINDS}}


def _name(kind: str, decay: float, rate: float) -> str:
    return f"{KINDS[kind]}, decay {decay:g}, rate {rate:g}" if decay else f"Adam, rate {rate:g}"


def best(facts: Facts, kind: str) -> list[float]:
    """The losses, one a seed, of the cell whose mean is lowest."""
    cells = [losses(facts, _name(kind, d, rate)) for d in facts["decays"][kind] for rate in facts["rates"]]
    return min(cells, key=statistics.fmean)


def judge(facts: Facts) -> list[Check]:
    """The best of L2 less the best of AdamW, and the best without decay less AdamW's."""
    plain = min((losses(facts, _name("adamw", 0.0, rate)) for rate in facts["rates"]), key=statistics.fmean)
    checks = []
    for name, beside in {"Adam + L2": best(facts, "adam-l2"), "Adam without decay": plain}.items():
        gain = differences(beside, best(facts, "adamw"))
        part = f"AdamW's best is at least {LEAST} nats below that of {name}"
        checks.append(Check(part, decide(gain, LEAST), in_units(gain, "nats")))
    return checks


def draw(facts: Facts) -> list[str]:
    """A map of the mean final loss for each optimizer."""
    rates, maps = [f"{rate:g}" for rate in facts["rates"]], []
    for kind, name in KINDS.items():
        decays = facts["decays"][kind]
        values = [[statistics.fmean(losses(facts, _name(kind, d, r))) for r in facts["rates"]] for d in decays]
        title = f"{name}: held-out loss at the end (nats a token)"
        maps.append(heat_map(title, "learning rate", "weight decay λ", rates, [f"{d:g}" for d in decays], values))
    return maps


EXPERIMENT = Experiment(
    name="adamw",
    claim="AdamW's weight decay generalizes better than L2 in Adam's gradient.",
    question="What is the final loss over weight decay and learning rate when a small text is read ten times?",
    budget="42 runs of 400 steps on 20,000 tokens",
    rule=f"Paired over seeds, 95 % intervals: the held-out loss of AdamW's best cell is at least {LEAST} nats below that of Adam "
    "+ L2's best, and below that of Adam without decay.",
    settings=BUDGET
    | {"tokens": 20_000, "steps": 400, "rates": (2e-3, 5e-3), "seeds": 3}
    | {"adamw": (0.3, 1.0, 3.0), "adam-l2": (1e-3, 3e-3, 1e-2)},
    trial=TRIAL | {"seeds": 2, "adamw": (1.0,), "adam-l2": (1e-3,), "rates": (5e-3,)},
    measure=measure,
    judge=judge,
    tabulate=partial(tabulate_arms, beside=_name("adamw", 1.0, 5e-3)),
    draw=draw,
    trains=True,
)
