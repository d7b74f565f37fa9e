"""Sentences on disk, and the pairs of BERT's next-sentence prediction (Devlin et al. 2019, section 3.1).

A store is three flat arrays: the ids of all sentences, the end of each sentence among the ids, and the end of each
document among the sentences. They are mapped, not loaded, so a corpus of any size takes little memory.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lamoid.data.masked import Masking
from lamoid.data.packed import Position, epoch_order, group_passages, id_type, rows_at
from lamoid.data.padded import EncoderBatch, pad
from lamoid.data.sources import Passage
from lamoid.errors import DataError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.framing import share
from lamoid.tokenizers.tokenizer import Tokenizer

TOKENS_FILE, SENTENCES_FILE, DOCUMENTS_FILE = "tokens.bin", "sentences.bin", "documents.bin"
PAIR_SPECIALS = 3  # [CLS] A [SEP] B [SEP]
_PAIR_STREAM = 1  # keeps the draws of a pair apart from those of its mask
_SENTENCE_END = re.compile(r"(?<=[.!?…؟।])[\"'”’»)\]]*\s+|(?<=[。！？])(?![」』”’）])|(?<!\s)\s*\n\s*")


def split_sentences(text: str) -> list[str]:
    """A text in sentences, by its punctuation and line ends: rough, the same for all scripts, and nothing but space lost."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    pieces = (text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True))
    return [piece.strip() for piece in pieces if piece.strip()]


@dataclass(frozen=True, eq=False)
class SentenceStore:
    """Ids of all sentences (N,); where each sentence ends among them (S,); where each document ends among the sentences."""

    tokens: np.ndarray
    sentence_ends: np.ndarray
    document_ends: np.ndarray


def write_sentences(
    folder: Path, passages: Iterable[Passage], tokenizer: Tokenizer, on_bytes: Callable[[int], object] = lambda n: None
) -> int:
    """Encode the sentences of passages into the three files of a store; returns the number of tokens.

    Each passage counts as a document, so that a text that is one long document has others to draw from.
    """
    n_tokens = n_sentences = 0
    with (
        (folder / TOKENS_FILE).open("wb") as tokens,
        (folder / SENTENCES_FILE).open("wb") as sentence_ends,
        (folder / DOCUMENTS_FILE).open("wb") as document_ends,
    ):
        for group in group_passages(passages):
            for sentences in _encode([passage.text for passage in group], tokenizer):
                lengths = np.array([len(ids) for ids in sentences], dtype=np.int64)
                np.concatenate(sentences).astype(id_type(tokenizer.vocab_size)).tofile(tokens)
                (n_tokens + np.cumsum(lengths, dtype=np.int64)).tofile(sentence_ends)
                n_tokens, n_sentences = n_tokens + int(lengths.sum()), n_sentences + len(lengths)
                np.array([n_sentences], dtype=np.int64).tofile(document_ends)
            on_bytes(sum(len(p.text.encode()) for p in group))
    return n_tokens


def _encode(texts: list[str], tokenizer: Tokenizer) -> Iterator[list[list[int]]]:
    """The sentences of each text that has any, in ids."""
    split = [split_sentences(text) for text in texts]
    ids = iter(tokenizer.encode_many([sentence for sentences in split for sentence in sentences]))
    for sentences in split:
        encoded = [row for _ in sentences if (row := next(ids))]
        if encoded:
            yield encoded


def open_sentences(folder: Path, tokenizer: Tokenizer) -> SentenceStore:
    """Map a store. Raises DataError where its files are missing or contradict each other."""
    kinds = {TOKENS_FILE: id_type(tokenizer.vocab_size), SENTENCES_FILE: np.int64, DOCUMENTS_FILE: np.int64}
    try:
        store = SentenceStore(*(np.memmap(folder / name, dtype=kind, mode="r") for name, kind in kinds.items()))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is damaged ({error}); delete it, it will be made again") from error
    if store.document_ends[-1] != len(store.sentence_ends) or store.sentence_ends[-1] != len(store.tokens):
        raise DataError(f"{folder} is damaged: its files are of unequal length; delete it, it will be made again")
    return store


