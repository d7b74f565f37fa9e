"""Conversations -> ids, and which of them an assistant wrote: what fine-tuning trains on, for many conversations at once.

The ids are those of the whole conversation as the format writes it. An answer begins where the format, given the
messages before it, would let the model begin; it ends with the end-of-turn token behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tokenizers as runtime

from lamoid.errors import DataError, LamoidError
from lamoid.tokenizers.chat import ChatEncoder, Format, Message, Piece, TemplateFormat
from lamoid.tokenizers.tokenizer import CANNOT_ENCODE, runtime_errors

MAX_TEXTS = 512
"""Conversations that are encoded at once: enough for all cores, few enough for little memory (150 bytes a token)."""

Span = tuple[int, int]


class RewrittenError(DataError):
    """The format writes the beginning of a conversation differently when more follows, so that no border can be seen."""


@dataclass(frozen=True)
class Encoded:
    """Ids of a conversation, and of each whether it belongs to an answer that is to be trained."""

    ids: list[int]
    trained: list[bool]


def encode_answers(
    encoder: ChatEncoder, conversations: Sequence[Sequence[Message]], answers: Sequence[Sequence[int]]
) -> list[Encoded | LamoidError]:
    """Encode conversations; `answers` has, for each, the indices of the assistant messages that are to be trained.

    What is wrong with one of them stands in its place: UsageError for messages that are none, CheckpointError for a
    template's complaint, RewrittenError where the answers cannot be told from the rest. Raises CheckpointError where the
    template breaks a limit.
    """
    results: list[Encoded | LamoidError] = []
    to_offsets = _with_offsets(encoder)
    for start in range(0, len(conversations), MAX_TEXTS):
        part = slice(start, start + MAX_TEXTS)
        results += _encode(encoder, to_offsets, conversations[part], answers[part])
    return results


def _encode(
    encoder: ChatEncoder,
    to_offsets: Mapping[int, runtime.Tokenizer],
    conversations: Sequence[Sequence[Message]],
    answers: Sequence[Sequence[int]],
) -> list[Encoded | LamoidError]:
    protected = [_protect(encoder, messages) for messages in conversations]
    requests = [
        request
        for (messages, _), wanted in zip(protected, answers, strict=True)
        for request in (_renderings(messages, wanted) if not isinstance(messages, LamoidError) else [])
    ]
    texts = iter(render_many(encoder.format, requests))
    cut: list[tuple[list[Piece], list[Span]] | LamoidError] = []
    for (messages, back), wanted in zip(protected, answers, strict=True):
        if isinstance(messages, LamoidError):
            cut.append(messages)
            continue
        own = [next(texts) for _ in _renderings(messages, wanted)]
        try:
            whole, *parts = [_raise_or(text) for text in own]
            pieces = encoder.cut(whole, back)
            cut.append((pieces, find_answers(whole, parts[::2], parts[1::2], pieces)))
        except LamoidError as error:
            cut.append(error)
    encodings = _encode_texts(encoder, to_offsets, [p for c in cut if not isinstance(c, LamoidError) for p in c[0]])
    return [c if isinstance(c, LamoidError) else _mark(*c, encodings) for c in cut]


def _protect(
    encoder: ChatEncoder, messages: Sequence[Message]
) -> tuple[list[Message] | LamoidError, Mapping[int, str]]:
    try:
        return encoder.protect(messages)
    except LamoidError as error:
        return error, {}


def _renderings(messages: Sequence[Message], answers: Sequence[int]) -> list[tuple[Sequence[Message], bool]]:
    """The whole conversation; then for each answer what stands before it, and what stands before its end."""
    parts = [request for i in answers for request in ((messages[:i], True), (messages[: i + 1], False))]
    return [(messages, False), *parts]


def render_many(form: Format, requests: Sequence[tuple[Sequence[Message], bool]]) -> Sequence[str | LamoidError]:
    """What the format makes of each pair of messages and `add_generation_prompt`, or what it says against them."""
    if isinstance(form, TemplateFormat):
        return form.many(requests)
    return [_format(form, *request) for request in requests]


def _format(form: Format, messages: Sequence[Message], add_generation_prompt: bool) -> str | LamoidError:
    try:
        return form(messages, add_generation_prompt)
    except LamoidError as error:
        return error


def _raise_or(text: str | LamoidError) -> str:
    if isinstance(text, LamoidError):
        raise text
    return text


def find_answers(whole: str, before: Sequence[str], until: Sequence[str], pieces: Sequence[Piece]) -> list[Span]:
    """Where the answers stand in a conversation's text, each with the end-of-turn token behind it.

    `before` and `until` are the texts of the messages before each answer, with the beginning of an answer, and up to
    its end; `pieces` are those of the whole. White space behind the end-of-turn token is not part of the answer. Some
    formats end a conversation with a token that no turn in its middle has: what `until` has in common with the whole counts.
    Raises RewrittenError where `before` is no beginning of the whole, or where no end of turn shows that `until` is.
    """
    specials = [(piece.start, piece.start + len(piece.text)) for piece in pieces if piece.special is not None]
    spans = []
    for prompt, rest in zip(before, until, strict=True):
        if not whole.startswith(prompt):
            raise RewrittenError(
                "the chat template writes what stands before an answer differently when the answer follows"
            )
        start, end = len(prompt), _n_common(whole, rest)
        end = next((a for a, b in specials if a < end < b), end)
        inside = [span for span in specials if start <= span[0] and span[1] <= end]
        turn_end = _first_of_tail(whole, inside, end)
        if turn_end is None and not whole.startswith(rest):
            raise RewrittenError("the chat template writes an answer differently when more follows")
        spans.append((start, max(turn_end or end, start)))
    return spans


def _n_common(a: str, b: str) -> int:
    """The number of characters that two texts have in common at their beginning."""
    if a.startswith(b):
        return len(b)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _first_of_tail(text: str, specials: Sequence[Span], end: int) -> int | None:
    """The end of the first special tokens behind which only special tokens and white space follow; None without them."""
    found: int | None = None
    for a, b in reversed(specials):
        if text[b:end].strip():
            break
        found = found if b == end and found is not None else b
        end = a
    return found


def _with_offsets(encoder: ChatEncoder) -> dict[int, runtime.Tokenizer]:
    """For each runtime of the encoder one with the same ids whose offsets cover white space too."""
    found = {}
    for backend in (encoder.tokenizer.backend, encoder.runtime_for(Piece(1, "", None))):
        if id(backend) not in found:
            copy = runtime.Tokenizer.from_str(backend.to_str())
            copy.post_processor = None
            copy.encode_special_tokens = True
            found[id(backend)] = copy
    return found


def _encode_texts(
    encoder: ChatEncoder, to_offsets: Mapping[int, runtime.Tokenizer], pieces: Sequence[Piece]
) -> dict[int, runtime.Encoding]:
    """The encoding of each piece that is a text, by the piece's identity; on all cores."""
    groups: dict[int, list[Piece]] = {}
    for piece in pieces:
        if piece.special is None:
            groups.setdefault(id(encoder.runtime_for(piece)), []).append(piece)
    found: dict[int, runtime.Encoding] = {}
    for backend, group in groups.items():
        with runtime_errors(CANNOT_ENCODE):
            encodings = to_offsets[backend].encode_batch([p.text for p in group], add_special_tokens=False)
        found |= {id(piece): encoding for piece, encoding in zip(group, encodings, strict=True)}
    return found


