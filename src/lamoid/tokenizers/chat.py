"""Conversations -> ids: the formats of Llama 2 and Llama 3, and the templates that models carry.

A format makes one text of the messages; its special tokens become special ids, and everything between them is encoded
as text. What a message says is text throughout, also where it spells out a special token. To keep the two apart, the
first character of every special token in a message is exchanged for a stand-in, a character for private use that
occurs nowhere, before the format sees it, and is put back after the text was cut at its special tokens.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers as runtime

from lamoid.errors import CheckpointError, DataError, UsageError
from lamoid.tokenizers.templates import TemplateRenderer
from lamoid.tokenizers.tokenizer import CANNOT_ENCODE, Tokenizer, read_config, runtime_errors
from lamoid.tokenizers.vocabulary import MAX_TOKEN_LENGTH

Message = Mapping[str, Any]
"""`role` (one of ROLES), `content` (a text), and whatever else a template may look for."""

Format = Callable[[Sequence[Message], bool], str]
"""Messages, and whether the beginning of an answer follows them, to the text that the model was trained on."""

ROLES = ("system", "user", "assistant", "tool")
MAX_EXTRA_DEPTH = 32
_PRIVATE_USE = range(0xF0000, 0xFFFFE)


def llama_2(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """`<s>[INST] <<SYS>>⏎system⏎<</SYS>>⏎⏎question [/INST] answer </s><s>[INST] question [/INST]`.

    The answer's beginning is the end of the question. `[INST]` and its like are plain text in Llama 2's vocabulary,
    so nothing could tell a user's from the format's: a message that has one is refused, as Meta's code does.
    Source: Meta's reference implementation (llama, generation.py).
    """
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    turns = messages[1:] if system is not None else messages
    _check_llama_2(messages, turns)
    text = ""
    for index, message in enumerate(turns):
        content = message["content"].strip()
        if message["role"] == "assistant":
            text += f" {content} </s>"
            continue
        if index == 0 and system is not None:
            content = f"<<SYS>>\n{system}\n<</SYS>>\n\n{message['content']}".strip()
        text += f"<s>[INST] {content} [/INST]"
    return text


def llama_3(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """`<|begin_of_text|>`, then for each message `<|start_header_id|>role<|end_header_id|>⏎⏎content<|eot_id|>`.

    Source: Meta's reference implementation (llama3, tokenizer.py) and the model card of Llama 3.
    """
    text = "<|begin_of_text|>"
    for message in messages:
        role = "ipython" if message["role"] == "tool" else message["role"]
        text += f"<|start_header_id|>{role}<|end_header_id|>\n\n{message['content'].strip()}<|eot_id|>"
    return text + ("<|start_header_id|>assistant<|end_header_id|>\n\n" if add_generation_prompt else "")


FORMATS: dict[str, tuple[Format, tuple[str, ...]]] = {
    "llama-2": (llama_2, ("<s>", "</s>")),
    "llama-3": (llama_3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
}
"""The formats that need no template: how they are written, and the special tokens without which they mean nothing."""


class TemplateFormat:
    """The format that a model's own template describes. The renderer is the caller's to close."""

    def __init__(self, renderer: TemplateRenderer, tokenizer: Tokenizer) -> None:
        self.renderer = renderer
        self._tokens = {f"{role}_token": token for role, token in tokenizer.specials.items()}

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        return self.renderer.render(self._variables(messages, add_generation_prompt))

    def many(self, requests: Sequence[tuple[Sequence[Message], bool]]) -> list[str | CheckpointError]:
        """For each pair of messages and `add_generation_prompt` the text, or the template's complaint about them."""
        return self.renderer.render_many([self._variables(*request) for request in requests])

    def _variables(self, messages: Sequence[Message], add_generation_prompt: bool) -> dict[str, object]:
        given = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        return {**self._tokens, "tools": None, "documents": None, **given}


class Piece(NamedTuple):
    """A special token, or the text between two of them, and where it stands in the text that the format wrote.

    `special` is the token's id, None for a text. White space that a special token takes with it belongs to no piece.
    """

    start: int
    text: str
    special: int | None