@dataclass(frozen=True, eq=False)
class NextSentencePairs:
    """Batches of [CLS] A [SEP] B [SEP] with hidden tokens; B follows A in half of them and is a random text in the others.

    A document is cut into chunks of whole sentences that fill a row; each epoch cuts every chunk between two sentences
    into A and what follows, at a place of its own, and draws for it whether B is what follows or as much text from another
    document. All of it is a function of (seed, epoch, row). What does not fit is cut from A's beginning and B's end.
    Unlike BERT's own code, which rebalances as it goes: documents of one sentence are left out, and a random B
    is about as long as the true one, so that lengths give nothing away.
    """

    store: SentenceStore
    row_tokens: int
    batch_rows: int
    seed: int
    masking: Masking
    cls_id: int
    sep_id: int
    pad_id: int

    def __post_init__(self) -> None:
        if self.row_tokens < PAIR_SPECIALS + 2:
            raise DataError(f"a row of {self.row_tokens} tokens cannot hold a pair; {PAIR_SPECIALS + 2} are needed")
        if not self.rows_per_epoch or len(self.store.document_ends) < 2:
            raise DataError(
                f"the text has {len(self.store.document_ends)} documents and {self.rows_per_epoch} pairs of sentences; "
                f"next-sentence prediction needs two documents: give more text, or train without it"
            )

    @cached_property
    def _chunks(self) -> np.ndarray:
        return _find_chunks(self.store, self.row_tokens - PAIR_SPECIALS)

    @property
    def rows_per_epoch(self) -> int:
        return len(self._chunks)

    def __call__(self, position: Position) -> tuple[EncoderBatch, Position]:
        """The batch at a position, and the position behind it. An epoch's last batch is filled up from the next one."""
        chosen, position = rows_at(
            position, self.batch_rows, lambda epoch: epoch_order(self.seed, epoch, self.rows_per_epoch)[0]
        )
        rows = []
        for epoch, row in chosen:
            first, second, is_random = self.pair(epoch, row)
            ids = np.concatenate([[self.cls_id], first, [self.sep_id], second, [self.sep_id]]).astype(np.int64)
            segments = np.repeat([0, 1], [len(first) + 2, len(second) + 1])
            rows.append((*self.masking(ids, epoch, row), segments, is_random))
        hidden, labels, segments, is_random = zip(*rows, strict=True)
        batch = EncoderBatch(
            pad(hidden, self.pad_id),
            pad([np.ones_like(ids) for ids in hidden], 0),
            pad(segments, 0),
            pad(labels, IGNORED),
            torch.tensor(is_random, dtype=torch.int64),
        )
        return batch, position

    def pair(self, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """A and B as ids, cut to the row, and whether B is a random text."""
        begin, end, document = self._chunks[row].tolist()
        random = np.random.default_rng((self.seed, epoch if self.masking.dynamic else 0, row, _PAIR_STREAM))
        middle, is_random = int(random.integers(begin + 1, end)), bool(random.random() < 0.5)
        first, second = self._text(begin, middle), self._text(middle, end)
        if is_random:
            second = self._random_text(document, len(second), random)
        n_first, n_second = share(len(first), len(second), self.row_tokens - PAIR_SPECIALS)
        return first[len(first) - n_first :], second[:n_second], is_random

    def _random_text(self, document: int, n_tokens: int, random: np.random.Generator) -> np.ndarray:
        """Whole sentences of another document, from any on, until there are `n_tokens` or the document ends."""
        ends = self.store.document_ends
        own_begin, own_end = int(ends[document - 1]) if document else 0, int(ends[document])
        begin = int(random.integers(int(ends[-1]) - (own_end - own_begin)))
        begin += own_end - own_begin if begin >= own_begin else 0
        last = int(ends[np.searchsorted(ends, begin, side="right")])
        wanted = self._start(begin) + n_tokens
        end = begin + 1 + int(np.searchsorted(self.store.sentence_ends[begin : last - 1], wanted))
        return self._text(begin, end)

    def _text(self, begin: int, end: int) -> np.ndarray:
        return self.store.tokens[self._start(begin) : self._start(end)]

    def _start(self, sentence: int) -> int:
        return int(self.store.sentence_ends[sentence - 1]) if sentence else 0


def _find_chunks(store: SentenceStore, n_tokens: int) -> np.ndarray:
    """(first sentence, end, document) of each chunk: at least two sentences, and `n_tokens` where the document has them."""
    found = array("q")
    begin = 0
    for document, end in enumerate(store.document_ends.tolist()):
        for first, last in _cut(store, begin, end, n_tokens):
            found.extend((first, last, document))
        begin = end
    return np.frombuffer(found, dtype=np.int64).reshape(-1, 3)


def _cut(store: SentenceStore, begin: int, end: int, n_tokens: int) -> list[tuple[int, int]]:
    """The chunks of one document; a last sentence that would stand alone joins the chunk before it."""
    ends = store.sentence_ends[begin:end]
    start = int(store.sentence_ends[begin - 1]) if begin else 0
    cuts = [0]
    while cuts[-1] < len(ends):
        filled = int(np.searchsorted(ends, (start if not cuts[-1] else ends[cuts[-1] - 1]) + n_tokens)) + 1
        cuts.append(min(max(filled, cuts[-1] + 2), len(ends)))
    if len(cuts) > 2 and cuts[-1] - cuts[-2] == 1:
        del cuts[-2]
    return [(begin + a, begin + b) for a, b in zip(cuts, cuts[1:], strict=False) if b - a >= 2]
