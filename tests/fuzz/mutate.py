"""Damage to bytes and to JSON, drawn from a generator: the same seed makes the same file."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

NUMBERS = [0, 1, -1, 2, 7, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30]
FLOATS = [0.5, -0.5, 1.0, 1e-9, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")]
TEXTS = [
    "", "a", " ", "\0", "\n", "\ud800", "../x", "~nobody/x", "/etc/passwd", ".", "NaN", "1", "true", "null", "__proto__",
    "{0}", "%s",
    "Tie\u0302\u0301ng", "中文", "한국어", "\u202eabc", "👩‍👩‍👧", "\U0010ffff", "a\u0301" * 300, "x" * 70_000,
]  # fmt: skip


class Raw(str):
    """JSON as it is to be written, whether it is JSON or not."""


class Pairs(list[Any]):
    """A JSON object as its keys and values in order, so that a key may come twice."""


RAW = [
    *map(Raw, ("1e999", "-0", "1E2", "9" * 5000, "0." + "3" * 400, "01", "+1", "Infinity", "nul", "'a'", '"\\uD800"')),
    *(Raw(begin * depth + end * depth) for begin, end in (("[", "]"), ('{"a":', "}")) for depth in (90, 200, 30_000)),
    Raw('{"a":1,"a":2}'), Raw("[" + "0," * 30_000 + "0]"), Raw('"\\u0000"'), Raw('"\x01"'), Raw(""),
]  # fmt: skip


def evil(dice: random.Random) -> Any:
    """A value that nobody expected there."""
    return dice.choice(
        [None, True, False, [], Pairs(), [[]], *map(dice.choice, (NUMBERS, NUMBERS, FLOATS, TEXTS, RAW))]
    )


def damaged_bytes(content: bytes, dice: random.Random) -> bytes:
    """Some of: flipped bits, extreme numbers, bytes taken out, put in or repeated, parts exchanged, an end cut off."""
    changed = bytearray(content)
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        at, other = (dice.randrange(len(changed) + 1) for _ in range(2))
        n = dice.choice([1, 2, 4, 8, 16, 100])
        match dice.randrange(9):
            case 0:
                changed[at : at + 8] = struct.pack("<Q", dice.choice(NUMBERS) % 2**64)
            case 1:
                changed[at : at + 4] = struct.pack("<I", dice.choice(NUMBERS) % 2**32)
            case 2:
                del changed[at : at + n]
            case 3:
                changed[at:at] = dice.randbytes(n)
            case 4:
                changed[at:at] = changed[at : at + n] * dice.choice([1, 2, 50])
            case 5:
                changed[at : at + n], changed[other : other + n] = changed[other : other + n], changed[at : at + n]
            case 6 if dice.random() < 0.3:
                del changed[at:]
            case _ if at < len(changed):
                changed[at] ^= 1 << dice.randrange(8)
            case _:
                changed += dice.randbytes(n)
    return bytes(changed)


def damaged_json(
    content: bytes, dice: random.Random, special: Callable[[Any, random.Random], None] | None = None
) -> bytes:
    """The same document with a few values, keys or places changed; now and then its bytes. `special` knows the format."""
    if dice.random() < 0.15:
        return damaged_bytes(content, dice)
    tree = json.loads(content, object_pairs_hook=Pairs)
    for _ in range(dice.choice([1, 1, 1, 2, 5])):
        if special is not None and dice.random() < 0.5:
            special(tree, dice)
        else:
            tree = damage_tree(tree, dice)
    return write(tree)


def write(node: Any) -> bytes:
    """JSON, with everything that `evil` makes."""
    return _text(node).encode("utf-8", "surrogatepass")


def _text(node: Any) -> str:
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, Pairs):
        return "{" + ",".join(f"{_text(key)}:{_text(value)}" for key, value in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(_text, node)) + "]"
    return json.dumps(node, ensure_ascii=isinstance(node, str) and "\ud800" in node)


def find(tree: Any, *path: str) -> Any:
    """The value at a path of keys, None where there is none."""
    for key in path:
        tree = next((value for name, value in tree if name == key), None) if isinstance(tree, Pairs) else None
    return tree


def put(tree: Any, key: str, value: Any) -> None:
    """Give a key of an object a value."""
    if isinstance(tree, Pairs):
        at = next((i for i, (name, _) in enumerate(tree) if name == key), len(tree))
        tree[at : at + 1] = [(key, value)]


def damage_tree(tree: Any, dice: random.Random) -> Any:
    """Change one place; the higher ones are likelier."""
    node = tree
    if not isinstance(tree, list):
        return evil(dice)
    while True:
        children = [v for _, v in node] if isinstance(node, Pairs) else node
        deeper = [child for child in children if isinstance(child, list) and child]
        if not deeper or dice.random() < 0.35:
            break
        node = dice.choice(deeper)
    if not node or dice.random() < 0.01:
        return evil(dice)
    at, other = (dice.randrange(len(node)) for _ in range(2))
    is_object = isinstance(node, Pairs)
    value = node[at][1] if is_object else node[at]
    key = node[at][0] if is_object else None

    def place(value: Any, at: int = at) -> None:
        node[at] = (node[at][0], value) if is_object else value

    match dice.randrange(11):
        case 0 | 1 | 2:
            place(evil(dice))
        case 3:
            place(_near(value, dice))
        case 4:
            del node[at]
        case 5:
            node[other:other] = [node[at]] * dice.choice([1, 1, 3, 500])
        case 6:
            theirs = node[other][1] if is_object else node[other]
            place(value, other)
            place(theirs)
        case 7 if is_object:
            node[at] = (dice.choice([*TEXTS, key + "s", key.upper()]), value)
        case 8 if is_object:
            node.insert(dice.randrange(len(node) + 1), (key, evil(dice)))
        case 9:
            place(dice.choice([[value], Pairs([("a", value)]), [value, value]]))
        case _:
            dice.shuffle(node)
    return tree


def _near(value: Any, dice: random.Random) -> Any:
    """Almost the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return dice.choice(
            [value + 1, value - 1, -value, value * 2, value * 2**32, value / 2, str(value), float(value)]
        )
    if isinstance(value, str):
        cut = dice.randrange(len(value) + 1)
        return dice.choice([value + dice.choice(TEXTS), value[:cut], value[cut:], value.upper(), value * 2, [value]])
    return [value]
