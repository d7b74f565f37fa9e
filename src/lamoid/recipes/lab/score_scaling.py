"""Why scores are divided by √E: their variance, and what the softmax makes of it.

Claim: Vaswani et al. 2017, section 3.2.1 and its footnote 4: of q and k with independent components of mean 0 and variance 1,
q · k has mean 0 and variance E, which pushes "the softmax function into regions where it has extremely small gradients".
Divided by √E the variance is 1 whatever E.

Measured are, for each head size, the variance of the scores, the entropy of the weights over the keys, and 1 − Σ w², which is
the trace of the softmax's Jacobian diag(w) − w wᵀ: what it passes back. Each seed draws all sizes: seeds are the pairs.
"""

import torch

from lamoid.inspect.charts import line_chart
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, Table, decide, in_units
from lamoid.recipes.lab.experiment import decide_exactly as exactly
from lamoid.recipes.lab.paired import differences, effect, slope

SIDES = {"divided by √E": None, "as they are": 1.0}
NEAR, STAYS, FALLS = 0.05, 0.1, {"entropy": 1.0, "trace": 0.3}


def measure(s: Settings, keep: Keep) -> Facts:
    """For both sides and each head size: variance, entropy (nats) and trace, one value a seed."""
    facts: Facts = {"sizes": list(s["head_dims"]), "keys": s["keys"]}
    for name, scale in SIDES.items():
        measured = [
            [_measure(size, scale, seed, s["queries"], s["keys"]) for seed in range(s["seeds"])]
            for size in s["head_dims"]
        ]
        for i, what in enumerate(("variance", "entropy", "trace")):
            facts[f"{what}, {name}"] = [[values[i] for values in of_size] for of_size in measured]
    return facts


def _measure(size: int, scale: float | None, seed: int, n_queries: int, n_keys: int) -> tuple[float, float, float]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 1, n, size, generator=generator) for n in (n_queries, n_keys))
    scores = q @ k.transpose(-2, -1) * (size**-0.5 if scale is None else scale)
    w = scores.softmax(-1)
    entropy = -(w * w.clamp_min(1e-38).log()).sum(-1).mean()
    return float(scores.var()), float(entropy), float((1 - w.square().sum(-1)).mean())


def judge(facts: Facts) -> list[Check]:
    """Exponents of the variance over the head size, and falls of entropy and trace from the smallest to the largest."""
    checks = []
    for name, expected in zip(SIDES, (0.0, 1.0), strict=True):
        by_seed = zip(*facts[f"variance, {name}"], strict=True)
        power = effect([slope(facts["sizes"], variances) for variances in by_seed])
        is_so = expected - NEAR <= power.low and power.high <= expected + NEAR
        part = f"variance of scores {name} grows as E^{expected:.0f}"
        checks.append(Check(part, exactly(is_so), in_units(power, "as exponent")))
    for what, least in FALLS.items():
        for name in SIDES:
            first, *_, last = facts[f"{what}, {name}"]
            fall = differences(first, last)
            stays = name == "divided by √E"
            verdict = exactly(fall.high <= STAYS) if stays else decide(fall, least)
            checks.append(Check(f"{what}, {name}, {'stays' if stays else 'falls'}", verdict, in_units(fall, "less")))
    return checks


def tabulate(facts: Facts) -> Table:
    """Means over the seeds."""
    names = [f"{what}, {name}" for what in ("variance", "entropy", "trace") for name in SIDES]
    rows = [
        [size, *(round(sum(facts[name][i]) / len(facts[name][i]), 3) for name in names)]
        for i, size in enumerate(facts["sizes"])
    ]
    return Table(["head size E", *(name.replace("entropy", "entropy (nats)") for name in names)], rows)


def draw(facts: Facts) -> list[str]:
    """Variance and entropy over the head size."""

    def curves(what: str) -> dict[str, list[tuple[float, ...]]]:
        return {
            name: [
                (size, sum(v) / len(v), min(v), max(v))
                for size, v in zip(facts["sizes"], facts[f"{what}, {name}"], strict=True)
            ]
            for name in SIDES
        }

    entropy = f"entropy of the weights over {facts['keys']} keys (nats)"
    return [
        line_chart("Variance of scores", "head size E", "variance", curves("variance"), log_x=True, log_y=True),
        line_chart("Entropy of the weights", "head size E", entropy, curves("entropy"), log_x=True),
    ]


EXPERIMENT = Experiment(
    name="score-scaling",
    claim="Dividing scores by √E keeps their variance at 1, and the softmax from saturating.",
    question="How do the scores' variance, the weights' entropy and the softmax's gradient depend on the head size?",
    budget="seconds",
    rule=f"Variance: the exponent's interval over head sizes lies within {NEAR} of 0 (divided) and of 1 (not). From the "
    f"smallest to the largest head, entropy in nats and 1 − Σ w² fall by at most {STAYS} (divided), and by at least "
    f"{FALLS['entropy']} and {FALLS['trace']} (not).",
    settings={"head_dims": (16, 32, 64, 128, 256, 512), "queries": 256, "keys": 128, "seeds": 8},
    trial={"head_dims": (4, 8), "queries": 4, "keys": 8, "seeds": 2},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
)
