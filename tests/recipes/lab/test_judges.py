"""Each rule says holds, does not hold here and undecided where it should: on made-up measurements."""

from xml.etree import ElementTree

import numpy as np
import pytest

from lamoid.adapt.gqa import POOLINGS
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.recipes.lab import (
    activations,
    adamw,
    extrapolation,
    gqa_conversion,
    gqa_quality,
    masking,
    norm_place,
    positions,
    rmsnorm_speed,
    scaling,
    tuning_methods,
)
from lamoid.recipes.lab.experiment import Check, together
from lamoid.recipes.lab.experiments import find
from lamoid.recipes.lab.paired import Effect

SEEDS = 6


def runs(differences, noise=0.002, **more):
    """Facts of arms whose losses are 3 + the seed's share + the arm's difference + noise."""
    random = np.random.default_rng(0)
    common = random.normal(0, 0.1, SEEDS)
    return {
        "runs": {
            name: [
                {
                    "loss": 3 + common[i] + difference + random.normal(0, noise),
                    **{"diverged": False, "parameters": 1000, "step_s": 0.1, "curve": [[1, 5.0], [2, 4.0]]},
                }
                for i in range(SEEDS)
            ]
            for name, difference in differences.items()
        },
        **more,
    }


def verdicts(module, facts) -> list[str]:
    checks = module.judge(facts)
    assert all(isinstance(check, Check) and check.numbers for check in checks)
    return [check.verdict for check in checks]


HOLDS, FAILS, OPEN = "holds", "does not hold here", "undecided"
RATES = [0.005, 0.01, 0.02, 0.04]
"""Norm's place: up to which of the rates each stack trains, one a seed."""


def stacks(pre, pre_cold, post, post_cold, bare=2.0):
    """Facts in which a run at a rate above its stack's highest stays at 4.3; the others end at 3."""
    named = dict(zip(norm_place.STACKS, (pre, pre_cold, post, post_cold), strict=True))
    facts = runs({norm_place.at(stack, rate): 0.0 for stack in named for rate in RATES} | {norm_place.BARE: bare})
    for stack, most in named.items():
        for rate in RATES:
            for seed, run in enumerate(facts["runs"][norm_place.at(stack, rate)]):
                if rate > most[seed % len(most)]:
                    run["loss"] = 4.3
    return facts | {"rates": RATES}


@pytest.mark.parametrize(
    ("pre_cold", "post", "post_cold", "bare", "expected"),
    [
        ([0.04], [0.01, 0.02], [0.001], 2.0, [HOLDS, HOLDS, HOLDS]),
        ([0.01], [0.02], [0.02], 0.01, [FAILS, FAILS, FAILS]),
        ([0.02], [0.02], [0.001], 0.5, [HOLDS, HOLDS, HOLDS]),
        ([0.02, 0.01, 0.04], [0.02], [0.02, 0.005, 0.02], 2.0, [OPEN, OPEN, HOLDS]),
    ],
)
def test_norm_place(pre_cold, post, post_cold, bare, expected):
    assert verdicts(norm_place, stacks([0.04], pre_cold, post, post_cold, bare)) == expected


def test_the_highest_rate_of_a_stack_that_never_trains_is_half_the_lowest():
    facts = stacks([0.04], [0.04], [0.02, 0.01], [0.001])
    assert [2**rate for rate in norm_place.highest(facts, norm_place.POST)] == pytest.approx([0.02, 0.01] * 3)
    assert [2**rate for rate in norm_place.highest(facts, norm_place.POST_COLD)] == pytest.approx([0.0025] * SEEDS)


def test_the_map_of_norm_place_has_each_stack_at_each_rate():
    (svg,) = norm_place.draw(stacks([0.04], [0.02], [0.01], [0.005]))
    said = [text.text for text in ElementTree.fromstring(svg).iter("text") if text.get("class") is None]
    assert [float(cell) > norm_place.TRAINS for cell in said] == [rate > most for most in RATES[::-1] for rate in RATES]


