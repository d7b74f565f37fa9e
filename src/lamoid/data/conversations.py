"""Chat data as people have it: messages, ShareGPT, Alpaca, prompt and completion, plain text -> conversations.

Which of them a file is, is seen from its first record, and holds for all of it.
"""

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lamoid.data.records import parse_json
from lamoid.data.sources import JSONL_SUFFIXES, find_files, inner_suffix, read_blocks, read_lines, read_text
from lamoid.errors import DataError
from lamoid.tokenizers.chat import ROLES, Message

PROSE_SUFFIXES = frozenset({".txt", ".text", ".md"})
SUFFIXES = JSONL_SUFFIXES | PROSE_SUFFIXES | {".json"}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"} | {
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
SCHEMAS = {
    "messages": '"messages": [{"role", "content"}, …]',
    "ShareGPT": '"conversations": [{"from", "value"}, …]',
    "prompt–completion": '"prompt" and "completion" (texts or lists of messages)',
    "Alpaca": '"instruction" and "output", perhaps "input" and "system"',
    "text": '"text"',
}
"""The formats, and what a record of each must have."""


@dataclass(frozen=True)
class Conversation:
    """Messages, or a text; where they stand; and how many messages at the beginning are given and never trained."""

    messages: tuple[Message, ...]
    format: str
    source: str
    n_given: int = 0
    text: str = ""

    @cached_property
    def key(self) -> int:
        """A hash of 64 bits of what is said, equal for equal conversations."""
        content = json.dumps([self.messages, self.n_given, self.text], sort_keys=True)
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")

    def answers(self) -> list[int]:
        """The indices of the assistant's messages, those that are given left out."""
        return [i for i in range(self.n_given, len(self.messages)) if self.messages[i]["role"] == "assistant"]


@dataclass(frozen=True)
class ConversationSet:
    """Conversations without repeats, the format of each file, and what was left out."""

    conversations: list[Conversation]
    formats: dict[str, str]
    n_bad: int = 0
    n_duplicates: int = 0
    n_with_tools: int = 0
    bad: list[str] = field(default_factory=list)

    @property
    def format(self) -> str:
        """The formats that occur, as one would say them."""
        return ", ".join(dict.fromkeys(self.formats.values()))


def read_conversations(
    paths: Sequence[str], *, skip_bad: bool = False, notify: Callable[[str], object] = lambda text: None
) -> ConversationSet:
    """Read files, folders and globs of .jsonl, .json and .txt, also compressed; says what each file is.

    Raises DataError naming file and line, or with `skip_bad` counts the line and goes on; either way where nothing is left.
    """
    files = {file: None for name in paths for file in find_files(str(name), SUFFIXES)}
    found: dict[int, Conversation] = {}
    formats: dict[str, str] = {}
    counts: Counter[str] = Counter()
    bad: list[str] = []
    for file in files:
        before, bad_before = counts["read"], len(bad)
        for item in _read_file(file):
            if isinstance(item, DataError):
                if not skip_bad:
                    raise DataError(f"{item}; correct it, or leave out such lines with --skip-bad")
                bad.append(str(item))
                continue
            conversation, has_tools = item
            counts["read"] += 1
            counts["tools"] += has_tools
            counts["duplicates"] += conversation.key in found
            found.setdefault(conversation.key, conversation)
            formats[str(file)] = conversation.format
        n_bad = len(bad) - bad_before
        left_out = f", {n_bad} bad lines left out, the first: {bad[bad_before]}" if n_bad else ""
        notify(f"{file}: {formats.get(str(file), 'nothing')}, {counts['read'] - before:,} records{left_out}")
    if counts["duplicates"]:
        notify(f"{counts['duplicates']:,} records left out because they stand elsewhere too")
    if counts["tools"]:
        notify(f"warning: {counts['tools']:,} records describe tools; the model will not see these descriptions")
    if not found:
        raise DataError(f"{list(map(str, paths))} holds no conversation ({len(bad)} bad lines); expected {_expected()}")
    return ConversationSet(list(found.values()), formats, len(bad), counts["duplicates"], counts["tools"], bad)


def _expected() -> str:
    return " or ".join(SCHEMAS.values())


def _read_file(file: Path) -> Iterator[tuple[Conversation, bool] | DataError]:
    """Every record of a file, or what is wrong with it."""
    if inner_suffix(file) in PROSE_SUFFIXES:
        text = "".join(read_text(file))
        if text.strip():
            yield Conversation((), "text", str(file), text=text), False
        return
    if inner_suffix(file) not in SUFFIXES:
        raise DataError(
            f"{file} is of no known kind; expected one of {' '.join(sorted(SUFFIXES))} (also .gz, .xz, .zst)"
        )
    expected: str | None = None
    for where, record in _records(file):
        try:
            if isinstance(record, DataError):
                raise record
            kind = _recognise(record, where)
            if expected not in (None, kind):
                raise DataError(f"{where} is {kind}; the records before it are {expected}, {SCHEMAS[str(expected)]}")
            conversation = _READERS[kind](record, where)
            _check(conversation)
        except DataError as error:
            yield error
            continue
        expected = kind
        yield conversation, bool(record.get("tools"))


