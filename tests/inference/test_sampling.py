"""The rules of sampling against transformers' own, and the draws against their probabilities."""

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lamoid.errors import UsageError
from lamoid.inference.sampling import Sampler, Sampling, filtered_probabilities, log_softmax, penalise_repetition

OFF = dict(repetition_penalty=1.0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
RULES = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 0.6, "top_k": 12, "top_p": 0.8},
    {"repetition_penalty": 1.2, "temperature": 1.7, "top_k": 20, "top_p": 0.7, "min_p": 0.05},
]


def theirs(logits, previous, rules):
    """Probabilities as transformers' `generate` makes them, in its order."""
    s = Sampling(**(OFF | rules))
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(s.repetition_penalty)])
    processors.append(TemperatureLogitsWarper(s.temperature))
    if s.top_k:
        processors.append(TopKLogitsWarper(s.top_k))
    if s.top_p < 1:
        processors.append(TopPLogitsWarper(s.top_p))
    if s.min_p:
        processors.append(MinPLogitsWarper(s.min_p))
    scores = processors(torch.tensor([previous]), torch.from_numpy(logits)[None].double())
    return scores.softmax(dim=-1)[0].numpy()


def ours(logits, previous, rules):
    s = Sampling(**(OFF | rules))
    return filtered_probabilities(penalise_repetition(logits, previous, s.repetition_penalty), s)


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_probabilities_equal_transformers(rules, seed, scale):
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(50) * scale).astype(np.float32).astype(np.float64)
    previous = random.integers(0, 50, 12).tolist()
    expected = theirs(logits, previous, rules)
    probabilities = ours(logits, previous, rules)
    np.testing.assert_array_equal(probabilities > 0, expected > 0)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_ties_are_as_likely_as_in_transformers(rules, seed):
    """Which of several equal logits a nucleus keeps is left to the sort; how many, and the probabilities, are not."""
    random = np.random.default_rng(seed)
    logits = random.integers(-2, 3, 50).astype(np.float64) / 2
    expected = np.sort(theirs(logits, [1, 2], rules | {"repetition_penalty": 1.0}))
    np.testing.assert_allclose(np.sort(ours(logits, [1, 2], rules | {"repetition_penalty": 1.0})), expected, rtol=1e-12)


def test_all_equal_logits_stay_a_distribution():
    for rules in RULES:
        probabilities = ours(np.zeros(50), [], rules)
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)
        assert (probabilities > 0).any()


def test_a_penalty_leaves_the_logits_it_was_given():
    logits = np.array([1.0, -1.0, 2.0])
    np.testing.assert_array_equal(penalise_repetition(logits, [0, 1, 0], 2.0), [0.5, -2.0, 2.0])
    np.testing.assert_array_equal(logits, [1.0, -1.0, 2.0])


def test_greedy_takes_the_most_likely():
    random = np.random.default_rng(0)
    sampler = Sampler(Sampling(temperature=0.0, top_k=3, top_p=0.1, min_p=0.5), seed=1)
    for _ in range(50):
        logits = random.standard_normal(30).astype(np.float32)
        assert sampler.choose(logits, []) == int(torch.from_numpy(logits).argmax())


def test_greedy_sees_the_repetition_penalty():
    logits = np.array([2.0, 1.9, -1.0], dtype=np.float32)
    assert Sampler(Sampling(temperature=0.0), 0).choose(logits, [0]) == 0
    assert Sampler(Sampling(temperature=0.0, repetition_penalty=1.5), 0).choose(logits, [0]) == 1


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = np.array([1.0, 30.0, -20.0, 29.0], dtype=np.float32)
    sampler = Sampler(Sampling(temperature=temperature, top_p=1.0), seed=0)
    assert [sampler.choose(logits, []) for _ in range(20)] == [1] * 20


def test_a_huge_temperature_is_uniform():
    np.testing.assert_allclose(ours(np.array([1.0, 30.0, -20.0, 29.0]), [], {"temperature": 1e300}), 0.25)


