"""A batch, token by token: which are trained, masked or padding, and whose document each is; and what looks wrong.

It is read from the tensors that the model gets, not from what made them. A token is trained where the
position before it has it as its label.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lamoid.data.instruct import Example
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.tokenizer import Tokenizer

State = Literal["trained", "masked", "padding"]


@dataclass(frozen=True)
class Token:
    """One token of a row. `text` is what it adds to its document's text, empty inside a character, or a special token's name.

    `document` counts from 0 in the row, None for padding; `position` from 0 in what attention sees as one.
    """

    id: int
    text: str
    is_special: bool
    state: State
    document: int | None
    position: int


@dataclass(frozen=True)
class Document:
    """A document's part in a row: its tokens from `start` up to `end`, where it is from, and where it was cut."""

    row: int
    number: int
    start: int
    end: int
    n_trained: int
    source: str = ""
    cut: str = ""
    example: Example | None = field(default=None, repr=False)


@dataclass(frozen=True)
class BatchView:
    """The rows of a batch. `sees_all` says whether the documents of a row see each other."""

    rows: list[list[Token]]
    documents: list[Document]
    sees_all: bool

    def count(self, state: State) -> int:
        """How many tokens are in a state."""
        return sum(token.state == state for row in self.rows for token in row)

    @property
    def share_trained(self) -> float:
        """Of all tokens but padding."""
        return self.count("trained") / max(self.count("trained") + self.count("masked"), 1)


def view_batch(
    input_ids: np.ndarray,
    labels: np.ndarray,
    segment_ids: np.ndarray | None,
    tokenizer: Tokenizer,
    examples: Sequence[Sequence[Example]] | None = None,
) -> BatchView:
    """Look at a batch of shape (B, T). `examples` are those packed into each row, where the rows are made of such.

    Without `segment_ids` every position sees all before it; documents are then told apart by the begin-of-text tokens,
    or by the end-of-text tokens where the tokenizer has no other. A row whose last label is trained is shown with that token.
    """
    read, rows, documents = _reader(tokenizer), list[list[Token]](), list[Document]()
    for number, (ids, targets) in enumerate(zip(input_ids.tolist(), labels.tolist(), strict=True)):
        trained = [False, *(target != IGNORED for target in targets)]
        ids = [*ids, targets[-1]] if trained[-1] else ids
        known = examples[number] if examples is not None else None
        owners = _count_documents(ids, tokenizer) if segment_ids is None else segment_ids[number].tolist()
        row: list[Token] = []
        for owner in range(owners[-1] + 1):
            start, end = owners.index(owner), len(owners) - owners[::-1].index(owner)
            own, first = ids[start:end], start if segment_ids is None else 0
            is_padding = known is not None and owner >= len(known)
            for at, (index, text, is_special) in enumerate(read(own)):
                state: State = "padding" if is_padding else "trained" if trained[start + at] else "masked"
                row.append(Token(index, text, is_special, state, None if is_padding else owner, first + at))
            if is_padding:
                continue
            example = known[owner] if known is not None else None
            where = (number, owner, start, end, sum(trained[start:end]))
            documents.append(_describe(where, own, len(ids), example, tokenizer))
        rows.append(row)
    return BatchView(rows, documents, segment_ids is None)


def _describe(
    where: tuple[int, int, int, int, int],
    ids: Sequence[int],
    row_tokens: int,
    example: Example | None,
    tokenizer: Tokenizer,
) -> Document:
    if example is not None:
        return Document(*where, example.conversation.source, "shortened" if example.was_cut else "", example)
    return Document(*where, cut=_cut(ids, where[2] == 0, where[3] == row_tokens, tokenizer))


def _count_documents(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The number of each token's document in its row, from the tokens that begin or end documents; a doubled one counts once."""
    begin, end = tokenizer.special_id("bos"), tokenizer.special_id("eos")
    starts, row = np.zeros(len(ids), dtype=bool), np.asarray(ids)
    if begin is not None and begin != end:
        starts[1:] = (row[1:] == begin) & (row[:-1] != begin)
    elif end is not None:
        starts[1:] = row[:-1] == end
    return [int(number) for number in starts.cumsum()]


def _cut(ids: Sequence[int], is_first: bool, is_last: bool, tokenizer: Tokenizer) -> str:
    """At which of its ends a document of continuous text was cut by the row's borders, as far as its tokens show."""
    begin, end = tokenizer.special_id("bos"), tokenizer.special_id("eos")
    at_front = is_first and begin is not None and ids[0] != begin
    at_end = is_last and end is not None and ids[-1] != end
    return {(True, True): "at both ends", (True, False): "at its beginning", (False, True): "at its end"}.get(
        (at_front, at_end), ""
    )


def _reader(tokenizer: Tokenizer) -> Callable[[Sequence[int]], Iterator[tuple[int, str, bool]]]:
    """A function from the ids of a document to each with what it adds to the text, and whether it is a special token."""
    special = {i: t.content for i, t in tokenizer.backend.get_added_tokens_decoder().items() if t.special}

    def read(ids: Sequence[int]) -> Iterator[tuple[int, str, bool]]:
        step = tokenizer.decode_stream([])
        for index in ids:
            if index in special:
                step = tokenizer.decode_stream([index])
            yield index, special[index] if index in special else step(index), index in special

    return read
