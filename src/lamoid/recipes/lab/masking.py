"""BERT's masks, the same ones again and again or new ones; and BERT's second task, next-sentence prediction (NSP).

Claims: Liu et al. 2019, "RoBERTa", section 4.1 and table 1: over 40 epochs dynamic masking is as good as ten static masks or
slightly better; section 4.2 and table 2: models without NSP are as good or slightly better. Devlin et al. 2019, section 5.1, had
found that leaving it out hurts. Both judge by tasks after fine-tuning. Here the loss of hidden tokens is judged, which says less.

Masks: the same windows of text in the same order, 40 times; only the masks differ. NSP: the same pairs with the same masks; only
the objective differs. There is no dropout, so that nothing but the masks keeps a model from learning its text by heart.
"""

import statistics

from lamoid.inspect.charts import Point, bar_chart, line_chart
from lamoid.recipes.lab.arms import gap, losses
from lamoid.recipes.lab.budget import BUDGET, TRIAL, Run
from lamoid.recipes.lab.experiment import (
    Check,
    Experiment,
    Facts,
    Keep,
    Settings,
    Table,
    decide,
    decide_at_most,
    in_units,
)
from lamoid.recipes.lab.paired import Effect, effect
from lamoid.recipes.lab.small_encoders import trained_encoder

ONE, TEN, NEW, WITH, WITHOUT = "one mask", "ten masks", "new masks", "with NSP", "without NSP"
MASKS = {ONE: {"masks": 1}, TEN: {"masks": 10}, NEW: {"masks": 40}}
PAIRS = {WITH: {"nsp": True}, WITHOUT: {"nsp": False}}
BESIDE = {ONE: NEW, TEN: NEW, WITH: WITHOUT}
COSTS, MOST, MOST_NSP, TOLD = 0.05, 0.02, 0.03, 55.0


def measure(s: Settings, keep: Keep) -> Facts:
    """The runs of each arm; all arms of a seed come before the next one."""
    runs: dict[str, list[Run]] = {name: [] for name in (*MASKS, *PAIRS)}
    for arms, budget, n_seeds in ((MASKS, s, s["seeds"]), (PAIRS, {**s, **s["pairs"]}, s["pair_seeds"])):
        for seed in range(n_seeds):
            for name, task in arms.items():
                runs[name].append(trained_encoder(keep, budget, task, seed))
    return {"runs": runs}


def told(facts: Facts) -> Effect:
    """Percent of held-out pairs of which the model says rightly whether the second text follows; 50 is a guess."""
    return effect([100 * run["figures"].get("nsp_accuracy", 0.5) for run in facts["runs"][WITH]])


def judge(facts: Facts) -> list[Check]:
    """Masks one beside the other, then pairs."""
    one, new, without, right = gap(facts, ONE, NEW), gap(facts, NEW, TEN), gap(facts, WITHOUT, WITH), told(facts)
    parts = {
        f"new masks in each epoch are at least {COSTS} nats below one mask for all": (decide(one, COSTS), one),
        f"they are at most {MOST} nats above ten masks that take turns": (decide_at_most(new, MOST), new),
        f"NSP is learned: at least {TOLD:g} % of held-out pairs are told": (decide(right, TOLD), right),
        f"without NSP hidden tokens cost at most {MOST_NSP} nats more": (decide_at_most(without, MOST_NSP), without),
    }
    return [Check(part, verdict, in_units(x, "%" if x is right else "nats")) for part, (verdict, x) in parts.items()]


def tabulate(facts: Facts) -> Table:
    """Means over the seeds, and differences with their intervals."""
    rows = []
    for name, runs in facts["runs"].items():
        beside = BESIDE.get(name, name)
        apart = gap(facts, name, beside)
        difference = f"{apart.mean:+.3f} ({apart.low:+.3f} to {apart.high:+.3f}) beside {beside}"
        numbers = [
            f"{statistics.fmean(losses(facts, name)):.3f}",
            difference if beside != name else "",
            f"{statistics.fmean(run['guess'] for run in runs):.3f}",
            f"{100 * statistics.fmean(run['figures'].get('masked_accuracy', 0.0) for run in runs):.1f}",
            f"{told(facts).mean:.1f}" if name == WITH else "",
        ]
        rows.append([name, *numbers, sum(run["diverged"] for run in runs)])
    columns = ["", "held-out MLM loss (nats)", "difference (95 %)", "guess by frequency (nats)"]
    columns += ["hidden tokens right (%)", "pairs told (%)", "diverged"]
    return Table(columns, rows)


def draw(facts: Facts) -> list[str]:
    """The held-out loss over the epochs, means over the seeds; and the smaller differences at the end."""
    curves: dict[str, list[Point]] = {}
    for name in MASKS:
        evaluations = zip(*(run["at_epoch"] for run in facts["runs"][name]), strict=False)
        curves[name] = [(at[0][0], statistics.fmean(loss for _, loss in at)) for at in evaluations]
    groups: dict[str, dict[str, Point]] = {}
    for name in (TEN, WITH):
        apart = gap(facts, name, BESIDE[name])
        groups[f"{name} beside {BESIDE[name]}"] = {"difference": (apart.mean, apart.low, apart.high)}
    unit = "held-out MLM loss (nats a hidden token)"
    return [
        line_chart("The same text 40 times", "epochs", unit, {name: curve for name, curve in curves.items() if curve}),
        bar_chart("What ten masks and NSP cost", f"difference of the {unit}, 95 % intervals", groups),
    ]


EXPERIMENT = Experiment(
    name="masking",
    claim="New masks in each epoch are as good as ten static masks or better; BERT is as good without NSP.",
    question="What do hidden tokens cost when masks come again, and when the next sentence is predicted too?",
    budget="18 runs of 400 steps on a text that is read 40 times, and 16 of 500 on pairs",
    rule="Paired over seeds, 95 % intervals of the held-out MLM loss: new masks are at least "
    f"{COSTS} nats below one mask and at most {MOST} above ten; leaving NSP out costs at most {MOST_NSP}, where NSP is learned: "
    f"at least {TOLD:g} % of held-out pairs are told.",
    settings=BUDGET
    | {"tokens": 19_200, "context": 32, "rows": 64, "steps": 400, "rate": 3e-3, "every": 40}
    | {"seeds": 6, "pair_seeds": 8}
    | {"pairs": {"vocabulary": 2000, "tokens": None, "context": 64, "rows": 32, "steps": 500, "every": 500}},
    trial=TRIAL | {"tokens": 56, "every": 2, "seeds": 2, "pair_seeds": 2, "pairs": {"tokens": None, "every": 3}},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
    trains=True,
)