def test_activations():
    arms = dict.fromkeys((*activations.UNGATED, *activations.GATED), 0.0)
    assert verdicts(activations, runs(arms | {"swiglu": -0.04, "geglu": -0.002})) == [HOLDS, FAILS]
    assert verdicts(activations, runs(arms | {"swiglu": -0.012}, noise=0.02))[0] == OPEN


def test_gqa_quality():
    assert verdicts(gqa_quality, runs({"MHA": 0, "GQA": 0.005, "MQA": 0.02})) == [HOLDS, HOLDS]
    assert verdicts(gqa_quality, runs({"MHA": 0, "GQA": 0.05, "MQA": -0.01})) == [FAILS, FAILS]


def test_positions():
    arms = dict.fromkeys(positions.KINDS, 0.0) | {"learned": 0.2, "sinusoidal": 0.01, "none": -0.1}
    assert verdicts(positions, runs(arms, noise=0.02)) == [HOLDS, OPEN, FAILS]


def test_extrapolation():
    facts = runs(dict.fromkeys(positions.KINDS, 0.0))
    for kind, rise in {"rope": 0.5, "alibi": -0.05, "sinusoidal": 2.0, "none": 1.0, "t5": 0.1, "shaw": 0.0}.items():
        for run in facts["runs"][kind]:
            run["at_length"] = {"128": run["loss"], "1024": run["loss"] + rise}
    for run in facts["runs"]["rope"]:
        run["at_length"]["1024, yarn"] = run["loss"] + 0.2
    for run in facts["runs"]["learned"]:
        run["at_length"] = {"128": run["loss"]}
    assert verdicts(extrapolation, facts) == [HOLDS, HOLDS, HOLDS, HOLDS]
    table = {row[0]: list(row[1:]) for row in extrapolation.tabulate(facts).rows}
    assert table["learned"][1] == "" and float(table["rope, yarn"][1]) < float(table["rope"][1])
    for run in facts["runs"]["alibi"]:
        run["at_length"]["1024"] = run["loss"] + 0.3
    assert verdicts(extrapolation, facts)[0] == FAILS


@pytest.mark.parametrize(
    ("gain", "plain", "expected"),
    [(0.2, 0.5, [HOLDS, HOLDS]), (0.01, 0.5, [FAILS, HOLDS]), (0.2, -0.3, [FAILS, FAILS])],
)
def test_adamw(gain, plain, expected):
    """The best cells are compared, whatever their decays are; Adam without decay is in both maps."""
    rates, decays = [1e-3, 3e-3], {"adamw": [0.0, 0.1, 1.0], "adam-l2": [0.0, 1e-3, 1e-2]}
    arms = {}
    for rate in rates:
        arms[adamw._name("adamw", 0.0, rate)] = plain + 0.1 * (rate == 1e-3)
        for kind, cost in (("adamw", -gain), ("adam-l2", 0.0)):
            for place, decay in enumerate(decays[kind][1:]):
                arms[adamw._name(kind, decay, rate)] = cost + 0.1 * (rate == 3e-3) + 0.3 * (place == 1)
    facts = runs(arms, rates=rates, decays=decays)
    assert verdicts(adamw, facts) == expected
    assert len(adamw.draw(facts)) == 2


def conversions(first, random, aligned=-0.1, noise=0.002):
    """Facts of a conversion whose mean loses 1 before uptraining, and 0.2 and 0.1 after; what the others lose beside it."""
    draw = np.random.default_rng(0).normal
    extra = {"aligned": aligned, "mean": 0.0, "first": first, "random": random}
    seeds = [
        {"original": 2.0 + i}
        | {p: [3.0 + i, *(2.0 + i + x + y + draw(0, noise) for y in (0.2, 0.1))] for p, x in extra.items()}
        for i in range(SEEDS)
    ]
    return {"shares": [0.05, 0.1], "seeds": seeds}


