"""Pre-LN and Post-LN with and without a warm-up, and a decoder without residual sums.

Claims: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", section 4: with Post-LN "the learning rate
warm-up stage is essential", with Pre-LN it can be left out. He et al. 2016: without residual sums deep stacks do not train.

Five decoders over the same seeds and batches. Without a warm-up Post-LN either trains or stays at the loss of single tokens'
frequencies, 1.5 nats above: its seeds spread so widely that five of them decide only whether nearly all fail.
"""

from functools import partial

from lamoid.recipes.lab.arms import Arms, draw_arms, gap, run_arms, tabulate_arms
from lamoid.recipes.lab.budget import BUDGET, TRIAL
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, decide, decide_at_most, in_units

PRE, POST, PRE_COLD, POST_COLD = "Pre-LN", "Post-LN", "Pre-LN, no warm-up", "Post-LN, no warm-up"
BARE = "Pre-LN, no residual sums"
COMMON = {"norm": "layernorm"}
ARMS: Arms = {
    PRE: COMMON,
    PRE_COLD: COMMON | {"warmup": 0},
    POST: COMMON | {"norm_place": "post"},
    POST_COLD: COMMON | {"norm_place": "post", "warmup": 0},
    BARE: COMMON | {"residual": "none"},
}
COSTS, LITTLE = 0.1, 0.05


def judge(facts: Facts) -> list[Check]:
    """Differences of the held-out loss, seed by seed."""
    post, pre, bare = gap(facts, POST_COLD, POST), gap(facts, PRE_COLD, PRE), gap(facts, BARE, PRE)
    return [
        Check(f"Post-LN loses at least {COSTS} nats without a warm-up", decide(post, COSTS), in_units(post, "nats")),
        Check(f"Pre-LN loses at most {LITTLE} nats without one", decide_at_most(pre, LITTLE), in_units(pre, "nats")),
        Check(f"without residual sums at least {COSTS} nats are lost", decide(bare, COSTS), in_units(bare, "nats")),
    ]


EXPERIMENT = Experiment(
    name="norm-place",
    claim="Post-LN needs a warm-up, Pre-LN does not; without residual sums a deep stack does not train.",
    question="What do the norm's place, the warm-up and the residual sum do to the loss at an equal budget?",
    budget="25 runs of 300 steps, 8 layers",
    rule=f"Paired over seeds, intervals 95 %: without a warm-up Post-LN's held-out loss is higher by at least {COSTS} nats and "
    f"Pre-LN's by at most {LITTLE}; without residual sums Pre-LN's is higher by at least {COSTS}.",
    settings=BUDGET | {"layers": 8, "steps": 300, "seeds": 5},
    trial=TRIAL | {"seeds": 2},
    measure=partial(run_arms, ARMS),
    judge=judge,
    tabulate=partial(tabulate_arms, beside=PRE),
    draw=partial(draw_arms, beside=PRE, title="Norm, warm-up, residual sum"),
    trains=True,
)
