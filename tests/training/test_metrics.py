"""The progress line: what it counts is named, and slow rates are not rounded away."""

import pytest

from lamoid.training.loop import StepReport
from lamoid.training.metrics import Display


@pytest.mark.parametrize(
    ("n", "seconds", "counted", "text"),
    [
        (8192, 2.0, "trained tok", "step 1/4 · loss 2.500 · 4,096 trained tok/s · "),
        (16, 0.5, "rows", "step 1/4 · loss 2.500 · 32 rows/s · "),
        (2, 5.0, "rows", "step 1/4 · loss 2.500 · 0.4 rows/s · "),
    ],
)
def test_the_rate_says_what_it_counts(n, seconds, counted, text, capsys):
    Display(4, 0, counted).step(StepReport(1, 2.5, 1.0, 1e-3, n, seconds))
    assert capsys.readouterr().err.startswith(text)


def test_a_skipped_first_step_has_no_loss(capsys):
    Display(4, 0, "rows").step(StepReport(1, float("nan"), 1.0, 1e-3, 2, 1.0, "the loss is nan"))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "step 1 skipped: the loss is nan" and said[1].startswith("step 1/4 · loss nan · 2.0 rows/s")
