"""Conversations -> examples: ids, which of them are trained, what was cut, and what is held out."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lamoid.data.conversations import Conversation
from lamoid.errors import DataError, LamoidError, UsageError
from lamoid.tokenizers.answers import Encoded, RewrittenError, encode_answers
from lamoid.tokenizers.chat import ChatEncoder, Format, Message
from lamoid.tokenizers.tokenizer import Tokenizer

TrainOn = Literal["all", "last"]
Long = Literal["cut", "drop"]


@dataclass(frozen=True, eq=False)
class Example:
    """A conversation, or a part of it, as ids (int32) and whether each is trained (bool); the first id never is."""

    ids: np.ndarray
    trained: np.ndarray
    conversation: Conversation
    was_cut: bool = False

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class EncodedSet:
    """Examples in the order of their conversations, and how many conversations were treated in which way.

    `n_cut` were shortened or divided, `n_dropped` too long even so, `n_unrolled` became one example for each answer because
    the template rewrites earlier turns, `n_untrained` had no token to train, `n_bad` were refused by the template.
    """

    examples: list[Example]
    n_cut: int = 0
    n_dropped: int = 0
    n_unrolled: int = 0
    n_untrained: int = 0
    n_bad: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of all examples."""
        return sum(map(len, self.examples))

    @property
    def n_trained(self) -> int:
        """Tokens that are trained."""
        return sum(int(example.trained.sum()) for example in self.examples)

    @property
    def summary(self) -> str:
        """All counts in one sentence."""
        counts = {
            "cut": self.n_cut,
            "too long and dropped": self.n_dropped,
            "divided into their answers, as the template rewrites earlier turns": self.n_unrolled,
            "without a trained token and dropped": self.n_untrained,
            "refused by the template": self.n_bad,
        }
        said = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
        share = self.n_trained / max(self.n_tokens, 1)
        return f"{len(self.examples):,} examples of {self.n_tokens:,} tokens, {share:.0%} of them trained{said}"


@dataclass(frozen=True)
class _Part:
    """What of a conversation becomes one example: messages, and the indices of the answers among them that are trained."""

    order: tuple[int, int]
    conversation: Conversation
    messages: tuple[Message, ...]
    answers: tuple[int, ...]
    was_cut: bool = False


def encode_conversations(
    conversations: Sequence[Conversation],
    tokenizer: Tokenizer,
    encoder: ChatEncoder | None,
    *,
    train_on: TrainOn = "all",
    context: int,
    long: Long = "cut",
    skip_bad: bool = False,
) -> EncodedSet:
    """Make examples of at most `context` tokens.

    Trained are the assistant's answers, all or the last, each with the end-of-turn token behind it, and every token of a
    plain text. `encoder` is the model's chat format; without one (None), a prompt and its completion follow each
    other as they are, and Alpaca's parts stand under the headings of `plain_format`. What is too long is cut, a chat by
    whole turns: the last ones where several answers are trained, the oldest ones where one is or where a prompt is
    given; system messages stay. A plain text is divided. With "drop", whatever is too long is left out.

    Raises UsageError for a chat without an encoder, DataError naming file and line of what the template refuses (counted
    with `skip_bad`), or saying why no example is left.
    """
    if context < 2:
        raise UsageError(f"the context is {context} tokens; at least 2 are needed")
    counts: Counter[str] = Counter()
    found: list[tuple[tuple[int, int], Example]] = []
    groups: dict[str, list[_Part]] = {}
    for index, conversation in enumerate(conversations):
        if conversation.format == "text":
            continue
        answers = conversation.answers()[-1 if train_on == "last" else 0 :]
        part = _Part((index, 0), conversation, conversation.messages[: answers[-1] + 1], tuple(answers))
        groups.setdefault(_format_of(conversation, encoder), []).append(part)
    for kind, parts in groups.items():
        own = encoder or ChatEncoder(plain_format(tokenizer, alpaca=kind == "Alpaca"), tokenizer)
        found += _encode_parts(own, parts, context, long, skip_bad, counts)
    texts = [(i, c) for i, c in enumerate(conversations) if c.format == "text"]
    found += _encode_texts(texts, tokenizer, context, long, counts)
    counts["untrained"] += len({order[0] for order, e in found if not e.trained.any()})
    examples = [e for _, e in sorted(found, key=lambda one: one[0]) if e.trained.any()]
    result = EncodedSet(examples, *(counts[name] for name in ("cut", "dropped", "unrolled", "untrained", "bad")))
    if not examples:
        raise DataError(f"nothing is left to train on: {result.summary}; the context is {context} tokens")
    return result


