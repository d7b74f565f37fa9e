"""Small models of the laboratory: a run follows from its settings, is kept, and a stopped report goes on with the next."""

import json
import math

import pytest
import torch

from lamoid.inference.score import score
from lamoid.models.variant import Variant
from lamoid.recipes.lab import budget, small_models
from lamoid.recipes.lab.arms import run_arms
from lamoid.recipes.lab.budget import BUDGET, TRIAL
from lamoid.recipes.lab.experiments import EXPERIMENTS, find
from lamoid.recipes.lab.records import Parts, perform
from lamoid.recipes.lab.small_models import trained

SETTINGS = BUDGET | TRIAL | {"seeds": 2}


def without_times(runs):
    return [{key: value for key, value in run.items() if key != "step_s"} for run in runs]


def test_a_run_is_made_once_and_the_same_again(tmp_path):
    first = trained(Parts(tmp_path / "a"), SETTINGS, {"positions": "alibi"}, 0, (32,))
    again = trained(Parts(tmp_path / "b"), SETTINGS, {"positions": "alibi"}, 0, (32,))
    other = trained(Parts(tmp_path / "b"), SETTINGS, {"positions": "alibi"}, 1, (32,))
    assert without_times([first]) == without_times([again]) != without_times([other])
    assert set(first["at_length"]) == {"32"} and len(list((tmp_path / "b").glob("*.json"))) == 2


def test_a_stopped_report_goes_on_with_the_run_it_was_at(tmp_path, monkeypatch):
    experiment, calls, real = find("gqa-quality"), [], small_models._train

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(small_models, "_train", counted)
    with pytest.raises(KeyboardInterrupt):
        perform(experiment, tmp_path, trial=True)
    assert not list(tmp_path.glob("*/facts.json"))
    perform(experiment, tmp_path, trial=True)
    arguments = [json.dumps(call[:3]) for call in calls]
    assert arguments.count(arguments[2]) == 2 and all(arguments.count(a) == 1 for a in arguments if a != arguments[2])


def test_experiments_share_their_runs(tmp_path):
    perform(find("positions"), tmp_path, trial=True)
    before = set((tmp_path / "parts").glob("*.json"))
    perform(find("extrapolation"), tmp_path, trial=True)
    assert set((tmp_path / "parts").glob("*.json")) == before


def test_arms_differ_in_nothing_else(tmp_path):
    """The same seed gives all arms the same batches: with the same part under two names, the same run."""
    facts = run_arms({"one": {}, "two": {"positions": "rope"}}, SETTINGS, Parts(tmp_path))
    assert without_times(facts["runs"]["one"]) == without_times(facts["runs"]["two"])


def test_a_run_that_diverges_has_the_loss_of_a_guess(tmp_path):
    run = trained(Parts(tmp_path), SETTINGS, {"rate": 1e30, "warmup": 0, "steps": 12}, 0)
    assert run["diverged"] and run["loss"] == math.log(SETTINGS["vocabulary"])


@pytest.mark.parametrize("floor", [0.25, 1.0])
def test_a_budget_says_what_is_read_and_at_which_rate(floor, tmp_path, monkeypatch):
    """So many of the text's tokens, again and again; rates from the peak to the floor's share of it."""
    seen, real = {}, budget.train

    def spy(model, rows, *arguments, schedule, **more):
        seen.update(tokens=len(rows.tokens), rates=[schedule(step) for step in range(4)])
        return real(model, rows, *arguments, schedule=schedule, **more)

    monkeypatch.setattr(budget, "train", spy)
    reported = trained(Parts(tmp_path), SETTINGS, {"tokens": 40, "rate": 0.004, "floor": floor}, 0, steps=(1, 3))
    assert seen["tokens"] == 40 and list(reported["at_step"]) == ["1", "3"]
    middle = 0.004 * (floor + (1 - floor) / 2)
    assert seen["rates"] == pytest.approx([0.004, 0.004, middle, 0.004 * floor])
    assert reported["at_step"]["3"] == reported["loss"] != reported["at_step"]["1"]


def test_loss_is_that_of_the_whole_row(tmp_path, monkeypatch):
    """Window by window it is what the model says of the row at once, where the window holds all of it."""
    seen = {}

    def spy(model, documents, n_bytes, *, context):
        seen.update(model=model, ids=documents[0])
        assert len(documents) == 1 and context == 4096
        return score(model, documents, n_bytes, context=context)

    monkeypatch.setattr(budget, "score", spy)
    run = trained(Parts(tmp_path), SETTINGS, {"context": 4096, "steps": 1, "rows": 1}, 0)
    ids = torch.tensor(seen["ids"])
    assert isinstance(seen["model"], Variant)
    with torch.inference_mode():
        logits = seen["model"](ids[None, :-1])[0]
    assert run["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, ids[1:])), abs=1e-5)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if find(name).trains])
def test_budgets_are_whole(name):
    settings = find(name).settings
    assert set(BUDGET) < set(settings) and settings["seeds"] >= 3, "fewer seeds could not show anything"
