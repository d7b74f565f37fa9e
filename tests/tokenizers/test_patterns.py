"""Which regular expressions are refused (F28), held against what Oniguruma, in the runtime, takes to match them."""

import re
import time

import pytest
import tokenizers as runtime
from tokenizers import pre_tokenizers

from lamoid.errors import DataError
from lamoid.tokenizers.byte_level import SPLITS
from lamoid.tokenizers.patterns import MOST_WAYS, RUN_LENGTH, ways_to_match

PUBLISHED = {name: pattern for name, split in SPLITS.items() for pattern in split.patterns} | {
    "GPT-4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "GPT-4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "DeepSeek": (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "Bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "Chinese": "[一-龥\u3040-ゟ゠-ヿ]+",
    "letters with marks": r"(?:\p{L}\p{M}*)+",
    "named, atomic, lazy": r"(?<word>\w+?)(?>\s+|$)(?#a (comment)?",
}
CATASTROPHIC = {  # a text that keeps the engine busy, where the pattern is one that it accepts
    "(a+)+$": "a" * 40 + "!",
    "(a*)*[!?]": "a" * 40 + "b!",
    "(?:a|aa)+[!?]": "a" * 60 + "b!",
    "(?:a|b|ab)*[!?]": "ab" * 30 + "c!",
    "a*a*a*$": "a" * 600 + "b",
    r"(\w+\s?)+\z": "a" * 40 + "!",
    r"(?:[\s\S]|\n)*[!?]\z": "\n" * 60 + "!b",
    "x(?=(a+)+[!?])|x": "x" + "a" * 40 + "b!",
    "(?:a{1,9}){1,9}[!?]": "a" * 60 + "b!",
}


@pytest.mark.parametrize("pattern", PUBLISHED.values(), ids=PUBLISHED)
def test_published_patterns_are_let_through_and_quick(pattern: str) -> None:
    assert ways_to_match(pattern) <= MOST_WAYS
    split = pre_tokenizers.Split(runtime.Regex(pattern), behavior="isolated")
    began = time.process_time()
    for character in ("a", "A", "ä", "中", "1", " ", "\n", "!", "\u0301", "'", "ⁿ"):
        split.pre_tokenize_str(character * 2000 + "x")
        split.pre_tokenize_str(f"{character}b " * 1000)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("pattern", CATASTROPHIC)
def test_catastrophic_patterns_are_refused_and_are_catastrophic(pattern: str) -> None:
    """Oniguruma gives up after ten million steps at one character, which is at the first one here."""
    assert ways_to_match(pattern) > MOST_WAYS
    split = pre_tokenizers.Split(runtime.Regex(pattern), behavior="isolated")
    with pytest.raises(BaseException, match="retry-limit-in-match over"):  # a panic is no Exception
        split.pre_tokenize_str(CATASTROPHIC[pattern])


@pytest.mark.parametrize(
    "pattern, ways",
    [
        ("", 1),
        ("a|b|[c-z]", 3),
        ("a+", 1),
        ("a+b", RUN_LENGTH),
        ("a*b", RUN_LENGTH + 1),
        ("a?b?c", 4),
        ("a{3}b", 1),
        ("a{2,5}b", 4),
        ("a{,5}b", 6),
        ("a{60,}b", 5),
        ("a{100,200}b", 1),
        ("(?:a|b)(c|d)e", 4),
        ("(?:a|b){3}c", 8),
        (r"(?=a?b|c)d", 3),
        (r"\p{L}+\(\[", RUN_LENGTH),
        (r"[\]+)(?]+x", RUN_LENGTH),
        ("[[:alpha:]&&[^a]]+x", RUN_LENGTH),
        ("(?i)a+?b", RUN_LENGTH),
    ],
)
def test_ways_are_counted(pattern: str, ways: int) -> None:
    assert ways_to_match(pattern) == ways


@pytest.mark.parametrize(
    "pattern, expected",
    [
        (r"(?<x>a|\(\g<x>*\))+", "at character 9 what no tokenizer needs"),
        ("(?~abc)", "at character 0"),
        ("(?(1)a|b)", "at character 0"),
        ("(?x)a # (\n", "at character 0"),
        (r"\c[(a+)+]!", "at character 0"),
        ("a)", "closes a group at character 1"),
        ("(a", "does not close all its groups"),
        ("[a", "does not close all its classes"),
        ("(" * 100 + "a" + ")*" * 100, "more than 32 deep"),
        ("(" * 100_000, "more than 32 deep"),
        ("a\\", "at character 1"),
    ],
)
def test_what_cannot_be_counted_is_refused(pattern: str, expected: str) -> None:
    with pytest.raises(DataError, match=re.escape(expected)) as caught:
        ways_to_match(pattern)
    assert len(str(caught.value)) < 300


def test_the_count_takes_no_time() -> None:
    began = time.process_time()
    for pattern in (
        "|" * 10_000,
        "a*" * 10_000,
        "[a]{9}" * 10_000,
        "(" * 30 + "a{99}" + "){99}" * 30,
        "[" * 10_000 + "]" * 10_000,
    ):
        ways_to_match(pattern)
    assert time.process_time() - began < 2
