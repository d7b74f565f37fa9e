"""ReLU, GELU and the five gated networks at equal parameters.

Claim: Shazeer 2020, "GLU Variants Improve Transformer", table 1: GEGLU and SwiGLU reach the lowest perplexities, 0.03 to 0.05
below ReLU in the logarithm after 65,536 steps; ReGLU, Bilinear and GLU lie between. The gated networks have three matrices of two
thirds the width, so parameters are equal.
"""

from functools import partial

import torch

from lamoid.inspect.charts import line_chart
from lamoid.nn.feed_forward import ACTIVATIONS, GATES
from lamoid.recipes.lab.arms import draw_arms, gap, run_arms, tabulate_arms
from lamoid.recipes.lab.budget import BUDGET, TRIAL
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, decide, in_units

UNGATED, GATED = ("relu", "gelu"), ("glu", "bilinear", "reglu", "geglu", "swiglu")
LEAST = 0.01


def measure(s: Settings, keep: Keep) -> Facts:
    """The same decoder with each network."""
    wide, narrow = 4 * s["width"], 8 * s["width"] // 3
    arms = {name: {"feed_forward": name, "d_ff": wide} for name in UNGATED}
    return run_arms(arms | {name: {"feed_forward": name, "d_ff": narrow} for name in GATED}, s, keep)


def judge(facts: Facts) -> list[Check]:
    """How far the two best of the paper are below ReLU, seed by seed."""
    checks = []
    for name in ("swiglu", "geglu"):
        better = gap(facts, "relu", name)
        part = f"{name} is better than relu by at least {LEAST} nats"
        checks.append(Check(part, decide(better, LEAST), in_units(better, "nats", 4)))
    return checks


def draw(facts: Facts) -> list[str]:
    """The losses, and the functions themselves."""
    z = torch.linspace(-4, 4, 81)
    functions = {
        "relu": ACTIVATIONS["relu"],
        "gelu": ACTIVATIONS["gelu"],
        "Swish": GATES["swiglu"],
        "sigmoid": GATES["glu"],
    }
    curves = {name: list(zip(z.tolist(), f(z).tolist(), strict=True)) for name, f in functions.items()}
    shapes = line_chart("The functions (of a gate: what its other half is multiplied by)", "z", "f(z)", curves)
    return [*draw_arms(facts, "relu", "Feed-forward networks at equal parameters"), shapes]


EXPERIMENT = Experiment(
    name="activations",
    claim="SwiGLU and GEGLU give a lower loss than ReLU at equal parameters.",
    question="What does each feed-forward network reach with the same parameters and tokens?",
    budget="84 runs of 800 steps",
    rule=f"Paired over seeds: the held-out loss with SwiGLU, and with GEGLU, is lower than with ReLU by at least {LEAST} nats a "
    "token (the whole 95 % interval).",
    settings=BUDGET | {"seeds": 12},
    trial=TRIAL | {"seeds": 2},
    measure=measure,
    judge=judge,
    tabulate=partial(tabulate_arms, beside="relu"),
    draw=draw,
    trains=True,
)
