"""Two sides measured in pairs: how far they are apart, how sure that is, and what could have been seen at all."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE, POWER = 0.95, 0.8


@dataclass(frozen=True)
class Effect:
    """Mean of paired differences with its 95 % interval (Student's t), and the smallest mean that n pairs could show.

        low, high = mean ∓ t(0.975) · s / √n        smallest = (t(0.975) + t(0.8)) · s / √n

    with s the standard deviation of the differences and n − 1 degrees of freedom: a true mean of `smallest` would have an
    interval beside 0 in about 80 % of repetitions (Cohen 1988, chapter 2). One pair says nothing: its interval is infinite.
    """

    mean: float
    low: float
    high: float
    smallest: float
    n_pairs: int


def effect(differences: Sequence[float]) -> Effect:
    """The effect of paired differences."""
    n = len(differences)
    mean = math.fsum(differences) / n
    if n < 2:
        return Effect(mean, -math.inf, math.inf, math.inf, n)
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    wide = student_quantile((1 + CONFIDENCE) / 2, n - 1)
    return Effect(mean, mean - wide * error, mean + wide * error, (wide + student_quantile(POWER, n - 1)) * error, n)


def differences(ones: Sequence[float], others: Sequence[float]) -> Effect:
    """The effect of one − other, pair by pair."""
    return effect([one - other for one, other in zip(ones, others, strict=True)])


def ratios(ones: Sequence[float], others: Sequence[float]) -> Effect:
    """The effect on ln(one / other), pair by pair: for times, whose errors multiply."""
    return effect([math.log(one / other) for one, other in zip(ones, others, strict=True)])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent p of y ≈ c · x^p, by least squares through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


@functools.cache
def student_quantile(p: float, degrees: int) -> float:
    """The t below which a share p ≥ 0.5 of Student's distribution lies, by bisection of its integrated density."""
    low, high = 0.0, 1.0
    while _student_share(high, degrees) < p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, degrees) < p else (low, middle)
    return high


def _student_share(t: float, degrees: int) -> float:
    """½ + ∫₀ᵗ Γ((ν + 1) / 2) / (√(νπ) Γ(ν / 2)) · (1 + x² / ν)^(−(ν + 1) / 2) dx, with x = √ν tan u to keep the tail short."""
    u = np.linspace(0.0, math.atan(t / math.sqrt(degrees)), 2001)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    heights = np.cos(u) ** (degrees - 1)
    weights = np.where(np.arange(2001) % 2, 4.0, 2.0)  # Simpson's
    weights[[0, -1]] = 1.0
    return 0.5 + scale * float((heights * weights).sum()) * float(u[1]) / 3
