"""Regular expressions out of strangers' files: refused where a harmless text could keep them busy for hours (fault F28).

The runtime's engine, Oniguruma, backtracks: it tries one way of matching after the other. It gives up after ten million
tries, but begins again at the next character. So the ways are counted beforehand, from the pattern alone, as if every
part could match every character of a run of RUN_LENGTH. What stands last in a branch, or before what may be left out,
is matched in one way only, since nothing behind it can fail: `a+` and `(a+)+` have one way there, but 64 and 64^64 in
front of something else. The count is coarse, and on the safe side.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import tokenizers as runtime

from lamoid.errors import DataError

RUN_LENGTH = 64
MOST_WAYS = 2**12  # less than `a*a*b` has; Llama 3's pattern has 142, that of GPT-4o 1057
MOST_GROWTH = 64
MAX_DEPTH = 32


class _Ways(NamedTuple):
    """In how many ways a part can match: with something behind it that may fail, and without; whether it may be left out."""

    inside: int
    last: int
    optional: bool = False


_ESCAPE = re.compile(r"\\(?:[pPxuo]\{[^}]*\}|k<[^>]*>|[^gcCM])", re.DOTALL)  # \g calls a group, perhaps itself
_COMMENT = re.compile(r"\(\?#[^)]*\)")
_FLAGS = re.compile(r"\(\?[im-]+\)")
_LOOK_AROUND = re.compile(r"\(\?<?[=!]")
_GROUP = re.compile(r"\(\?(?:[im-]*:|>|<\w+>)|\((?!\?)")
_REPEAT = re.compile(r"(?:([*+?])\+?|\{(\d+)\}|\{(\d*),(\d*)\})\??")


def check_patterns(backend: runtime.Tokenizer) -> None:
    """Raise DataError if a normalizer, pre-tokenizer or decoder has a pattern with more than MOST_WAYS to match.

    And if its replacements, one after the other, could make a text more than MOST_GROWTH times as long.
    """
    for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder):
        growth = 1.0
        for rule in _rules_with_patterns(json.loads(part.__getstate__())) if part is not None else ():
            pattern, text = rule["pattern"].get("Regex"), rule["pattern"].get("String", "")
            if pattern is not None and ways_to_match(pattern) > MOST_WAYS:
                raise DataError(
                    f"the pattern {pattern!r:.80} could match a text of {RUN_LENGTH} characters in more than "
                    f"{MOST_WAYS} ways, and try them all; write it without repetitions inside repetitions"
                )
            growth *= max(len(rule.get("content", "")) / len(text) if text else len(rule.get("content", "")) + 1, 1)
        if growth > MOST_GROWTH:
            raise DataError(f"the rules make a text {growth:.3g} times as long; at most {MOST_GROWTH} are allowed")


def ways_to_match(pattern: str) -> int:
    """In how many ways a pattern could match a run of RUN_LENGTH characters, at most MOST_WAYS + 1.

    Raises DataError for what Oniguruma has and no tokenizer needs: calls of groups, conditions, absence, extended form.
    """
    reader = _Reader(pattern)
    ways = reader.branches(0).last
    if reader.at < len(pattern):
        raise DataError(f"the pattern {pattern!r:.80} closes a group at character {reader.at} that it never opened")
    return ways


class _Reader:
    """Reads a pattern from front to back; each method returns the ways of what it read."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def branches(self, depth: int) -> _Ways:
        if depth > MAX_DEPTH:
            raise DataError(f"the pattern {self.pattern!r:.80} has groups in groups, more than {MAX_DEPTH} deep")
        found = [self.branch(depth)]
        while self.take("|"):
            found.append(self.branch(depth))
        inside, last, optional = zip(*found, strict=True)
        return _capped(sum(inside), sum(last), any(optional))

    def branch(self, depth: int) -> _Ways:
        parts = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            parts.append(self.part(depth))
        ways = _Ways(1, 1, optional=True)  # of what stands behind
        for part in reversed(parts):
            last = ways.last * (part.last if ways.optional else part.inside)
            ways = _capped(ways.inside * part.inside, last, ways.optional and part.optional)
        return ways

    def part(self, depth: int) -> _Ways:
        ways = self.atom(depth)
        while (found := _REPEAT.match(self.pattern, self.at)) is not None:
            self.at = found.end()
            least, most = {"*": (0, RUN_LENGTH), "+": (1, RUN_LENGTH), "?": (0, 1)}.get(found[1], (0, 0))
            if found[2]:
                least = most = int(found[2])
            elif not found[1]:
                least, most = int(found[3] or 0), int(found[4] or RUN_LENGTH)
            ways = _repeated(ways, min(least, RUN_LENGTH), min(most, RUN_LENGTH))
        return ways

    def atom(self, depth: int) -> _Ways:
        if self.pattern[self.at] == "[":
            self.skip_class()
        elif any(self.take(what) for what in (_ESCAPE, _COMMENT, _FLAGS)):
            pass
        elif self.take(_LOOK_AROUND):  # once it holds, nobody comes back to try it otherwise
            last = self.group(depth).last
            return _Ways(last, last)
        elif self.take(_GROUP):
            return self.group(depth)
        elif self.pattern[self.at] in "\\(":
            raise DataError(f"the pattern {self.pattern!r:.80} has at character {self.at} what no tokenizer needs")
        else:
            self.at += 1
        return _Ways(1, 1)

    def group(self, depth: int) -> _Ways:
        ways = self.branches(depth + 1)
        if not self.take(")"):
            raise DataError(f"the pattern {self.pattern!r:.80} does not close all its groups")
        return ways

    def skip_class(self) -> None:
        """`[a-z]`, and classes in classes."""
        depth = 0
        while self.at < len(self.pattern):
            character = self.pattern[self.at]
            self.at += 2 if character == "\\" else 1
            depth += {"[": 1, "]": -1}.get(character, 0)
            if not depth:
                return
        raise DataError(f"the pattern {self.pattern!r:.80} does not close all its classes")

    def take(self, what: str | re.Pattern[str]) -> bool:
        """Go on behind this, if it stands here."""
        if isinstance(what, str):
            end = self.at + len(what) if self.pattern.startswith(what, self.at) else self.at
        else:
            found = what.match(self.pattern, self.at)
            end = found.end() if found else self.at
        is_there, self.at = end > self.at, end
        return is_there


def _repeated(ways: _Ways, least: int, most: int) -> _Ways:
    """`least` to `most` times. As the last part it ends at the first failure; only what must be there is tried again."""
    any_number = most - least + 1 if ways.inside == 1 else ways.inside**most
    last = ways.last if least <= 1 else ways.inside**least
    return _capped(max(any_number, 1), last, ways.optional or least == 0)


def _capped(inside: int, last: int, optional: bool) -> _Ways:
    return _Ways(min(inside, MOST_WAYS + 1), min(last, MOST_WAYS + 1), optional)


def _rules_with_patterns(state: Any) -> Iterator[dict[str, Any]]:
    """Every rule in a part of a tokenizer.json that looks for a text or a pattern."""
    if isinstance(state, dict) and isinstance(state.get("pattern"), dict):
        yield state
    for value in state.values() if isinstance(state, dict) else state if isinstance(state, list) else ():
        yield from _rules_with_patterns(value)
