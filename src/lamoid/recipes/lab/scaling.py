"""Loss against parameters and tokens: four sizes, three budgets, the fitted surface.

Claims: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", figure 1: the loss falls smoothly with the parameters where
the data does not limit it. Hoffmann et al. 2022, equation 2:

    L(N, D) = E + A / N^α + B / D^β        N parameters, D tokens

The rate is constant, so that a model at 400 steps is what a run of 400 steps gives. It falls as 1 / width, about as in GPT-3
(Brown et al. 2020, table 2.1), and the first weights as 1 / √width. What fits the three smaller sizes has to foresee the largest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lamoid.inspect.charts import Point, line_chart, number
from lamoid.recipes.lab.budget import BUDGET, TRIAL, Run
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Table, decide, decide_at_most, in_units
from lamoid.recipes.lab.paired import differences, effect
from lamoid.recipes.lab.small_models import trained

GAINS, NEAR = 0.05, 0.05
EXPONENTS = np.arange(0.05, 1.51, 0.05)


def measure(s: Mapping[str, Any], keep: Keep) -> Facts:
    """The loss of each width at each number of steps, of each seed."""

    def run(width: int, seed: int) -> Run:
        wider = width / s["width"]
        changes = {"width": width, "rate": s["rate"] / wider, "init_std": s["init_std"] / wider**0.5}
        return trained(keep, s, changes | {"steps": s["at"][-1]}, seed, steps=s["at"])

    found = [[run(width, seed) for width in s["widths"]] for seed in range(s["seeds"])]
    sizes, tokens = [run["parameters"] for run in found[0]], [step * s["rows"] * s["context"] for step in s["at"]]
    losses = [[[run["at_step"].get(f"{step}", run["loss"]) for step in s["at"]] for run in runs] for runs in found]
    return {"parameters": sizes, "tokens": tokens, "losses": losses}


def fit(parameters: Sequence[float], tokens: Sequence[float], losses: np.ndarray) -> tuple[float, ...]:
    """E, A, B, α, β of least squares, sizes × budgets: the first three linear and at least 0, the exponents from a grid."""
    n, d = (axis.ravel() for axis in np.meshgrid(parameters, tokens, indexing="ij"))
    best: tuple[float, ...] = (np.inf,)
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            columns = np.stack([np.ones(n.shape), n**-alpha, d**-beta], axis=1)
            found = np.linalg.lstsq(columns, losses.ravel(), rcond=None)[0].clip(min=0)
            error = float(((columns @ found - losses.ravel()) ** 2).sum())
            best = min(best, (error, *map(float, found), float(alpha), float(beta)))
    return best[1:]


def foreseen(surface: Sequence[float], n: float, d: float) -> float:
    """L(N, D)."""
    e, a, b, alpha, beta = surface
    return e + a * n**-alpha + b * d**-beta


def balanced(surface: Sequence[float], d: float) -> float:
    """N for D tokens: α A / N^α = β B / D^β, more of either is worth the same compute (6 N D); ∞ where D has no effect."""
    _, a, b, alpha, beta = surface
    return float((alpha * a / (beta * b) * d**beta) ** (1 / alpha)) if b else np.inf


def judge(facts: Facts) -> list[Check]:
    """What size is worth at the most tokens, where it is worth more, and whether the largest model is foreseen."""
    losses = np.array(facts["losses"])
    checks = []
    for i, (small, large) in enumerate(zip(facts["parameters"], facts["parameters"][1:], strict=False)):
        gain = differences(losses[:, i, -1].tolist(), losses[:, i + 1, -1].tolist())
        part = f"{large:,} parameters are at least {GAINS} nats better than {small:,}"
        checks.append(Check(part, decide(gain, GAINS), in_units(gain, "nats")))
    n, d = facts["parameters"], facts["tokens"]
    off = effect([abs(foreseen(fit(n[:-1], d, one[:-1]), n[-1], d[-1]) - one[-1, -1]) for one in losses])
    part = f"the surface of the smaller sizes foresees the largest to {NEAR} nats"
    return [*checks, Check(part, decide_at_most(off, NEAR), in_units(off, "nats"))]


def tabulate(facts: Facts) -> Table:
    """Mean losses, the surface that fits all of them, and what it suggests for so much text."""
    means = np.array(facts["losses"]).mean(axis=0)
    named = zip(facts["parameters"], means, strict=True)
    rows = [[f"{n:,} parameters", *(f"{loss:.3f}" for loss in row)] for n, row in named]
    surface = fit(facts["parameters"], facts["tokens"], means)
    e, a, b, alpha, beta = map(number, surface)
    rows.append([f"L = {e} + {a} / N^{alpha} + {b} / D^{beta}", *("" for _ in facts["tokens"])])
    rows.append(["parameters that suit so many tokens", *(f"{balanced(surface, d):,.0f}" for d in facts["tokens"])])
    return Table(["held-out loss (nats a token) after", *(f"{d:,} tokens" for d in facts["tokens"])], rows)


def draw(facts: Facts) -> list[str]:
    """Measured losses over the parameters, with least and most of the seeds, and the surface."""
    n, d, losses = facts["parameters"], facts["tokens"], np.array(facts["losses"])
    surface = fit(n, d, losses.mean(axis=0))
    lines: dict[str, list[Point]] = {}
    for j, tokens in enumerate(d):
        spread = [f(losses[:, :, j], axis=0).tolist() for f in (np.mean, np.min, np.max)]
        lines[f"{tokens:,} tokens"] = list(zip(n, *spread, strict=True))
        between = np.geomspace(n[0], n[-1], 40).tolist()
        lines[f"{tokens:,} tokens, fitted"] = [(x, foreseen(surface, x, tokens)) for x in between]
    return [line_chart("Loss over parameters", "parameters", "held-out loss (nats a token)", lines, log_x=True)]


EXPERIMENT = Experiment(
    name="scaling",
    claim="The loss falls with parameters and tokens along a smooth surface, which small models suffice to fit.",
    question="What is the loss at four sizes and three budgets, and does the surface of the small ones foresee the large one?",
    budget="24 runs of 1,600 steps, widths 16 to 128",
    rule=f"95 % intervals over seeds, after the last step: each size is better than the one before by at least {GAINS} nats; the "
    f"surface fitted to all but the largest size is at most {NEAR} nats off there.",
    settings=BUDGET | {"floor": 1.0, "rate": 3e-3, "widths": (16, 32, 64, 128), "at": (400, 800, 1600), "seeds": 6},
    trial=TRIAL | {"widths": (8, 16, 32), "at": (2, 4, 6), "seeds": 2},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
    trains=True,
)
