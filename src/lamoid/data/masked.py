"""Masked language modelling: which tokens are hidden, and rows of running text in which they are.

15 % of the tokens are chosen; of these 80 % become [MASK], 10 % a random token, 10 % stay (Devlin et al. 2019, 3.1).
The mask of a row is a function of (seed, epoch, row) and nothing else, so a run goes on exactly where it was:
dynamic masking draws a new one each epoch (Liu et al. 2019, 4.1), static masking always that of epoch 0.
"""

import unicodedata
from dataclasses import dataclass

import numpy as np
import torch

from lamoid.data.packed import Position, epoch_order, rows_at
from lamoid.data.padded import EncoderBatch, pad
from lamoid.errors import DataError, UsageError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.bpe import BYTE_OF_SYMBOL
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.tokenizers.wordpiece import CONTINUES

MASK_SHARE, RANDOM_SHARE = 0.8, 0.1


@dataclass(frozen=True, eq=False)
class Masking:
    """How tokens are hidden. `is_special` and `begins_word` (None: tokens are hidden singly) are tables over the ids."""

    mask_id: int
    is_special: np.ndarray
    begins_word: np.ndarray | None
    rate: float
    dynamic: bool
    seed: int

    def __call__(self, ids: np.ndarray, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """A row of ids -> (ids with some hidden, labels: the ids that were there, IGNORED elsewhere).

        round(rate · n) of its n tokens that are not special are chosen, at least one. A random token is any but a special
        one; BERT's own code draws from those too.
        """
        random = np.random.default_rng((self.seed, epoch if self.dynamic else 0, row))
        candidates = np.flatnonzero(~self.is_special[ids])
        n_chosen = max(round(self.rate * len(candidates)), 1) if len(candidates) else 0
        if self.begins_word is None:
            chosen = random.permutation(candidates)[:n_chosen]
        else:
            chosen = _choose_words(self._words(ids, candidates), n_chosen, random)
        hidden, labels = ids.astype(np.int64), np.full(len(ids), IGNORED, dtype=np.int64)
        labels[chosen] = ids[chosen]
        draw = random.random(len(chosen))
        hidden[chosen[draw < MASK_SHARE]] = self.mask_id
        replaced = chosen[(draw >= MASK_SHARE) & (draw < MASK_SHARE + RANDOM_SHARE)]
        hidden[replaced] = random.choice(np.flatnonzero(~self.is_special), len(replaced))
        return hidden, labels

    def _words(self, ids: np.ndarray, candidates: np.ndarray) -> list[np.ndarray]:
        """The positions of each word; one also begins behind a special token."""
        assert self.begins_word is not None
        if not len(candidates):
            return []
        begins = self.begins_word[ids[candidates]] | (np.diff(candidates, prepend=-1) > 1)
        return np.split(candidates, np.flatnonzero(begins[1:]) + 1)


def _choose_words(words: list[np.ndarray], n_tokens: int, random: np.random.Generator) -> np.ndarray:
    """Words in random order, each taken if it still fits into `n_tokens`; where none does, a part of one."""
    chosen: list[int] = []
    order = random.permutation(len(words))
    for number in order:
        if len(chosen) + len(words[number]) <= n_tokens:
            chosen += words[number].tolist()
        if len(chosen) == n_tokens:
            break
    if not chosen and len(order):
        chosen = words[order[0]][:n_tokens].tolist()
    return np.array(chosen, dtype=np.int64)


def make_masking(
    tokenizer: Tokenizer, *, rate: float = 0.15, whole_words: bool = False, dynamic: bool = True, seed: int = 0
) -> Masking:
    """The masking for a tokenizer. Raises UsageError for a rate out of range, DataError where it has no mask token."""
    mask_id = tokenizer.special_id("mask")
    if mask_id is None:
        raise DataError("the tokenizer has no mask token; train one with --kind wordpiece or --kind roberta")
    if not 0 < rate < 1:
        raise UsageError(f"the masking rate is {rate}; it must be above 0 and below 1")
    added = tokenizer.backend.get_added_tokens_decoder()
    special = [index for index, token in added.items() if token.special]
    is_special = np.zeros(tokenizer.vocab_size, dtype=bool)
    is_special[special + [tokenizer.backend.token_to_id(token) for token in tokenizer.specials.values()]] = True
    return Masking(mask_id, is_special, word_beginnings(tokenizer) if whole_words else None, rate, dynamic, seed)


def word_beginnings(tokenizer: Tokenizer) -> np.ndarray:
    """Which ids begin a word (V,). Chinese characters and Japanese kana are words by themselves, as in BERT.

    WordPiece marks what does not. In byte-level BPE a token goes on with a word where it begins with a letter, a digit, or
    the inside of a character; behind a space it does not. Letters right behind punctuation so count with it: `(hello`.
    """
    tokens = [tokenizer.backend.id_to_token(index) or "" for index in range(tokenizer.vocab_size)]
    if type(tokenizer.backend.model).__name__ == "WordPiece":
        return np.array([not token.startswith(CONTINUES) for token in tokens])
    return np.array([_begins_word(token) for token in tokens])


def _begins_word(token: str) -> bool:
    raw = bytes(BYTE_OF_SYMBOL.get(symbol, 0x20) for symbol in token[:4])
    if not raw or 0x80 <= raw[0] < 0xC0:
        return not raw
    first = raw.decode("utf-8", "ignore")[:1]
    if not first:  # the first byte of a character that is cut: E3 to E9 are kana and Chinese, F0 rare Chinese and emoji
        return 0xE3 <= raw[0] < 0xEA or raw[0] >= 0xF0
    return 0x3040 <= ord(first) < 0xA000 or ord(first) >= 0xF900 or unicodedata.category(first)[0] not in "LMN"


@dataclass(frozen=True)
class FullSentences:
    """RoBERTa's rows: [CLS], running text across documents with [SEP] between them, [SEP] (Liu et al. 2019, 4.2).

    `tokens` is a store in which `write_tokens` put the separator behind each document. With dynamic masking the
    windows of each epoch begin at an offset of its own, as in PackedRows; with static masking they stay.
    """

    tokens: np.ndarray
    row_tokens: int
    batch_rows: int
    seed: int
    masking: Masking
    cls_id: int
    sep_id: int

    def __post_init__(self) -> None:
        if self.row_tokens < 3 or len(self.tokens) < self.window_tokens:
            raise DataError(
                f"the text has {len(self.tokens)} tokens; a row of {self.row_tokens} takes {max(self.row_tokens - 2, 1)} of "
                f"them and two special ones: give more text or a shorter row (at least 3)"
            )

    @property
    def window_tokens(self) -> int:
        """Tokens of text in a row."""
        return self.row_tokens - 2

    @property
    def rows_per_epoch(self) -> int:
        """Windows that fit into the text; dynamic masking leaves up to one of them for the offset."""
        spare = self.window_tokens - 1 if self.masking.dynamic else 0
        return max((len(self.tokens) - spare) // self.window_tokens, 1)

    def __call__(self, position: Position) -> tuple[EncoderBatch, Position]:
        """The batch at a position, and the position behind it. An epoch's last batch is filled up from the next one."""
        chosen, position = rows_at(position, self.batch_rows, lambda epoch: self._epoch(epoch)[0])
        masked = [self.masking(self._row(epoch, row), epoch, row) for epoch, row in chosen]
        ids, labels = pad([row for row, _ in masked], 0), pad([row for _, row in masked], IGNORED)
        return EncoderBatch(ids, torch.ones_like(ids), torch.zeros_like(ids), labels), position

    def _row(self, epoch: int, row: int) -> np.ndarray:
        start = row * self.window_tokens + self._epoch(epoch)[1]
        window = self.tokens[start : start + self.window_tokens]
        return np.concatenate([[self.cls_id], window, [self.sep_id]]).astype(np.int64)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, int]:
        spare = len(self.tokens) - self.rows_per_epoch * self.window_tokens
        return epoch_order(self.seed, epoch, self.rows_per_epoch, spare if self.masking.dynamic else 0)