def test_gqa_conversion():
    assert verdicts(gqa_conversion, conversions(0.1, 0.4)) == [HOLDS, HOLDS, HOLDS]
    assert verdicts(gqa_conversion, conversions(-0.1, 0.4)) == [FAILS, HOLDS, HOLDS]
    assert verdicts(gqa_conversion, conversions(0.1, 0.4, aligned=0.01)) == [HOLDS, HOLDS, FAILS]
    assert verdicts(gqa_conversion, conversions(0.1, 0.1, -0.01, noise=0.2)) == [OPEN, OPEN, OPEN]
    rows = {row[0]: row[1:] for row in gqa_conversion.tabulate(conversions(0.1, 0.4)).rows}
    assert rows["mean"][0].startswith("1.000 ") and abs(float(rows["random"][1].split()[0]) - 0.6) < 0.005


def test_what_is_judged_of_a_conversion_is_the_first_share():
    facts = conversions(0.1, 0.4)
    for seed in facts["seeds"]:
        for pooling, found in seed.items():
            if pooling != "original":
                found[0], found[2] = 0.0, 10.0 - found[2]
    assert verdicts(gqa_conversion, facts) == [HOLDS, HOLDS, HOLDS]


def test_conversions_are_trained_for_their_shares(monkeypatch):
    s, trained = dict(gqa_conversion.EXPERIMENT.settings) | {"steps": 200, "shares": (0.05, 0.1), "seeds": 1}, []
    monkeypatch.setattr(gqa_conversion, "small_llama", lambda b, seed: Llama(LlamaConfig(9, 8, 1, 8, 8, 2, 8, 8)))
    monkeypatch.setattr(gqa_conversion, "loss", lambda model, b: 2.0 + model.config.n_kv_heads)
    monkeypatch.setattr(
        gqa_conversion,
        "learn",
        lambda model, b, seed: trained.append((model.config.n_kv_heads, b["steps"], b["rate"], seed)),
    )
    facts = gqa_conversion.measure(s, lambda what, settings, measured: measured())
    rate = s["rate"]
    assert trained == [(8, 200, rate, 0), *([(2, 10, rate / 2, 1000), (2, 20, rate / 2, 1000)] * 4)]
    assert facts["seeds"] == [{"original": 10.0, **dict.fromkeys(POOLINGS, [4.0] * 3)}]


def tunings(houlsby, lora, quantized, slower, merged, noise=0.002, moved=1e-6):
    """Facts of tunings whose full one gains 0.3; what the others gain of that, and how long a step takes beside the base's."""
    draw = np.random.default_rng(0).normal
    gains = {
        "full": 0.3,
        "Houlsby": 0.3 * houlsby,
        "LoRA": 0.3 * lora,
        "QLoRA": 0.3 * lora - quantized,
        "LoRA, rank 8": 0.28,
    }
    sizes = {"step_s": 0.01, "trained": 4000, "optimizer": 8000, "frozen": 10**6, "saved": 4500}
    seeds = [
        {"before": {"new": 2.4 + i, "old": 2.2 + i}}
        | {name: {"new": 2.4 + i - gain + draw(0, noise), "old": 2.3 + i, **sizes} for name, gain in gains.items()}
        for i in range(SEEDS)
    ]
    rounds = (0.001 * np.exp(draw(0, 0.2, 40))).tolist()
    ratios = {"base": 1.0, "LoRA, merged": merged, "LoRA": 1.2, "Houlsby": slower}
    times = {name: [ratio * t * np.exp(draw(0, 10 * noise)) for t in rounds] for name, ratio in ratios.items()}
    return {"seeds": seeds, "times": times, "moved": moved}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (tunings(0.99, 1.02, 0.005, 1.2, 1.0), [HOLDS] * 6),
        (tunings(0.6, 0.99, 0.005, 1.2, 1.0), [FAILS] + [HOLDS] * 5),
        (tunings(0.99, 0.6, 0.005, 1.2, 1.0), [HOLDS, FAILS] + [HOLDS] * 4),
        (tunings(0.99, 0.99, 0.06, 1.0, 1.1, moved=0.01), [HOLDS, HOLDS] + [FAILS] * 4),
        (tunings(0.9, 0.9, 0.02, 1.05, 1.03, noise=0.02), [OPEN] * 5 + [HOLDS]),
    ],
)
def test_tuning_methods(facts, expected):
    assert verdicts(tuning_methods, facts) == expected


