"""Learning merges against the `tokenizers` trainer, and against counting everything anew for each merge."""

import json
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamoid.tokenizers.bpe import SPECIAL_TOKENS, train_bpe
from lamoid.tokenizers.merges import FEWEST, GAP, learn


def symbols_of(tokenizer, texts):
    rows = []
    for encoding in tokenizer.backend.encode_batch(texts, add_special_tokens=False):
        ids, words = np.array(encoding.ids), np.array(encoding.word_ids)
        rows += [np.insert(ids, np.flatnonzero(np.diff(words)) + 1, GAP), [GAP]]
    return np.concatenate(rows).astype(np.int32)


@pytest.mark.parametrize("n_before", [0, 150])
def test_merges_are_those_of_the_library(training, n_before):
    """From bytes, and from where its own training would have been after 150 merges."""
    before = train_bpe(training, 256 + len(SPECIAL_TOKENS) + n_before)
    expected = json.loads(train_bpe(training, before.vocab_size + 700).backend.to_str())["model"]["merges"]
    spelled = {index: token for token, index in before.backend.get_vocab().items()}
    learned = islice(learn(symbols_of(before, training), spelled, lambda token: True), 700)
    assert [list(token.pair) for token in learned] == expected[n_before:]


def slowly(words, spelled):
    """Sennrich's algorithm as it is written: count all, join the most frequent, and again."""
    words, spelled = [list(word) for word in words], dict(spelled)
    while True:
        counts = Counter(pair for word in words for pair in pairwise(word))
        known = set(spelled.values())
        possible = [(-n, p) for p, n in counts.items() if n >= FEWEST and spelled[p[0]] + spelled[p[1]] not in known]
        if not possible:
            return
        left, right = min(possible)[1]
        new = max(spelled) + 1
        spelled[new] = spelled[left] + spelled[right]
        yield spelled[left], spelled[right]
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (left, right):
                    word[i : i + 2] = [new]
                i += 1


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=8))
def test_it_counts_as_the_algorithm_does(words):
    """Few symbols and long runs of one, which is where occurrences overlap."""
    spelled = dict(enumerate("abcd"))
    flat = np.array([index for word in words for index in [*word, GAP]], dtype=np.int32)
    assert [token.pair for token in learn(flat, spelled, lambda token: True)] == list(slowly(words, spelled))


def test_only_what_may_be_a_token_is_learned():
    flat = np.array([0, 1, 2, GAP] * 5, dtype=np.int32)
    learned = [token.token for token in learn(flat, dict(enumerate("xyz")), lambda token: token != "xy")]
    assert learned == ["yz", "xyz"]


def test_a_character_is_a_token_once_it_saves_more_than_any_pair():
    """`c`, written as three bytes, stands 4 times and saves 2 each time; `ab` stands 9 times."""
    words = [[0, 1]] * 9 + [[2, 0]] * 4
    flat = np.array([index for word in words for index in [*word, GAP]], dtype=np.int32)
    learned = list(learn(flat, dict(enumerate("abc")), lambda token: True, {2: 2}))
    assert [(token.token, token.pair) for token in learned] == [("ab", ("a", "b")), ("c", None), ("ca", ("c", "a"))]


def test_nothing_comes_of_nothing():
    assert not list(learn(np.array([], dtype=np.int32), {0: "a"}, lambda token: True))
    assert not list(learn(np.array([0, 0, GAP], dtype=np.int32), {0: "a"}, lambda token: True))