def _records(file: Path) -> Iterator[tuple[str, Any]]:
    """Where each record stands, and its value or what is wrong with its line."""
    if inner_suffix(file) == ".json" and (values := _read_array(file)) is not None:
        yield from ((f"{file} record {number}", value) for number, value in enumerate(values, start=1))
        return
    for number, line in read_lines(file):
        where = f"{file} line {number}"
        yield where, parse_json(line, where)


def _read_array(file: Path) -> list[Any] | None:
    """The records of a .json file that is one array or one object; None where it is lines. Raises DataError for neither."""
    content = b"".join(read_blocks(file)).removeprefix(codecs.BOM_UTF8)
    value = parse_json(content, str(file))
    if not isinstance(value, DataError):
        return value if isinstance(value, list) else [value]
    if content.lstrip()[:1] == b"[":
        raise value
    return None


def _recognise(record: Any, where: str) -> str:
    """Which of SCHEMAS a record is. Raises DataError naming what it has and what was expected."""
    if not isinstance(record, dict):
        raise DataError(f"{where} is {_short(record)}; expected an object with {_expected()}")
    for name, needed in (
        ("messages", {"messages"}),
        ("ShareGPT", {"conversations"}),
        ("prompt–completion", {"prompt", "completion"}),
        ("Alpaca", {"instruction", "output"}),
        ("text", {"text"}),
    ):
        if needed <= record.keys():
            return name
    raise DataError(f"{where} has {_short(list(record))}; expected {_expected()}")


def _from_messages(record: Mapping[str, Any], where: str) -> Conversation:
    return Conversation(_messages(record["messages"], where), "messages", where)


def _from_sharegpt(record: Mapping[str, Any], where: str) -> Conversation:
    turns = _list(record["conversations"], where)
    system = record.get("system")
    messages = [{"role": "system", "content": _text(system, f"{where}: system")}] if system else []
    for index, turn in enumerate(turns):
        place = f"{where}: turn {index}"
        if not isinstance(turn, dict):
            raise DataError(f'{place} is {_short(turn)}; expected an object with "from" and "value"')
        speaker = turn.get("from", turn.get("role"))
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            raise DataError(f"{place} is from {_short(speaker)}; known are {', '.join(SHAREGPT_ROLES)}")
        content = _text(turn.get("value", turn.get("content")), place)
        messages.append({"role": SHAREGPT_ROLES[speaker], "content": content})
    return Conversation(tuple(messages), "ShareGPT", where)


def _from_prompt(record: Mapping[str, Any], where: str) -> Conversation:
    sides: list[tuple[Message, ...]] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = record[name]
        sides.append(
            ({"role": role, "content": value},) if isinstance(value, str) else _messages(value, f"{where}: {name}")
        )
    prompt, completion = sides
    return Conversation((*prompt, *completion), "prompt–completion", where, n_given=len(prompt))


def _from_alpaca(record: Mapping[str, Any], where: str) -> Conversation:
    texts = {
        name: _text(record.get(name) or "", f"{where}: {name}") for name in ("system", "instruction", "input", "output")
    }
    question = "\n\n".join(filter(None, (texts["instruction"], texts["input"])))
    system = [{"role": "system", "content": texts["system"]}] if texts["system"] else []
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": texts["output"]}]
    return Conversation((*system, *turns), "Alpaca", where)


def _from_text(record: Mapping[str, Any], where: str) -> Conversation:
    return Conversation((), "text", where, text=_text(record["text"], f"{where}: text"))


_READERS: dict[str, Callable[[Mapping[str, Any], str], Conversation]] = {
    "messages": _from_messages,
    "ShareGPT": _from_sharegpt,
    "prompt–completion": _from_prompt,
    "Alpaca": _from_alpaca,
    "text": _from_text,
}


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    """Messages with a known role and a text; what else they hold stays, for the template."""
    messages = []
    for index, message in enumerate(_list(value, where)):
        place = f"{where}: message {index}"
        if not isinstance(message, dict):
            raise DataError(f'{place} is {_short(message)}; expected an object with "role" and "content"')
        if message.get("role") not in ROLES:
            raise DataError(f"{place} has the role {_short(message.get('role'))}; known are {', '.join(ROLES)}")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            content = ""
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(_text(part.get("text"), place) for part in content)
        messages.append({**message, "content": _text(content, place)})
    return tuple(messages)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where} is {_short(value)}; expected a list of messages")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} holds {_short(value)}; expected a text")
    return value


def _check(conversation: Conversation) -> None:
    """Raises DataError where there is nothing to train, or a text that no tokenizer can encode."""
    where = conversation.source
    if conversation.format == "text":
        if not conversation.text.strip():
            raise DataError(f"{where} holds an empty text")
    elif not conversation.answers():
        raise DataError(f"{where} has no assistant turn; expected at least one, which is what is trained")
    try:
        json.dumps([conversation.messages, conversation.text], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where} has a lone surrogate, which is no character; expected text") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
