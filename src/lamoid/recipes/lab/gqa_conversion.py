"""From multi-head to grouped-query attention: by aligned, mean, first and random heads, before and after uptraining.

Claim: Ainslie et al. 2023, "GQA", section 2.1 and figure 4: after uptraining on 5 % of the original tokens, mean-pooled heads do
best, then the first head of each group, then new ones, "ordered by how much information is preserved from the pre-trained model".
Our own: heads that are turned towards each other before their mean is taken (`adapt/align_heads.py`) do better still.

A Llama is trained for each seed; its conversions go on with the same batches for a share α of the steps.
"""

import statistics
from functools import partial
from typing import Any

from lamoid.adapt.gqa import POOLINGS, group_kv_heads
from lamoid.inspect.charts import Point, bar_chart
from lamoid.recipes.lab.budget import BUDGET, TRIAL, learn, loss
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, Table, decide, in_units
from lamoid.recipes.lab.paired import Effect, differences, effect
from lamoid.recipes.lab.small_models import small_llama

LEAST = 0.02
Losses = dict[str, Any]


def measure(s: Settings, keep: Keep) -> Facts:
    """The losses of each seed."""
    budget = {key: s[key] for key in (*BUDGET, "kv_heads", "shares", "poolings")}
    seeds = range(s["seeds"])
    found = [keep(f"convert, seed {seed}", budget | {"seed": seed}, partial(_convert, budget, seed)) for seed in seeds]
    return {"shares": list(s["shares"]), "seeds": found}


def _convert(b: Settings, seed: int) -> Losses:
    """The loss of the original; of each pooling the losses after each share of uptraining, 0 first."""
    original = small_llama(b, seed)
    learn(original, b, seed)
    found: Losses = {"original": loss(original, b)}
    for pooling in b["poolings"]:
        found[pooling] = []
        for share in (0.0, *b["shares"]):
            model = group_kv_heads(original, b["kv_heads"], pooling=pooling, seed=seed)
            steps = round(share * b["steps"])
            if steps:
                learn(model, {**b, "steps": steps, "warmup": 0, "rate": b["rate"] / 2}, seed + 1000)
            found[pooling].append(loss(model, b))
    return found


def after(facts: Facts, pooling: str, place: int) -> list[float]:
    """What is lost beside the original, one value a seed; `place` counts the shares, 0 without uptraining."""
    return [found[pooling][place] - found["original"] for found in facts["seeds"]]


def judge(facts: Facts) -> list[Check]:
    """The order behind the first share of uptraining, seed by seed."""
    checks = []
    for worse, better in (("first", "mean"), ("random", "first"), ("mean", "aligned")):
        apart = differences(after(facts, worse, 1), after(facts, better, 1))
        part = f"uptrained, {better} is better than {worse} by at least {LEAST} nats"
        checks.append(Check(part, decide(apart, LEAST), in_units(apart, "nats")))
    return checks


def tabulate(facts: Facts) -> Table:
    """What is lost beside the original."""
    columns = ["lost beside the original (nats a token, 95 %)", "before uptraining"]
    columns += [f"after {100 * share:.0f} %" for share in facts["shares"]]
    rows = []
    for pooling in POOLINGS:
        n_places = len(facts["seeds"][0][pooling])
        rows.append([pooling, *(_interval(effect(after(facts, pooling, place))) for place in range(n_places))])
    original = statistics.fmean(found["original"] for found in facts["seeds"])
    return Table(columns, [*rows, [f"(the original has {original:.3f})", *("" for _ in columns[1:])]])


def _interval(seen: Effect) -> str:
    return f"{seen.mean:.3f} ({seen.low:.3f} to {seen.high:.3f})"


def draw(facts: Facts) -> list[str]:
    """Bars of what is lost."""
    groups: dict[str, dict[str, Point]] = {}
    for place, name in enumerate(("before", *(f"after {100 * share:.0f} %" for share in facts["shares"]))):
        seen = {pooling: effect(after(facts, pooling, place)) for pooling in POOLINGS}
        groups[name] = {pooling: (one.mean, one.low, one.high) for pooling, one in seen.items()}
    return [
        bar_chart("Eight key/value heads become two", "lost beside the original (nats a token), 95 % intervals", groups)
    ]


EXPERIMENT = Experiment(
    name="gqa-conversion",
    claim="Converted by the mean of its heads a model uptrains better than by their first, and so better than by random ones; "
    "aligned heads do better than their plain mean.",
    question="What do four ways to join key/value heads lose, before and after a little uptraining?",
    budget="24 runs of 800 steps, and 192 of 40 and 80",
    rule=f"Paired over seeds, 95 % intervals, after uptraining on 5 % of the steps: mean is better than first, first than "
    f"random, and aligned than mean, by at least {LEAST} nats.",
    settings=BUDGET | {"heads": 8, "kv_heads": 2, "poolings": POOLINGS, "shares": (0.05, 0.1), "seeds": 24},
    trial=TRIAL | {"heads": 4, "kv_heads": 2, "shares": (0.4, 0.7), "seeds": 2},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
    trains=True,
)
