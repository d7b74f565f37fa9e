"""Small BERTs of the laboratory: arms differ in what they are compared in, and in nothing else."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lamoid.data.masked import FullSentences, Masking
from lamoid.nn.losses import IGNORED
from lamoid.recipes.evaluation import first_epoch
from lamoid.recipes.lab import small_encoders
from lamoid.recipes.lab.budget import BUDGET, TRIAL
from lamoid.recipes.lab.records import Parts
from lamoid.recipes.lab.small_encoders import guessing, spread, take_turns, trained_encoder

SETTINGS = BUDGET | TRIAL | {"tokens": 56, "every": 2}
MASK_ID, WINDOW = 3, 14


def rows(n_windows=4, batch_rows=2):
    """Windows of ids from 5 on, with masks that are static."""
    is_special = np.arange(40) < 5
    masking = Masking(MASK_ID, is_special, None, 0.3, dynamic=False, seed=7)
    tokens = np.random.default_rng(0).integers(5, 40, n_windows * WINDOW)
    return FullSentences(tokens, WINDOW + 2, batch_rows, 7, masking, 1, 2)


def epochs(batches, n_epochs, per_epoch=2):
    """What is read and what was hidden in each epoch: (text, is hidden), its rows sorted."""
    position, found = (0, 0), []
    for _ in range(n_epochs):
        text, hidden = [], []
        for _ in range(per_epoch):
            batch, position = batches(position)
            chosen = batch.labels != IGNORED
            text += torch.where(chosen, batch.labels, batch.input_ids).tolist()
            hidden += chosen.tolist()
        order = sorted(range(len(text)), key=text.__getitem__)
        found.append(([text[i] for i in order], [hidden[i] for i in order]))
    return found


@pytest.mark.parametrize("n_masks", [1, 3, 6])
def test_masks_take_turns_over_the_same_windows(n_masks):
    found = epochs(take_turns(rows(), n_masks), 6)
    assert all(text == found[0][0] for text, _ in found), "the text stays where it is"
    hidden = [mask for _, mask in found]
    assert all((hidden[i] == hidden[j]) == (i % n_masks == j % n_masks) for i in range(6) for j in range(6))


def test_arms_read_in_the_same_order():
    ones, others = (epochs(lambda p, n=n: take_turns(rows(), n)(p), 3) for n in (1, 3))
    assert ones[0] == others[0] and [text for text, _ in ones] == [text for text, _ in others]


def test_what_is_read_lies_over_the_whole_text():
    found = spread(np.arange(1000), 7, 40).reshape(-1, 7)
    assert len(found) == 5 and (np.diff(found, axis=1) == 1).all()
    assert found[0, 0] == 0 and found[-1, -1] == 993 and not (found[:, 0] % 7).any()


def test_a_guess_is_the_cross_entropy_of_frequencies():
    tokens = np.random.default_rng(1).integers(5, 30, 500)
    batches = list(first_epoch(rows()))
    labels = torch.cat([batch.labels[batch.labels != IGNORED] for batch in batches])
    logits = torch.tensor(np.bincount(tokens, minlength=40) + 1.0).log().expand(len(labels), -1)
    assert guessing(tokens, rows(), 40) == pytest.approx(float(F.cross_entropy(logits, labels)))


def without_times(run):
    return {key: value for key, value in run.items() if key != "step_s"}


def test_masks_differ_from_the_second_epoch_on(tmp_path):
    """In the first one all arms have the same; later not. The same run is the same again."""
    keep, short = Parts(tmp_path), SETTINGS | {"steps": 2}
    one, many = (trained_encoder(keep, short, {"masks": n}, 0) for n in (1, 40))
    assert without_times(one) == without_times(many) and one["at_epoch"] == [(1.0, one["loss"])]
    again = trained_encoder(Parts(tmp_path / "again"), short, {"masks": 1}, 0)
    assert without_times(again) == without_times(one)
    long = SETTINGS | {"steps": 6, "every": 3}
    one, many = (trained_encoder(keep, long, {"masks": n}, 0) for n in (1, 40))
    assert one["loss"] != many["loss"] and [epoch for epoch, _ in one["at_epoch"]] == [1.5, 3.0]


def test_only_the_objective_knows_of_pairs(tmp_path, monkeypatch):
    """With NSP and without the same batches are read, and the same held-out rows."""
    seen, real = [], small_encoders.learn

    def spy(model, b, seed, then, batches, objective):
        seen.append((batches, type(model.head).__name__, model.encoder.embedding.weight.detach().clone()))
        return real(model, b, seed, then, batches, objective)

    monkeypatch.setattr(small_encoders, "learn", spy)
    two = [trained_encoder(Parts(tmp_path), SETTINGS, {"nsp": nsp}, 3) for nsp in (True, False)]
    assert ["nsp_accuracy" in run["figures"] for run in two] == [True, False] and two[0]["guess"] == two[1]["guess"]
    (ones, _, weights), (others, _, same_weights) = seen
    assert [kind for _, kind, _ in seen] == ["PretrainingHead", "MLMHead"] and torch.equal(weights, same_weights)
    first, second = ones((0, 0))[0], others((0, 0))[0]
    assert torch.equal(first.input_ids, second.input_ids) and torch.equal(first.labels, second.labels)


def test_a_run_that_diverges_has_the_loss_of_a_guess(tmp_path):
    run = trained_encoder(Parts(tmp_path), SETTINGS | {"rate": 1e30, "warmup": 0, "steps": 12}, {"masks": 1}, 0)
    assert run["diverged"] and run["loss"] == run["guess"]