class ChatEncoder:
    """Encodes conversations in one format for one tokenizer.

    Raises UsageError where the tokenizer lacks a special token of a built-in format.
    """

    def __init__(self, form: Format, tokenizer: Tokenizer) -> None:
        self.format, self.tokenizer = form, tokenizer
        added = tokenizer.backend.get_added_tokens_decoder()
        self._special = {t.content: (index, t) for index, t in added.items() if t.special and t.content}
        for name, (known, needed) in FORMATS.items():
            missing = [token for token in needed if token not in self._special]
            if form is known and missing:
                raise UsageError(f"the tokenizer has no special tokens {missing}; {name} is not this model's format")
        by_length = sorted(self._special, key=len, reverse=True)
        self._cuts = re.compile("|".join(map(re.escape, by_length)) or "(?!)")
        self._begins = _beginnings(by_length)
        self._inner = _without_first_prefix(tokenizer.backend)

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the format writes it, which is for reading: only `encode` knows which tokens are special."""
        _check_messages(messages)
        return self.format(messages, add_generation_prompt)

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation, with `add_generation_prompt` up to where the answer begins.

        Raises UsageError for messages that are none, and whatever the format raises.
        """
        ids: list[int] = []
        for piece in self._pieces(messages, add_generation_prompt):
            ids += self._encode_text(piece) if piece.special is None else [piece.special]
        return ids

    def end_of_answer(self) -> list[int]:
        """The special token that the format puts behind an answer, if it does: there a model stops."""
        mark = "lamoid answers"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
        pieces = self._pieces(messages, add_generation_prompt=False)
        answers = [i for i, piece in enumerate(pieces) if piece.special is None and mark in piece.text]
        behind = pieces[answers[-1] + 1 :] if answers else []
        return [piece.special for piece in behind if piece.special is not None][:1]

    def _pieces(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[Piece]:
        protected, back = self.protect(messages)
        return self.cut(self.format(protected, add_generation_prompt), back)

    def protect(self, messages: Sequence[Message]) -> tuple[list[Message], dict[int, str]]:
        """The messages with stand-ins where a special token begins, and the table with which `cut` puts them back.

        Raises UsageError for messages that are none.
        """
        _check_messages(messages)
        stand_ins = self._stand_ins(messages)
        back = {ord(stand_in): character for character, stand_in in stand_ins.items()}
        return [self._protect(message, stand_ins) for message in messages], back

    def cut(self, text: str, back: Mapping[int, str]) -> list[Piece]:
        """The special tokens in what the format made of protected messages, and the texts between them."""
        pieces: list[Piece] = []
        end, strips_left = 0, False
        for found in [*self._cuts.finditer(text), None]:
            index, token = self._special[found[0]] if found else (0, None)
            piece = text[end : found.start() if found else None]
            stripped = piece.lstrip() if strips_left else piece
            start = end + len(piece) - len(stripped)
            stripped = stripped.rstrip() if token is not None and token.lstrip else stripped
            if stripped:
                pieces.append(Piece(start, stripped.translate(back), None))
            if found and token is not None:
                pieces.append(Piece(found.start(), found[0], index))
                end, strips_left = found.end(), token.rstrip
        return pieces

    def runtime_for(self, piece: Piece) -> runtime.Tokenizer:
        """What encodes the text of a piece: some tokenizers put a space in front of the first text alone."""
        return self.tokenizer.backend if piece.start == 0 or self._inner is None else self._inner

    def _encode_text(self, piece: Piece) -> list[int]:
        if self.runtime_for(piece) is self.tokenizer.backend:
            return self.tokenizer.encode(piece.text, add_special_tokens=False)
        with runtime_errors(CANNOT_ENCODE):
            return self.runtime_for(piece).encode(piece.text, add_special_tokens=False).ids

    def _stand_ins(self, messages: Sequence[Message]) -> dict[str, str]:
        """For each first character of a special token, one for private use that no message has."""
        taken = {
            character for character in json.dumps(messages, ensure_ascii=False, default=str) if character > "\uffff"
        }
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        return {character: next(free) for character in dict.fromkeys(token[0] for token in self._special)}

    def _protect(self, message: Message, stand_ins: Mapping[str, str]) -> Message:
        """The message with stand-ins where a special token begins, or where its end could be the beginning of one."""

        def protect(text: str) -> str:
            text = self._begins.sub(lambda found: stand_ins[found[0]], text)
            for at in range(max(0, len(text.rstrip()) - MAX_TOKEN_LENGTH), len(text)):
                if text[at] in stand_ins and any(token.startswith(text[at:].rstrip()) for token in self._special):
                    return text[:at] + stand_ins[text[at]] + text[at + 1 :]
            return text

        return {**_replace(message, protect), "role": message["role"]}


def trim(
    messages: Sequence[Message], n_tokens: Callable[[Sequence[Message]], int], max_tokens: int
) -> tuple[list[Message], int]:
    """Leave out the oldest turns, each a question with all that answered it, until the rest has `max_tokens`.

    System messages at the beginning stay, and so does the last turn. Returns the messages and how many turns went.
    Raises UsageError, with both counts, where even the last turn is too long.
    """
    n_system = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system, rest = list(messages[:n_system]), list(messages[n_system:])
    starts = {0, *(i for i, message in enumerate(rest) if message["role"] == "user")}
    for n_left_out, start in enumerate(sorted(starts)):
        kept = system + rest[start:]
        found = n_tokens(kept)
        if found <= max_tokens:
            return kept, n_left_out
    raise UsageError(
        f"the last message alone makes a prompt of {found} tokens; there is room for {max_tokens} before the answer: "
        f"shorten it"
    )


def read_end_ids(directory: Path) -> list[int]:
    """What generation_config.json and config.json call end-of-text tokens, one id or several."""
    found: list[int] = []
    for file in (directory / "generation_config.json", directory / "config.json"):
        value = read_config(file).get("eos_token_id")
        ids: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(index) is int and index >= 0 for index in ids):
            raise DataError(f"{file}: eos_token_id is {value!r:.80}; it must be an id or a list of them")
        found += ids
    return list(dict.fromkeys(found))