@pytest.mark.parametrize("rules", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 5}, {"min_p": 0.2}], ids=str)
def test_draws_follow_the_probabilities(rules):
    """Pearson's chi-square of 20,000 draws, below the 99.9 % quantile (Wilson & Hilferty 1931)."""
    logits = np.random.default_rng(3).standard_normal(20).astype(np.float32)
    sampling = Sampling(**(OFF | rules))
    sampler, n = Sampler(sampling, seed=5), 20_000
    counts = np.bincount([sampler.choose(logits, []) for _ in range(n)], minlength=20)
    expected = filtered_probabilities(logits, sampling) * n
    assert not counts[expected == 0].any()
    possible = expected > 0
    freedom = possible.sum() - 1
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < quantile


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_draw_nothing_impossible(drawn):
    sampler = Sampler(Sampling(temperature=1.0, top_k=2, top_p=1.0), 0)
    sampler._random = SimpleNamespace(random=lambda: drawn)
    assert sampler.choose(np.array([-9, 1, -9, 2, -9], dtype=np.float32), []) == (1 if drawn == 0 else 3)


def test_a_seed_decides_the_draws():
    logits = np.random.default_rng(0).standard_normal(100).astype(np.float32)

    def draws(seed):
        sampler = Sampler(Sampling(), seed)
        return [sampler.choose(logits, []) for _ in range(30)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    assert draws(2**63 - 1) == draws(2**63 - 1)


OUT_OF_RANGE = [
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("top_p", 0.0),
    ("top_p", -0.5),
    ("top_p", 2.0),
    ("top_p", 1.0001),
    ("top_p", math.nan),
    ("top_k", -1),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("min_p", math.nan),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", math.inf),
    ("repetition_penalty", math.nan),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE, ids=str)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=rf"^{name} is .*; it must be "):
        Sampling(**{name: value})


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(UsageError, match=rf"^seed is {seed}; it must be a whole number from 0 to 2\^63 - 1"):
        Sampler(Sampling(), seed)


WRONG_TYPES = """
from lamoid.errors import UsageError
from lamoid.inference.sampling import Sampler, Sampling

calls = [(name, v) for name in ("temperature", "top_p", "min_p", "repetition_penalty") for v in ("1", None, True, [], 1j)]
calls += [("top_k", v) for v in ("1", None, True, 2.5, 2.0, float("nan"))]
calls += [("seed", v) for v in ("1", None, True, 1.0, float("nan"))]
for name, value in calls:
    try:
        Sampler(Sampling(), value) if name == "seed" else Sampling(**{name: value})
    except UsageError as error:
        assert str(error).startswith(f"{name} is {value!r}; it must be "), error
    else:
        raise AssertionError(f"{name} {value!r} was taken")
Sampling(temperature=1, top_p=1, min_p=0, repetition_penalty=1)  # whole numbers are numbers
print(len(calls))
"""


def test_a_value_of_the_wrong_type_is_refused_by_name():
    """In a process without the types' own checks, which only tests have: a user's YAML or JSON may hold anything."""
    output = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True)
    assert (output.stdout, output.stderr) == ("31\n", "")


@pytest.mark.parametrize(
    "rules", [{"top_k": 0}, {"top_p": 1.0}, {"min_p": 0.0}, {"temperature": 0.0}, {"min_p": 1.0}], ids=str
)
def test_the_ends_of_the_ranges_are_allowed(rules):
    Sampling(**rules)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 5)])
def test_log_softmax_equals_torch(shape):
    logits = (np.random.default_rng(0).standard_normal(shape) * 50).astype(np.float32)
    expected = torch.from_numpy(logits).double().log_softmax(dim=-1).numpy()
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-14, atol=1e-14)
    assert log_softmax(logits).dtype == np.float64


def test_log_softmax_of_excluded_and_huge_logits():
    logits = np.array([-np.inf, 1e30, 1e30, -1e30])
    np.testing.assert_allclose(log_softmax(logits), [-np.inf, -math.log(2), -math.log(2), -2e30])
