"""Speculation without a second model: what followed the last few tokens before is guessed to follow them again.

A guess of k tokens is read in one step together with the token before it; each guess that turns out right saves a step,
since its logits are there already. They are the very bits that a step of its own would give, so the text does not depend
on the guesses, however it is sampled. Source: Leviathan et al. 2023; drafts from n-grams: Saxena 2023, "Prompt Lookup".
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lamoid.inference.engine import NativeDecoder

N = 3
"""Tokens that must have occurred before in this order."""
LEAST_GUESSES, MOST_GUESSES = 3, 11
"""With the token before them these are whole tiles of four, which share one look at the weights."""


class SpeculatingDecoder:
    """A NativeDecoder that reads ahead where a text repeats itself. A batch of several sequences is decoded as usual."""

    def __init__(self, decoder: NativeDecoder) -> None:
        self.decoder, self.max_seq_len = decoder, decoder.max_seq_len
        self.n_guessed, self.n_right = 0, 0
        self._ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # N tokens -> the index behind their last occurrence
        self._guesses: list[int] = []
        self._waiting: list[np.ndarray] = []  # the logits behind each guess
        self._is_alone, self._most = False, LEAST_GUESSES

    def prefill(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Read the prompts; returns the logits of the token after each."""
        self._forget_guesses()
        self._is_alone, self._ids, self._next = len(prompts) == 1, [], {}
        if self._is_alone:
            for index in prompts[0]:
                self._append(index)
        return self.decoder.prefill(prompts)

    def step(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Append one token to each sequence; returns the logits of the next."""
        if not self._is_alone:
            return self.decoder.step(ids)
        (index,) = ids
        self._append(index)
        if self._guesses and self._guesses[0] == index:
            self.n_right += 1
            self._guesses = self._guesses[1:]
            logits, *self._waiting = self._waiting
            if not self._guesses:
                self._most = min(self._most + 4, MOST_GUESSES)
            return logits[None]
        if self._guesses:
            self._most = LEAST_GUESSES
        self._forget_guesses()
        self._guesses = self._guess()
        self.n_guessed += len(self._guesses)
        logits, *self._waiting = self.decoder.step_many([index, *self._guesses])
        return logits[None]

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these sequences alone, in this order."""
        self.decoder.keep_rows(rows)

    def _append(self, index: int) -> None:
        if len(self._ids) >= N:
            self._next[tuple(self._ids[-N:])] = len(self._ids)
        self._ids.append(index)

    def _guess(self) -> list[int]:
        at = self._next.get(tuple(self._ids[-N:]))
        if at is None:
            return []
        n = len(self._ids)
        guesses: list[int] = []
        for i in range(at, at + min(self._most, self.max_seq_len - n)):  # behind the end a circle goes round again
            guesses.append(self._ids[i] if i < n else guesses[i - n])
        return guesses

    def _forget_guesses(self) -> None:
        if self._guesses:
            self.decoder.forget(len(self._guesses))
        self._guesses, self._waiting = [], []