def plain_format(tokenizer: Tokenizer, *, alpaca: bool) -> Format:
    """The format of prompts and completions for models without a chat template.

    Begin-of-text where the tokenizer puts it in front of any text, prompt, completion, end-of-text. With `alpaca` the
    prompt stands between `### Instruction:⏎` and `⏎⏎### Response:⏎`, and a system message with a blank line before it.
    """
    begin = tokenizer.specials["bos"] if _begins_texts(tokenizer) else ""
    end = tokenizer.specials.get("eos", "")

    def write(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        text = begin
        for message in messages:
            content = message["content"]
            if message["role"] == "system":
                text += f"{content}\n\n"
            elif message["role"] == "user":
                text += f"### Instruction:\n{content}\n\n### Response:\n" if alpaca else content
            else:
                text += content + end
        return text

    return write


def _begins_texts(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts its begin-of-text token in front of every text."""
    begin = tokenizer.special_id("bos")
    return begin is not None and tokenizer.encode("")[:1] == [begin]


def _format_of(conversation: Conversation, encoder: ChatEncoder | None) -> str:
    """How a conversation is written: by the encoder, or plainly as Alpaca or prompt and completion."""
    if encoder is not None:
        return "chat"
    roles = [message["role"] for message in conversation.messages]
    if conversation.format == "Alpaca" or (conversation.format, roles) == ("prompt–completion", ["user", "assistant"]):
        return conversation.format
    raise UsageError(
        f"{conversation.source} is a chat, and the model has no chat template; choose one with --template: llama-2, "
        f"llama-3, or a .jinja file"
    )


def _encode_parts(
    encoder: ChatEncoder,
    parts: Sequence[_Part],
    context: int,
    long: Long,
    skip_bad: bool,
    counts: Counter[str],
) -> list[tuple[tuple[int, int], Example]]:
    found, again = [], []
    results = list(zip(parts, _encode(encoder, parts), strict=True))
    for part, encoded in results:
        if isinstance(encoded, RewrittenError) and len(part.answers) > 1:
            counts["unrolled"] += 1
            again += [
                replace(part, order=(part.order[0], n), messages=part.messages[: answer + 1], answers=(answer,))
                for n, answer in enumerate(part.answers)
            ]
    results += zip(again, _encode(encoder, again), strict=True)
    too_long = []
    for part, encoded in results:
        if isinstance(encoded, RewrittenError) and len(part.answers) > 1:
            continue
        if isinstance(encoded, LamoidError):
            if not skip_bad:
                raise DataError(f"{part.conversation.source}: {encoded}") from encoded
            counts["bad"] += 1
        elif len(encoded.ids) > context:
            too_long.append(part)
        else:
            found.append((part.order, _example(encoded, part)))
    kept = _shorten(encoder, too_long, context) if long == "cut" else []
    counts["cut"] += len({order[0] for order, _ in kept})
    counts["dropped"] += len({part.order[0] for part in too_long} - {order[0] for order, _ in kept})
    return found + kept


def _encode(encoder: ChatEncoder, parts: Sequence[_Part]) -> list[Encoded | LamoidError]:
    return encode_answers(encoder, [part.messages for part in parts], [part.answers for part in parts])


def _example(encoded: Encoded, part: _Part) -> Example:
    ids, trained = np.asarray(encoded.ids, dtype=np.int32), np.asarray(encoded.trained, dtype=bool)
    trained[:1] = False
    return Example(ids, trained, part.conversation, part.was_cut)


def _shorten(encoder: ChatEncoder, parts: Sequence[_Part], context: int) -> list[tuple[tuple[int, int], Example]]:
    """Of each part the longest shorter version that fits, where one does; all are halved together, so few rounds are needed."""
    versions = [_shorter(part, from_front=len(part.answers) == 1 or part.conversation.n_given > 0) for part in parts]
    best: list[Example | None] = [None] * len(parts)
    bounds = [(0, len(own)) for own in versions]
    while open_ones := [i for i, (low, high) in enumerate(bounds) if low < high]:
        tried = [versions[i][sum(bounds[i]) // 2] for i in open_ones]
        for i, part, encoded in zip(open_ones, tried, _encode(encoder, tried), strict=True):
            (low, high), middle = bounds[i], sum(bounds[i]) // 2
            fits = isinstance(encoded, Encoded) and len(encoded.ids) <= context
            bounds[i] = (low, middle) if fits else (middle + 1, high)
            if fits and isinstance(encoded, Encoded):
                best[i] = _example(encoded, part)
    return [(part.order, example) for part, example in zip(parts, best, strict=True) if example is not None]


def _shorter(part: _Part, *, from_front: bool) -> list[_Part]:
    """The part with fewer and fewer turns, each a question with all that answers it; system messages at the beginning stay."""
    messages = part.messages
    n_system = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    starts = [i for i in range(n_system + 1, len(messages)) if messages[i]["role"] == "user"]
    if from_front:
        kept = [(start, part.answers) for start in starts]
    else:
        kept = [(n_system, tuple(a for a in part.answers if a < end)) for end in reversed(starts)]
    return [
        replace(
            part,
            messages=messages[:n_system] + messages[start : answers[-1] + 1],
            answers=tuple(a - start + n_system for a in answers if a >= start),
            was_cut=True,
        )
        for start, answers in kept
        if answers
    ]


def _encode_texts(
    texts: Sequence[tuple[int, Conversation]], tokenizer: Tokenizer, context: int, long: Long, counts: Counter[str]
) -> list[tuple[tuple[int, int], Example]]:
    """Plain texts between begin- and end-of-text, divided where they are too long: no token is lost or trained twice."""
    begin = [tokenizer.special_id("bos")] if _begins_texts(tokenizer) else []
    end = [tokenizer.special_id("eos")] if tokenizer.special_id("eos") is not None else []
    found = []
    for (index, conversation), own in zip(texts, tokenizer.encode_many([c.text for _, c in texts]), strict=True):
        ids = np.array([*begin, *own, *end], dtype=np.int32)
        is_long = len(ids) > context
        counts["cut" if long == "cut" else "dropped"] += is_long
        if is_long and long == "drop":
            continue
        for start in range(0, max(len(ids) - 1, 1), context - 1):
            part = ids[start : start + context]
            found.append(((index, start), Example(part, np.arange(len(part)) > 0, conversation, is_long)))
    return found


def split_heldout(
    examples: Sequence[Example], share: float, seed: int, notify: Callable[[str], object] = lambda text: None
) -> tuple[list[Example], list[Example]]:
    """Hold out about this share of the conversations, at least one: (training, held out). A share of 0 holds out none.

    The choice is a hash of what is said and the seed, so that it survives added data, and every example of a conversation
    goes the same way. Raises UsageError for a share out of range, DataError where one of the two would be empty.
    """
    if not 0 <= share < 1:
        raise UsageError(f"the held-out share is {share}; it must be from 0 to below 1")
    keys = sorted({_mixed(example, seed) for example in examples})
    if share == 0:
        return list(examples), []
    if len(keys) < 2:
        raise DataError(
            f"{len(keys)} conversation cannot be trained on and held out; give more, or hold out a share of 0"
        )
    n_heldout = sum(key < share * 2**64 for key in keys)
    limit = keys[min(max(n_heldout, 1), len(keys) - 1)]
    training = [example for example in examples if _mixed(example, seed) >= limit]
    heldout = [example for example in examples if _mixed(example, seed) < limit]
    notify(f"held out: {len(heldout):,} of {len(examples):,} examples")
    return training, heldout


def _mixed(example: Example, seed: int) -> int:
    content = f"heldout {seed} {example.conversation.key}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
