"""Trained on 128 tokens, evaluated on up to 1,024: all kinds of positions, and RoPE with its scalings.

Claims: Press et al. 2022, "Train Short, Test Long", figure 1: with ALiBi the loss on longer texts than trained on stays or falls,
with sinusoidal positions it soon rises, with RoPE a little later. Chen et al. 2023 and Peng et al. 2023 (YaRN): stretched
frequencies keep RoPE usable beyond its length; here without any training on them.

The models are those of `positions`. Every token is scored with at least half a window before it, so that a longer window gives
more context. Learned positions end where training did.
"""

import statistics

from lamoid.inspect.charts import Point, line_chart
from lamoid.recipes.lab.budget import Run
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Table, decide, decide_at_most, in_units
from lamoid.recipes.lab.paired import Effect, differences
from lamoid.recipes.lab.positions import EXPERIMENT as POSITIONS

STAYS, RISES = 0.02, 0.1


def curves(facts: Facts) -> dict[str, dict[int, list[float]]]:
    """Name, of a kind or of RoPE with a scaling -> length -> losses, one a seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for kind, runs in facts["runs"].items():
        for key in runs[0]["at_length"]:
            length, _, scaling = key.partition(", ")
            found.setdefault(f"rope, {scaling}" if scaling else kind, {})[int(length)] = [_at(run, key) for run in runs]
    return found


def _at(run: Run, key: str) -> float:
    return float(run["at_length"].get(key, run["loss"]))


def judge(facts: Facts) -> list[Check]:
    """The loss at the longest window less that at the trained one, seed by seed."""
    losses = curves(facts)
    trained, longest = min(losses["alibi"]), max(losses["alibi"])

    def rise(name: str, beside: str) -> Effect:
        return differences(losses[name][longest], losses[beside][trained if beside == name else longest])

    alibi, scaled = rise("alibi", "alibi"), rise("rope", "rope, yarn")
    part = f"ALiBi rises by at most {STAYS} nats at {longest} tokens"
    checks = [Check(part, decide_at_most(alibi, STAYS), in_units(alibi, "nats"))]
    for kind in ("sinusoidal", "rope"):
        seen = rise(kind, kind)
        checks.append(Check(f"{kind} rises by at least {RISES}", decide(seen, RISES), in_units(seen, "nats")))
    part = f"YaRN takes at least {RISES} nats from what plain RoPE has at {longest} tokens"
    return [*checks, Check(part, decide(scaled, RISES), in_units(scaled, "nats"))]


def tabulate(facts: Facts) -> Table:
    """Means over the seeds."""
    losses = curves(facts)
    lengths = sorted({length for of_length in losses.values() for length in of_length})
    rows = [
        [name, *(f"{statistics.fmean(found[n]):.3f}" if n in found else "" for n in lengths)]
        for name, found in losses.items()
    ]
    return Table(["held-out loss (nats a token) at", *(f"{n:,} tokens" for n in lengths)], rows)


def draw(facts: Facts) -> list[str]:
    """Loss over length: the kinds, and RoPE's scalings."""
    lines: dict[str, list[Point]] = {}
    for name, of_length in curves(facts).items():
        if len(of_length) > 1 or "," in name:
            lines[name] = [(n, statistics.fmean(v), min(v), max(v)) for n, v in sorted(of_length.items())]
    title = "Longer than trained"
    return [line_chart(title, "length of the window (tokens)", "held-out loss (nats a token)", lines, log_x=True)]


EXPERIMENT = Experiment(
    name="extrapolation",
    claim="ALiBi reads texts longer than it was trained on; sinusoidal positions and RoPE do not, RoPE stretched does.",
    question="What does the loss do when a model trained on 128 tokens reads 256, 512 and 1,024?",
    budget="none of its own beside positions",
    rule=f"Paired over seeds, 95 % intervals, eight times the trained length beside the trained length: ALiBi's loss rises by at "
    f"most {STAYS} nats; sinusoidal's and RoPE's by at least {RISES}; YaRN's is at least {RISES} below RoPE's there.",
    settings=POSITIONS.settings,
    trial=POSITIONS.trial,
    measure=POSITIONS.measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
    trains=True,
)