def test_what_tuning_gains_and_forgets_is_in_the_table():
    facts = tunings(0.6, 0.8, 0.005, 1.2, 1.0, noise=1e-5)
    rows = {row[0]: row[1:] for row in tuning_methods.tabulate(facts).rows}
    assert rows["LoRA"][0].startswith("-0.240 ") and rows["LoRA"][1].startswith("+0.100 ")
    assert [rows[name][2] for name in ("full", "Houlsby", "LoRA")] == ["100%", "60%", "80%"]
    assert rows["Houlsby"][3:] == ["4.0", "8.0", "1000.0", "4.5", "10.0", "+20.0 %"]
    assert rows["full"][-1] == "" and rows["LoRA, merged"][-1] == "+0.0 %"


def masked(one, ten, told, without, noise=0.002):
    """Facts of masks that lose so much beside new ones, of pairs told (%), and of what leaving NSP out costs."""
    arms = {masking.ONE: one, masking.TEN: ten, masking.NEW: 0.0, masking.WITH: 0.0, masking.WITHOUT: without}
    facts = runs(arms, noise)
    for name, found in facts["runs"].items():
        for i, run in enumerate(found):
            figures = {"masked_accuracy": 0.2} | (
                {"nsp_accuracy": told / 100 + 0.001 * i} if name == masking.WITH else {}
            )
            run |= {"figures": figures, "guess": 5.0, "at_epoch": [[1.0, 4.0], [2.0, run["loss"]]]}
    return facts


@pytest.mark.parametrize(
    ("one", "ten", "told", "without", "noise", "expected"),
    [
        (1.0, 0.1, 60, -0.05, 0.002, [HOLDS, HOLDS, HOLDS, HOLDS]),
        (1.0, 0.0, 60, 0.0, 0.002, [HOLDS, HOLDS, HOLDS, HOLDS]),
        (0.01, -0.1, 51, 0.05, 0.002, [FAILS, FAILS, FAILS, FAILS]),
        (0.05, 0.05, 54.75, 0.03, 0.1, [OPEN, OPEN, OPEN, OPEN]),
    ],
)
def test_masking(one, ten, told, without, noise, expected):
    facts = masked(one, ten, told, without, noise)
    assert verdicts(masking, facts) == expected
    table = {row[0]: row[1:] for row in masking.tabulate(facts).rows}
    assert table[masking.NEW][1] == "" and table[masking.WITH][4] == f"{told + 0.25:.1f}"
    assert abs(float(table[masking.ONE][1].split()[0]) - one) < 3 * noise and len(masking.draw(facts)) == 2


def surfaces(exponent, bend=0.0):
    """Facts of a scaling along 1 + 9 / N^exponent + 40 / D^0.4; `bend` is added to the largest size's losses."""
    n, d = [1e4, 4e4, 1.6e5, 6.4e5], [1e5, 2e5, 4e5]
    random = np.random.default_rng(0)
    means = 1 + 9 * np.array(n)[:, None] ** -exponent + 40 * np.array(d) ** -0.4
    means[-1] += bend
    losses = [(means + random.normal(0, 0.002, means.shape)).tolist() for _ in range(SEEDS)]
    return {"parameters": [int(x) for x in n], "tokens": d, "losses": losses}


