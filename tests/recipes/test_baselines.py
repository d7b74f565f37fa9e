"""What a model is compared with, against the plainest implementation of the same formula."""

import math
import random
from collections import defaultdict

import pytest

from lamoid.recipes.baselines import ngram_bits_per_byte, xz_bits_per_byte


def plainly(training, heldout, order):
    """Witten and Bell's rule byte by byte, with dictionaries."""
    counts = defaultdict(lambda: defaultdict(int))
    for length in range(order):
        for i in range(length, len(training)):
            counts[training[i - length : i]][training[i]] += 1

    def probability(history, byte):
        shorter = probability(history[1:], byte) if history else 1 / 256
        seen = counts.get(history)
        if not seen:
            return shorter
        return (seen.get(byte, 0) + len(seen) * shorter) / (sum(seen.values()) + len(seen))

    bits = [-math.log2(probability(heldout[i - order + 1 : i], heldout[i])) for i in range(order - 1, len(heldout))]
    return sum(bits) / len(bits)


def text(seed, n_words=400):
    draw = random.Random(seed)
    words = ["the", "llama", "lạc đà", "羊驼", "saw", "a", "b\n\n", "라마"]
    return " ".join(draw.choices(words, k=n_words)).encode()


@pytest.mark.parametrize("order", range(1, 9))
def test_ngrams_equal_the_plain_formula(order):
    training, heldout = text(0), text(1, 80)
    assert ngram_bits_per_byte(training, heldout, order) == pytest.approx(plainly(training, heldout, order), rel=1e-12)


@pytest.mark.parametrize("order", [1, 3, 8])
def test_ngrams_of_any_bytes_equal_the_plain_formula(order):
    """All 256 bytes, the highest too, and held-out bytes that training never had."""
    draw = random.Random(1)
    training = bytes(draw.choices([0, 1, 2, 128, 254, 255], k=700))
    heldout = bytes(draw.choices([0, 1, 77, 128, 255], k=200))
    assert ngram_bits_per_byte(training, heldout, order) == pytest.approx(plainly(training, heldout, order), rel=1e-12)


def test_an_order_that_does_not_fit_into_64_bits_is_refused():
    with pytest.raises(AssertionError):
        ngram_bits_per_byte(text(0), text(1), 9)


def test_bytes_never_seen_need_a_little_over_eight_bits():
    training, heldout = b"a" * 1000, b"zq" * 20
    expected = -math.log2(1 / 1001 / 256)  # one kind in 1000 counts: 1 / (1000 + 1) of 1/256
    assert ngram_bits_per_byte(training, heldout, 1) == pytest.approx(expected, rel=1e-12)


def test_more_history_helps_on_text_and_a_copy_is_nearly_free():
    training, heldout = text(0, 3000), text(1)
    bits = [ngram_bits_per_byte(training, heldout, order) for order in (1, 2, 3)]
    assert bits == sorted(bits, reverse=True)
    assert ngram_bits_per_byte(training, training[:500], 5) < 1.5


def test_xz_on_noise_on_a_copy_and_on_text():
    draw = random.Random(0)
    noise, other = draw.randbytes(40_000), draw.randbytes(20_000)
    assert 7.9 < xz_bits_per_byte(noise, other) < 8.1
    assert xz_bits_per_byte(noise, noise[5000:25_000]) < 0.5
    assert 0.1 < xz_bits_per_byte(text(0, 3000), text(1)) < 4
