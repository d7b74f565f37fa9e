"""The generation loop: prompts, a decoder and a way to sample, to text, whole or as it comes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from lamoid.errors import UsageError
from lamoid.inference.sampling import Sampler, Sampling, log_softmax
from lamoid.tokenizers.tokenizer import Tokenizer

FinishReason = Literal["length", "end", "stop"]


@runtime_checkable
class Decoder(Protocol):
    """What the loop needs of a model: logits after the prompts, then after one more token of each sequence."""

    max_seq_len: int

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray: ...
    def step(self, ids: Sequence[int]) -> np.ndarray: ...
    def keep_rows(self, rows: list[int]) -> None: ...


@dataclass
class Completion:
    """What was generated for one prompt.

    `log_probabilities` are natural logarithms under the model itself, before any rule of sampling, one for each id.
    `finish_reason`: `length` (max_new_tokens), `end` (an end-of-text token, not in `ids`) or `stop` (a stop string, not
    in `text`).
    """

    text: str = ""
    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    finish_reason: FinishReason = "length"


@dataclass(frozen=True)
class Chunk:
    """A piece of text that is final, of the sequence with this index; `completion` is set on its last chunk."""

    index: int
    text: str
    completion: Completion | None = None


def stream(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    sampling: Sampling | None = None,
    max_new_tokens: int = 128,
    stop: Sequence[str] = (),
    end_ids: Sequence[int] | None = None,
    seed: int = 0,
) -> Iterator[Chunk]:
    """Generate for all prompts at once, yielding text as soon as it cannot change.

    Each sequence draws from its own generator with the same seed, so a prompt in a batch gets what it gets alone.
    Text that may be the beginning of a stop string, or half a character, is held back until that is decided.
    Ids that the model has and the tokenizer lacks, with which vocabularies are padded, are never chosen.
    Raises UsageError, before the first step, for a value out of range, an empty prompt, or a prompt
    that with `max_new_tokens` exceeds the context.
    """
    sampling = sampling or Sampling()
    if not isinstance(stop, list | tuple) or not all(isinstance(s, str) and s for s in stop):
        raise UsageError(f"stop is {stop!r}; it must be a list of strings that are not empty")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number above 0")
    prompt_ids = [_prompt_ids(prompt, tokenizer) for prompt in prompts]
    for ids in prompt_ids:
        if len(ids) + max_new_tokens > decoder.max_seq_len:
            raise UsageError(
                f"{len(ids)} prompt tokens + max_new_tokens {max_new_tokens} exceed the context of {decoder.max_seq_len}; "
                f"shorten one of them"
            )
    ends = frozenset(_default_ends(tokenizer) if end_ids is None else end_ids)
    rows = [
        _Sequence(index, ids, Sampler(sampling, seed), tuple(stop), ends, max_new_tokens, tokenizer)
        for index, ids in enumerate(prompt_ids)
    ]
    return _run(decoder, rows)


def generate(
    decoder: Decoder, tokenizer: Tokenizer, prompts: Sequence[str | Sequence[int]], **arguments: object
) -> list[Completion]:
    """`stream` to its end: the completion of each prompt, in order. Arguments as there."""
    completions: dict[int, Completion] = {}
    for chunk in stream(decoder, tokenizer, prompts, **arguments):  # type: ignore[arg-type]
        if chunk.completion is not None:
            completions[chunk.index] = chunk.completion
    return [completions[index] for index in range(len(prompts))]


def _run(decoder: Decoder, rows: list["_Sequence"]) -> Iterator[Chunk]:
    if not rows:
        return
    logits = decoder.prefill([row.prompt for row in rows])
    while True:
        for row, row_logits in zip(rows, logits, strict=True):
            yield from row.advance(row_logits)
        going = [i for i, row in enumerate(rows) if not row.finished]
        if not going:
            return
        if len(going) < len(rows):
            decoder.keep_rows(going)
            rows = [rows[i] for i in going]
        logits = decoder.step([row.completion.ids[-1] for row in rows])


class _Sequence:
    """One prompt on its way: ids so far, the text that is already out, and whether it is done."""

    def __init__(
        self,
        index: int,
        prompt: list[int],
        sampler: Sampler,
        stop: tuple[str, ...],
        ends: frozenset[int],
        max_new_tokens: int,
        tokenizer: Tokenizer,
    ) -> None:
        self.index, self.prompt, self.finished = index, prompt, False
        self._previous = list(prompt)
        self.completion = Completion(prompt_tokens=len(prompt))
        self._sampler, self._stop, self._ends = sampler, stop, ends
        self._max_new_tokens, self._tokenizer = max_new_tokens, tokenizer
        self._decode = tokenizer.decode_stream(prompt)
        self._undecoded: list[int] = []
        self._emitted = 0

    def advance(self, logits: np.ndarray) -> Iterator[Chunk]:
        """Choose a token and yield what text became final by it."""
        done = self.completion
        index = self._sampler.choose(logits[: self._tokenizer.vocab_size], self._previous)
        if index in self._ends:
            yield self._finish("end")
            return
        done.ids.append(index)
        self._previous.append(index)
        done.log_probabilities.append(float(log_softmax(logits)[index]))
        self._add_text(index)
        stops_at = min((at for at in (done.text.find(s, self._emitted) for s in self._stop) if at != -1), default=None)
        if stops_at is not None:
            done.text, self._undecoded = done.text[:stops_at], []
            yield self._finish("stop")
        elif len(done.ids) == self._max_new_tokens:
            yield self._finish("length")
        else:
            final = len(done.text) - self._held_back()
            if final > self._emitted:
                begin, self._emitted = self._emitted, final
                yield Chunk(self.index, done.text[begin:final])

    def _add_text(self, index: int) -> None:
        """Append what the id adds to the text; nothing yet if it ends inside a character."""
        self._undecoded.append(index)
        piece = self._decode(index)
        if piece:
            self.completion.text += piece
            self._undecoded = []

    def _held_back(self) -> int:
        """Length of the longest end of the text that may grow into a stop string."""
        text = self.completion.text
        lengths = (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n]))
        return min(max(lengths, default=0), len(text) - self._emitted)

    def _finish(self, reason: FinishReason) -> Chunk:
        done = self.completion
        self.finished, done.finish_reason = True, reason
        done.text += self._tokenizer.decode(self._undecoded)
        return Chunk(self.index, done.text[self._emitted :], done)


def _prompt_ids(prompt: str | Sequence[int], tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not ids or prompt == "":
        raise UsageError("the prompt is empty; give at least one character")
    if not isinstance(prompt, str) and not all(0 <= i < tokenizer.vocab_size for i in ids):
        raise UsageError(f"the prompt has ids outside the vocabulary; they run from 0 to {tokenizer.vocab_size - 1}")
    return ids


def _default_ends(tokenizer: Tokenizer) -> list[int]:
    end = tokenizer.special_id("eos")
    return [] if end is None else [end]