def test_scaling():
    assert verdicts(scaling, surfaces(0.2)) == [HOLDS] * 4
    assert verdicts(scaling, surfaces(0.2, bend=0.2))[2:] == [FAILS, FAILS]
    assert verdicts(scaling, surfaces(1.0))[:3] == [FAILS] * 3
    rows = {row[0]: row[1:] for row in scaling.tabulate(surfaces(0.2)).rows}
    suited = [float(cell.replace(",", "")) for cell in rows["parameters that suit so many tokens"]]
    exact = [(0.2 * 9 / (0.4 * 40) * d**0.4) ** 5 for d in (1e5, 2e5, 4e5)]
    assert all(0.5 < got / wanted < 2 for got, wanted in zip(suited, exact, strict=True)) and suited == sorted(suited)
    assert scaling.balanced((1, 9, 40, 0.2, 0.4), 1e5) == pytest.approx(exact[0])
    assert (scaling.balanced((1, 0, 9, 1, 1), 1), scaling.balanced((1, 9, 0, 1, 1), 1)) == (0, np.inf)


def test_wider_models_learn_at_lower_rates_from_smaller_weights():
    given = []

    def keep(what, settings, measured):
        b = settings["budget"]
        given.append((b["width"], b["rate"], b["init_std"]))
        return {"parameters": b["width"], "at_step": {"400": 3.0, "800": 2.0}, "loss": 1.0}

    facts = scaling.measure(scaling.EXPERIMENT.settings | {"widths": (16, 64, 256), "seeds": 1}, keep)
    assert given == [(16, 0.012, 0.2), (64, 0.003, 0.1), (256, 0.00075, 0.05)]
    assert facts["tokens"] == [204_800, 409_600, 819_200] and facts["losses"] == [[[3.0, 2.0, 1.0]] * 3]


def test_the_surface_that_made_the_losses_is_found():
    n, d = np.geomspace(1e4, 1e6, 4), np.geomspace(1e5, 1e6, 3)
    true = (1.2, 30.0, 200.0, 0.3, 0.5)
    losses = np.array([[scaling.foreseen(true, x, y) for y in d] for x in n])
    assert scaling.fit(n.tolist(), d.tolist(), losses) == pytest.approx(true, rel=1e-4)


def test_a_diverged_run_is_counted():
    facts = runs(dict.fromkeys(positions.KINDS, 0.0))
    facts["runs"]["alibi"][0] |= {"diverged": True, "curve": []}
    row = next(row for row in positions.EXPERIMENT.tabulate(facts).rows if row[0] == "alibi")
    assert row[-1] == 1 and positions.EXPERIMENT.draw(facts)


@pytest.mark.parametrize(("ratio", "verdict"), [(1.3, HOLDS), (1.0, FAILS), (1.075, OPEN)])
def test_rmsnorm_speed(ratio, verdict):
    random = np.random.default_rng(0)
    rounds = (0.001 * np.exp(random.normal(0, 0.02, 11))).tolist()
    times = {rms: rounds for rms, _ in rmsnorm_speed.KINDS.values()}
    times |= {
        n: (ratio * np.exp(random.normal(0, 0.02, 11)) * rounds).tolist() for _, n in rmsnorm_speed.KINDS.values()
    }
    assert verdicts(rmsnorm_speed, {"times": [times, times]}) == [verdict, verdict]


@pytest.mark.parametrize("curve", ["bound", "equal"])
def test_rope_that_does_not_decay_fails(curve):
    rope = find("rope-relative")
    facts = {"rope": 1e-6, "sinusoidal": 1.0, "layouts": 0.0, "curves": {"bound": [9.0, 8, 7] + [1.0] * 12}}
    facts["curves"]["equal"] = list(facts["curves"]["bound"])
    assert together(rope.judge(facts)) == HOLDS
    facts["curves"][curve] = [1.0] * 15
    assert together(rope.judge(facts)) == FAILS
    assert rope.judge(facts | {"rope": 0.01})[0].verdict == FAILS


def test_intervals_that_a_bound_divides_are_open():
    from lamoid.recipes.lab.experiment import decide_at_most

    assert decide_at_most(Effect(0, -1, 1, 0, 5), 1) == HOLDS
    assert decide_at_most(Effect(0, -1, 1, 0, 5), 0.5) == OPEN
    assert decide_at_most(Effect(0, 0.6, 1, 0, 5), 0.5) == FAILS