def _check_messages(messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise UsageError(f"message {index} is {message!r:.80}; it must have a role among {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise UsageError(f"the content of message {index} is {message.get('content')!r:.80}; it must be a text")
    if not messages:
        raise UsageError("there are no messages; give at least one")


def _check_llama_2(messages: Sequence[Message], turns: Sequence[Message]) -> None:
    for index, message in enumerate(turns):
        if message["role"] != ("user", "assistant")[index % 2]:
            raise UsageError(
                f"message {index} of the turns is by {message['role']!r}; in llama-2's format user and assistant alternate"
            )
    for message in messages:
        tags = [tag for tag in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>") if tag in message["content"]]
        if tags and message["role"] != "assistant":
            raise UsageError(f"a message has {tags[0]!r}, which borders turns in llama-2's format; write it otherwise")


def _beginnings(tokens: Sequence[str]) -> re.Pattern[str]:
    """Finds the first character of every one of these tokens that stands in a text."""
    rests: dict[str, list[str]] = {}
    for token in tokens:
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile("|".join(f"{re.escape(first)}(?={'|'.join(r)})" for first, r in rests.items()) or "(?!)")


def _without_first_prefix(backend: runtime.Tokenizer) -> runtime.Tokenizer | None:
    """The runtime for texts that are not the first, where it puts a space in front of the first one alone."""
    if backend.pre_tokenizer is None or b'"prepend_scheme":"first"' not in backend.pre_tokenizer.__getstate__():
        return None
    state = json.loads(backend.to_str())
    own = state["pre_tokenizer"]
    for part in own.get("pretokenizers", [own]):
        if part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    inner = runtime.Tokenizer.from_str(json.dumps(state))
    inner.encode_special_tokens = True
    return inner


def _replace(value: Any, change: Callable[[str], str], depth: int = 0) -> Any:
    """The same value with every text in it changed."""
    if depth > MAX_EXTRA_DEPTH:
        raise UsageError(f"a message is nested deeper than {MAX_EXTRA_DEPTH} levels; flatten it")
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_replace(key, change, depth + 1): _replace(item, change, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(item, change, depth + 1) for item in value]
    return value
