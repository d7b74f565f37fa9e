"""RoPE: scores know the distance alone, the two layouts agree, and a vector's score with itself falls with distance.

Claims: Su et al. 2021, "RoFormer". Section 3.2: the product of a rotated query at m and a rotated key at n depends on n − m
alone. Section 3.4.3: with θᵢ = base^(−2i/E) it "will decay when the relative position increases"; what is proven there is an
upper bound, the mean of |S_j| with S_j = Σ_{i<j} e^(i (n − m) θᵢ), which is drawn in the paper's figure 2.

So the decay is looked at in three ways: that bound; the mean score of a query with a key that equals it, in |q|²; and the root
mean square of the scores of independent vectors, which turning leaves as it is: no part of the claim, but what it does not say.
The layouts: Meta's weights turn neighbouring pairs as complex numbers, Hugging Face's turn halves: a permutation of features.
"""

import math
from typing import Any

import numpy as np
import torch

from lamoid.inspect.charts import line_chart
from lamoid.inspect.part_figures import rope_bound
from lamoid.nn.absolute_positions import SinusoidalPositions
from lamoid.nn.positions import RoPE, rotate, rotate_interleaved
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, Table, decide_exactly

NAMES = {"bound": "the paper's bound", "equal": "equal vectors", "independent": "independent (RMS)"}
SAME, APART = 1e-4, 1e-1


def measure(s: Settings, keep: Keep) -> Facts:
    """Deviations in shares of |q| |k|, and three curves over every distance from 1."""
    torch.manual_seed(0)
    size, n_vectors, length = s["head_dim"], s["vectors"], s["length"]
    q, k = torch.randn(2, 1, 1, n_vectors, size)
    rope, norms = RoPE(size, s["base"]), q.norm(dim=-1) * k.norm(dim=-1)

    def at(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x, *rope(torch.full((1, n_vectors), position)))

    def spread(score: Any) -> float:
        scores = torch.stack([score(place, place + s["distance"]) / norms for place in s["places"]])
        return float((scores.amax(0) - scores.amin(0)).max())

    table = SinusoidalPositions(size)(torch.arange(max(s["places"]) + s["distance"] + 1)[None])[0]
    halves = torch.cat((torch.arange(0, size, 2), torch.arange(1, size, 2)))
    angles = rope(torch.arange(n_vectors)[None] * 37)
    layouts = (rotate(q[..., halves], *angles) - rotate_interleaved(q, *angles)[..., halves]).abs().max()
    bound = rope_bound(rope, length + 1)[1:].tolist()
    curves: dict[str, list[float]] = {"bound": bound, "equal": [], "independent": []}
    for distance in range(1, length + 1):
        curves["equal"].append(float(((q * at(q, distance)).sum(-1) / q.square().sum(-1)).mean()))
        curves["independent"].append(float((q * at(k, distance)).sum(-1).square().mean().sqrt()) / math.sqrt(size))
    return {
        "rope": spread(lambda m, n: (at(q, m) * at(k, n)).sum(-1)),
        "sinusoidal": spread(lambda m, n: ((q + table[m]) * (k + table[n])).sum(-1)),
        "layouts": float(layouts / q.abs().max()),
        "curves": {name: [round(value, 5) for value in values] for name, values in curves.items()},
    }


def stretches(facts: Facts, curve: str) -> list[float]:
    """Means of a curve's absolute values over the distances 1 to 3, 4 to 15, 16 to 63, …"""
    values = np.abs(facts["curves"][curve])
    return [float(values[4**i - 1 : 4 ** (i + 1) - 1].mean()) for i in range(round(math.log(len(values) + 1, 4)))]


def judge(facts: Facts) -> list[Check]:
    """Deviations against bounds; curves against their own next stretch."""
    relative = facts["rope"] <= SAME and facts["sinusoidal"] >= APART
    told = (
        f"places change a score by {facts['rope']:.1e} of |q||k|; sinusoidal, for comparison, {facts['sinusoidal']:.2f}"
    )
    checks = [
        Check("a score depends on n − m alone", decide_exactly(relative), told),
        Check("both layouts agree", decide_exactly(facts["layouts"] <= SAME), f"to {facts['layouts']:.1e}"),
    ]
    for curve, part in (("bound", "the paper's bound falls"), ("equal", "a vector's score with itself falls")):
        means = stretches(facts, curve)
        falls = all(b < a for a, b in zip(means, means[1:], strict=False))
        checks.append(Check(part, decide_exactly(falls), " > ".join(f"{mean:.2f}" for mean in means)))
    return checks


def tabulate(facts: Facts) -> Table:
    """The curves, averaged over stretches of distances that grow by 4; 1 is a score at distance 0."""
    rows = list(zip(*(stretches(facts, curve) for curve in facts["curves"]), strict=True))
    names = [f"{4**i:,} to {4 ** (i + 1) - 1:,}" for i in range(len(rows))]
    return Table(
        ["distance (tokens)", *NAMES.values()],
        [[name, *(round(value, 3) for value in row)] for name, row in zip(names, rows, strict=True)],
    )


def draw(facts: Facts) -> list[str]:
    """The three curves over the distance."""
    shown = sorted({round(len(facts["curves"]["bound"]) ** (i / 80)) for i in range(81)})
    lines = {NAMES[curve]: [(d, values[d - 1]) for d in shown] for curve, values in facts["curves"].items()}
    return [line_chart("RoPE over distance", "distance n − m (tokens)", "score, 1 = at distance 0", lines, log_x=True)]


EXPERIMENT = Experiment(
    name="rope-relative",
    claim="RoPE's scores depend on the distance alone, and decay with it.",
    question="How far is a score from depending on n − m alone, do the two layouts agree, and what decays with distance?",
    budget="seconds",
    rule=f"Relative: at one distance, places change a score by at most {SAME:g} of |q||k| (fp32), and sinusoidal positions by "
    f"more than {APART:g}. Layouts: equal to {SAME:g}. Decay: means over stretches of distances that grow by 4 fall each time.",
    settings={
        "head_dim": 64,
        "base": 10_000.0,
        "vectors": 512,
        "places": (0, 1, 17, 255, 2000),
        "distance": 9,
        "length": 4095,
    },
    trial={"vectors": 8, "length": 63, "places": (0, 5)},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
)
