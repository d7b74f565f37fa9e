"""Intervals and detectable effects, beside scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from lamoid.recipes.lab.experiment import Check, decide, together
from lamoid.recipes.lab.paired import Effect, differences, effect, ratios, slope, student_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 29, 300])
@pytest.mark.parametrize("p", [0.5, 0.8, 0.9, 0.975, 0.999])
def test_quantiles_are_those_of_scipy(degrees, p):
    assert student_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-6, abs=1e-9)


def test_interval_is_that_of_a_paired_t_test():
    random = np.random.default_rng(0)
    ones, others = random.normal(1.0, 1.0, 9), random.normal(0.5, 1.0, 9)
    seen = differences(ones.tolist(), others.tolist())
    expected = stats.ttest_rel(ones, others)
    low, high = expected.confidence_interval(0.95)
    assert (seen.low, seen.high, seen.n_pairs) == (pytest.approx(low), pytest.approx(high), 9)
    assert seen.mean == pytest.approx((ones - others).mean())
    quotient = ratios(np.exp(ones).tolist(), np.exp(others).tolist())
    assert (quotient.mean, quotient.low) == (pytest.approx(seen.mean), pytest.approx(seen.low))


def test_the_smallest_effect_is_seen_four_times_in_five():
    """Drawn 4,000 times: pairs whose true mean is the smallest effect of their true spread, and intervals that exclude 0."""
    random, n = np.random.default_rng(0), 6
    smallest = (student_quantile(0.975, n - 1) + student_quantile(0.8, n - 1)) / math.sqrt(n)
    draws = [effect(random.normal(smallest, 1.0, n).tolist()) for _ in range(4000)]
    assert 0.77 < np.mean([seen.low > 0 for seen in draws]) < 0.86
    nothing = [effect(random.normal(0.0, 1.0, n).tolist()) for _ in range(4000)]
    assert 0.04 < np.mean([seen.low > 0 or seen.high < 0 for seen in nothing]) < 0.06


def test_one_pair_says_nothing():
    assert effect([3.0]) == Effect(3.0, -math.inf, math.inf, math.inf, 1)
    assert decide(effect([3.0]), 0.0) == "undecided"


def test_slope_is_the_exponent():
    assert slope([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2.0)
    assert slope([64, 128, 512], [7, 7, 7]) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.0, 2.0, "holds"), (0.9, 2.0, "undecided"), (0.1, 0.99, "does not hold here"), (0.1, 1.0, "undecided")],
)
def test_a_verdict_is_where_the_whole_interval_lies(low, high, verdict):
    assert decide(Effect(0.0, low, high, 0.0, 5), 1.0) == verdict


def test_a_claim_holds_with_all_its_parts():
    def of(*verdicts):
        return together([Check("", verdict, "") for verdict in verdicts])

    assert of("holds", "holds") == "holds"
    assert of("holds", "undecided") == "undecided"
    assert of("holds", "undecided", "does not hold here") == "does not hold here"
    assert of() == "undecided"