def _mark(pieces: Sequence[Piece], answers: Sequence[Span], encodings: Mapping[int, runtime.Encoding]) -> Encoded:
    """The ids of all pieces, and which of them have a character of an answer."""
    encoded = Encoded([], [])
    for piece in pieces:
        if piece.special is not None:
            encoded.ids.append(piece.special)
            encoded.trained.append(any(a <= piece.start < b for a, b in answers))
            continue
        encoding = encodings[id(piece)]
        trained = [False] * len(encoding.ids)
        for a, b in answers:
            first, last = max(a - piece.start, 0), min(b - piece.start, len(piece.text))
            if first < last:
                begin, end = _tokens_of(encoding, first, last, len(piece.text))
                trained[begin:end] = [True] * (end - begin)
        encoded.ids.extend(encoding.ids)
        encoded.trained.extend(trained)
    return encoded


def _tokens_of(encoding: runtime.Encoding, first: int, last: int, n_characters: int) -> Span:
    """The tokens that have one of the characters from `first` up to `last`, both among `n_characters`."""
    begin = _token_at(encoding, first, n_characters)
    end = _token_at(encoding, last, n_characters)
    characters = encoding.token_to_chars(end) if end < len(encoding.ids) else None
    return begin, end + (characters is not None and characters[0] < last)


def _token_at(encoding: runtime.Encoding, character: int, n_characters: int) -> int:
    """The first token of a character, or of the next one that any token has; behind the last there is none."""
    for at in range(character, n_characters):
        token = encoding.char_to_token(at)
        if token is not None:
            return int(token)
    return len(encoding.ids)
