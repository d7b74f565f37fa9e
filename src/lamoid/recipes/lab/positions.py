"""Six kinds of positions and none: the loss at an equal budget.

Claims: relative positions beat absolute ones (Shaw et al. 2018, table 2; Su et al. 2021 of RoPE, section 4); a decoder without
any positions still trains, as the causal mask tells the order (Haviv et al. 2022), but stays behind RoPE at this size.
"""

from functools import partial

from lamoid.recipes.lab.arms import draw_arms, gap, run_arms, tabulate_arms
from lamoid.recipes.lab.budget import BUDGET, TRIAL
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, decide, in_units

KINDS = ("rope", "learned", "sinusoidal", "shaw", "t5", "alibi", "none")
LEAST = 0.01


def measure(s: Settings, keep: Keep) -> Facts:
    """The same decoder with each; evaluated on longer texts too, which `extrapolation` asks for."""
    return run_arms(
        {kind: {"positions": kind} for kind in KINDS}, s, keep, tuple(n * s["context"] for n in s["stretches"])
    )


def judge(facts: Facts) -> list[Check]:
    """How much higher the losses of absolute positions and of none are."""
    checks = []
    for kind in ("learned", "sinusoidal", "none"):
        behind = gap(facts, kind, "rope")
        part = f"{kind} is behind rope by at least {LEAST} nats"
        checks.append(Check(part, decide(behind, LEAST), in_units(behind, "nats", 4)))
    return checks


EXPERIMENT = Experiment(
    name="positions",
    claim="RoPE reaches a lower loss than absolute positions, and than none.",
    question="What does each kind of positions reach with the same tokens, and what does a step take?",
    budget="35 runs of 800 steps (shared with extrapolation)",
    rule=f"Paired over seeds: the held-out losses with learned, with sinusoidal and without positions are higher than with RoPE "
    f"by at least {LEAST} nats a token (whole 95 % intervals). The others are shown without a verdict.",
    settings=BUDGET | {"seeds": 5, "stretches": (1, 2, 4, 8)},
    trial=TRIAL | {"seeds": 2, "stretches": (1, 2)},
    measure=measure,
    judge=judge,
    tabulate=partial(tabulate_arms, beside="rope"),
    draw=partial(draw_arms, beside="rope", title="Positions at an equal budget"),
    trains=True,
)
