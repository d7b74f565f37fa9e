"""Multi-head, grouped-query and multi-query attention at equal parameters: the loss.

Claim: Ainslie et al. 2023, "GQA", abstract: grouped-query attention achieves "quality close to multi-head attention" with a
speed comparable to multi-query attention; Shazeer 2019: multi-query attention loses a little. What the narrower key and value
projections free goes into the feed-forward network, as in Llama 2, table 18. Speed and memory: `gqa-speed`.
"""

from functools import partial
from typing import Any

from lamoid.recipes.lab.arms import draw_arms, gap, run_arms, tabulate_arms
from lamoid.recipes.lab.budget import BUDGET, TRIAL
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, decide, decide_at_most, in_units

MHA, GQA, MQA = "MHA", "GQA", "MQA"
NEAR = 0.02


def measure(s: Settings, keep: Keep) -> Facts:
    """Key/value heads: all, a quarter, one; 2 D · E matrices freed by each that is left out go into d_ff."""
    heads, size = s["heads"], s["width"] // s["heads"]

    def arm(n_kv_heads: int) -> dict[str, Any]:
        freed = 2 * s["width"] * size * (heads - n_kv_heads)
        return {"n_kv_heads": n_kv_heads, "d_ff": 8 * s["width"] // 3 + round(freed / (3 * s["width"]))}

    return run_arms({MHA: arm(heads), GQA: arm(heads // 4), MQA: arm(1)}, s, keep)


def judge(facts: Facts) -> list[Check]:
    """Whether the loss is within a bound, and whether fewer heads are no better."""
    grouped, most = gap(facts, GQA, MHA), gap(facts, MQA, MHA)
    told = in_units(grouped, "nats", 4)
    return [
        Check(f"GQA loses at most {NEAR} nats beside MHA", decide_at_most(grouped, NEAR), told),
        Check("MQA loses more than nothing beside MHA", decide(most, 0.0), in_units(most, "nats", 4)),
    ]


EXPERIMENT = Experiment(
    name="gqa-quality",
    claim="At equal parameters GQA's loss is close to MHA's, and MQA's a little higher.",
    question="What do fewer key/value heads cost when the parameters that they free are used elsewhere?",
    budget="72 runs of 800 steps, 8 heads",
    rule=f"Paired over seeds, 95 % intervals: GQA's held-out loss lies at most {NEAR} nats above MHA's, and MQA's above it.",
    settings=BUDGET | {"heads": 8, "seeds": 24},
    trial=TRIAL | {"heads": 4, "seeds": 2},
    measure=measure,
    judge=judge,
    tabulate=partial(tabulate_arms, beside=MHA),
    draw=partial(draw_arms, beside=MHA, title="Fewer key/value heads at equal parameters"),
    trains=True,
)
