"""Damage to tokenizers and chat templates, by someone who knows how they are built."""

import base64
import random
import re
import struct
from typing import Any

from tests.fuzz.mutate import FLOATS, NUMBERS, TEXTS, Pairs, damaged_bytes, damaged_json, evil, find, put

PATTERNS = [  # some take forever on a text that nearly fits, some are none
    "(a+)+$", "(?:a|aa)+!", "(a?){40}a{40}", "(a*)*b|.", r"(\w+\s?)+\z", "(.*)*x", r"([\s\S]|\n)*\W", "(?=(a+)+!)a",
    "a*a*a*a*a*!", "a*a*!", r"(?<x>a|\(\g<x>*\))+", r"(a+)\1+\1+$", "(?:a{1,1000}){1,1000}!", "a{100000}", "a{100001}",
    "((((a{99}){99}){99}){99}){99}", "(?:(?:a{9999}b){9999}c){9999}", "(?i)" + "(" * 200 + "a" + ")*" * 200,
    "(" * 20_000, "[" * 20_000, "[^" + "\\p{L}" * 5000 + "]", "|" * 5000, "(?<=a+)b", "(?~a)", r"\K", r"\G", "", "^", "$",
    r"\b", "(?!)", "x?", r"\p{Nonsense}", r"\x{110000}", "\\", "(?#", "[z-a]", r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\s+(?!\S)|\s+", ".", "(?m).", r"\X", r"(?:\X\X*)*!",
]  # fmt: skip
_X = {"id": "x", "type_id": 0}
_RULES: list[dict[str, Any]] = [
    *({"type": name} for name in ("NFC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Whitespace", "WhitespaceSplit")),
    *({"type": name} for name in ("UnicodeScripts", "BertPreTokenizer", "ByteFallback", "Fuse", "Sequence")),
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Prepend", "prepend": ""},
    {"type": "Prepend", "prepend": "▁" * 99},
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": ""},
    {"type": "Replace", "pattern": {"String": ""}, "content": "ab"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aa" * 2000},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    {"type": "Digits", "individual_digits": True},
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "FixedLength", "length": 0},
    {"type": "FixedLength", "length": 3},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
    {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always", "split": False},
    {"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40},
    {"type": "Strip", "content": "a", "start": 9, "stop": 9},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "BPEDecoder", "suffix": ""},
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": "a", "cleanup": True},
    {"type": "BertProcessing", "sep": ["a", 2**32 - 1], "cls": ["b", 3]},
    {"type": "RobertaProcessing", "sep": ["a", 1], "cls": ["b", 0], "trim_offsets": True, "add_prefix_space": True},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": _X}], "pair": [], "special_tokens": {}},
    {"type": "TemplateProcessing", "single": [{"Sequence": _X | {"id": "A"}}] * 50, "pair": [], "special_tokens": {}},
    {
        "type": "TemplateProcessing",
        "single": "x $A",
        "pair": "$A $B",
        "special_tokens": {"x": {"id": "x", "ids": [2**32 - 1], "tokens": ["x"]}},
    },
]
_LISTS = {
    "normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders", "post_processor": "processors"
}  # fmt: skip
_MERGES = [["a", ""], ["", "a"], ["", ""]]
_MODELS: list[dict[str, Any]] = [
    {"type": "BPE", "vocab": {"a": 0, "aa": 1, "aaaa": 2}, "merges": [["a", "a"], ["aa", "aa"]], "dropout": 1.0},
    {"type": "BPE", "vocab": {"a": 0, "": 1}, "merges": _MERGES, "unk_token": "?", "byte_fallback": True},
    {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "aba": 3}, "merges": [["ab", "a"], ["a", "b"], ["aba", "b"]]},
    {"type": "Unigram", "unk_id": 99, "vocab": [["a", -1.0], ["b", 0.0]], "byte_fallback": True},
    {"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0], ["a", 1e308], ["a", -1e308]], "byte_fallback": False},
    {"type": "Unigram", "unk_id": None, "vocab": []},
    {"type": "WordLevel", "vocab": {"a": 2**32 - 1}, "unk_token": "?"},
    {"type": "WordLevel", "vocab": {}, "unk_token": ""},
    {"type": "WordPiece", "vocab": {}, "unk_token": "?", "max_input_chars_per_word": 2**63},
    {"type": "WordPiece", "vocab": {"a": 0, "##": 1}, "unk_token": "a", "continuing_subword_prefix": ""},
]


def as_pairs(value: Any) -> Any:
    """Plain JSON as the trees of `mutate`."""
    if isinstance(value, dict):
        return Pairs((key, as_pairs(item)) for key, item in value.items())
    return [as_pairs(item) for item in value] if isinstance(value, list) else value


def damaged_tokenizer_json(content: bytes, dice: random.Random) -> bytes:
    """Merges in circles, ids twice or out of range, rules that make no sense together, patterns that take forever."""
    return damaged_json(content, dice, _damage_tokenizer)


def _damage_tokenizer(tree: Any, dice: random.Random) -> None:
    vocab, merges, added = find(tree, "model", "vocab"), find(tree, "model", "merges"), find(tree, "added_tokens")
    part = dice.choice([*_LISTS])
    match dice.randrange(9):
        case 0 | 1:
            pattern = {"Regex": dice.choice(PATTERNS)}
            how = dice.choice(["Isolated", "Removed", "MergedWithNext"])
            split = {"type": "Split", "pattern": pattern, "behavior": how, "invert": dice.random() < 0.2}
            replace = {"type": "Replace", "pattern": pattern, "content": dice.choice(["", "a", "aa"])}
            if part == "pre_tokenizer":
                put(tree, part, as_pairs(split))
            else:
                put(tree, dice.choice(["normalizer", "decoder"]), as_pairs(replace))
        case 2:
            put(tree, part, as_pairs(dice.choice(_RULES)))
        case 3:
            among = [*map(as_pairs, _RULES), find(tree, part)]
            rules = [dice.choice(among) for _ in range(dice.choice([0, 1, 3, 2000]))]
            put(tree, part, Pairs([("type", "Sequence"), (_LISTS[part], rules)]))
        case 4:
            put(tree, "model", as_pairs(dice.choice(_MODELS)))
        case 5 if isinstance(vocab, Pairs) and vocab:
            at = dice.randrange(len(vocab))
            index = dice.choice([*NUMBERS, dice.randrange(len(vocab)), len(vocab), len(vocab) + 1000])
            vocab[at] = (dice.choice([vocab[at][0], *TEXTS]), index)
        case 6 if type(merges) is list and merges:
            left, right = dice.choice(merges), dice.choice(merges)
            if isinstance(left, list) and isinstance(right, list):
                joined = "".join(map(str, left))
                merge = dice.choice([left[::-1], [joined, joined], [joined, ""], ["", ""], [*left, *right]])
                merges.insert(dice.randrange(len(merges)), merge)
        case 7 if type(added) is list:
            flags = {name: dice.random() < 0.5 for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
            content = dice.choice([*TEXTS, "a", " ", "the"])
            added.append(as_pairs({"id": dice.choice([*NUMBERS, 5]), "content": content, **flags}))
        case _:
            names = ["dropout", "unk_token", "byte_fallback", "ignore_merges", "fuse_unk", "end_of_word_suffix", "type"]
            value = dice.choice([True, 0.5, 1.0, "a", "<0x41>", "WordPiece", "Unigram", evil(dice)])
            put(find(tree, "model"), dice.choice(names), value)


def damaged_tokenizer_config(content: bytes, dice: random.Random) -> bytes:
    """Roles of tokens that are none, templates that are no texts."""

    def damage(tree: Any, dice: random.Random) -> None:
        role = dice.choice(["bos", "eos", "pad", "unk", "cls", "sep", "mask"])
        named = [Pairs([("name", "default"), ("template", evil(dice))]), evil(dice)]
        match dice.randrange(4):
            case 0:
                put(tree, f"{role}_token", dice.choice([evil(dice), Pairs([("content", evil(dice))]), "a"]))
            case 1:
                put(tree, "chat_template", dice.choice([evil(dice), named, "{{ messages }}"]))
            case 2:
                put(tree, dice.choice(["add_bos_token", "add_eos_token", "auto_map", "tokenizer_class"]), evil(dice))
            case _:
                put(tree, "added_tokens_decoder", evil(dice))

    return damaged_json(content, dice, damage)


# ---- SentencePiece

_Field = tuple[int, int, bytes | int]


def damaged_sentencepiece(content: bytes, dice: random.Random) -> bytes:
    """Pieces with other texts, scores and types, twice or not at all; settings of other kinds."""
    if dice.random() < 0.2:
        return damaged_bytes(content, dice)
    fields = _fields(content)
    for _ in range(dice.choice([1, 1, 2, 5])):
        at, other = (dice.randrange(len(fields)) for _ in range(2))
        number, kind, value = fields[at]
        match dice.randrange(8):
            case 0 if len(fields) > 1:
                del fields[at]
            case 1:
                fields[other:other] = [fields[at]] * dice.choice([1, 1, 3, 2000])
            case 2:
                fields[at], fields[other] = fields[other], fields[at]
            case 3 if isinstance(value, bytes):
                fields[at] = (number, kind, damaged_bytes(value, dice))
            case 4:
                fields[at] = (dice.choice([1, 2, 3, 4, 54, 200, 2**28]), dice.choice([0, 1, 2, 5, kind]), value)
            case 5:  # a setting
                settings = next((i for i, f in enumerate(fields) if f[0] == dice.choice([2, 3])), at)
                inner = _setting(dice)
                fields[settings] = (*fields[settings][:2], b"".join([_bytes(fields[settings][2]), inner]))
            case _:
                fields[at] = (1, 2, _piece(dice))
    written = b"".join(_field(*field) for field in fields)
    return damaged_bytes(written, dice) if dice.random() < 0.1 else written


def _piece(dice: random.Random) -> bytes:
    text = dice.choice([*TEXTS, "▁", "▁the", "<0x41>", "<s>", "<unk>", "a a", "aaaa"]).encode("utf-8", "surrogatepass")
    text = dice.choice([text, text, text * 3, b"\xff\xfe"])
    score = struct.pack("<f", dice.choice([*FLOATS[:4], -1.0, 0.0, 3e38, float("nan"), float("-inf")]))
    return _field(1, 2, text) + _field(2, 5, score) + _field(3, 0, dice.choice([1, 2, 3, 4, 5, 6, 0, 7, 2**63]))


def _setting(dice: random.Random) -> bytes:
    number = dice.choice([1, 2, 3, 4, 5, 24, 40, 45, 46, 47, 48])
    return _field(number, dice.choice([0, 2]), dice.choice([0, 1, 2, 2**64 - 1, b"<unk>", b"a"]))


def _fields(data: bytes) -> list[_Field]:
    found: list[_Field] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value: bytes | int
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            n, at = _varint(data, at) if key & 7 == 2 else (4 if key & 7 == 5 else 8, at)
            value, at = data[at : at + n], at + n
        found.append((key >> 3, key & 7, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def _number(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def _bytes(value: bytes | int) -> bytes:
    return value if isinstance(value, bytes) else _number(value)


def _field(number: int, kind: int, value: bytes | int) -> bytes:
    key = _number(number << 3 | kind)
    if kind == 0:
        return key + (_number(value) if isinstance(value, int) else value)
    return key + (_number(len(_bytes(value))) if kind == 2 else b"") + _bytes(value)


# ---- tiktoken


def damaged_tiktoken(content: bytes, dice: random.Random) -> bytes:
    """Ranks twice, missing, negative or huge; tokens twice, empty, long, or no base64."""
    if dice.random() < 0.2:
        return damaged_bytes(content, dice)
    lines = content.splitlines()
    for _ in range(dice.choice([1, 1, 2, 5])):
        at, other = (dice.randrange(len(lines)) for _ in range(2))
        token, _, rank = lines[at].partition(b" ")
        match dice.randrange(9):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines[other:other] = [lines[at]] * dice.choice([1, 1, 3, 2000])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                other_rank = dice.choice([*NUMBERS, other, len(lines), "", "1.0", "+1", "٣", "1 2"])
                lines[at] = token + b" " + str(other_rank).encode()
            case 4:
                raw = dice.choice([b"", b"a", b"aaaa", b"\xff" * 1024, b"a" * 1025, b"a" * 50_000, b" " * 9, b"\0"])
                lines[at] = base64.b64encode(raw) + b" " + rank
            case 5:
                odd = [b"", b" ", b"=", token, rank, token + b"  " + rank, token[:-1] + b" " + rank, b"#" + lines[at]]
                lines[at] = dice.choice(odd)
            case 6:  # every cut of each of these is a merge
                for n in range(2, dice.choice([5, 40, 1000])):
                    lines.append(base64.b64encode(b"a" * n) + b" %d" % len(lines))
            case 7:
                dice.shuffle(lines)
            case _:
                lines[at] = damaged_bytes(lines[at], dice)
    return dice.choice([b"\n", b"\n", b"\r\n", b"\n\n"]).join(lines) + dice.choice([b"", b"\n"])


def damaged_lines(content: bytes, dice: random.Random) -> bytes:
    """Lines twice, missing, in other places, empty, long, or of two words."""
    if dice.random() < 0.2:
        return damaged_bytes(content, dice)
    lines = content.splitlines()
    for _ in range(dice.choice([1, 1, 2, 5])):
        at, other = (dice.randrange(len(lines)) for _ in range(2))
        match dice.randrange(7):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines[other:other] = [lines[at]] * dice.choice([1, 1, 3, 2000])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] += b" " + lines[other]
            case 4:
                lines[at] = b" ".join(lines[at].split(b" ")[::-1])
            case 5:
                dice.shuffle(lines)
            case _:
                lines[at] = dice.choice(TEXTS).encode("utf-8", "surrogatepass")
    return dice.choice([b"\n", b"\n", b"\r\n", b"\n\n", b"\r"]).join(lines) + dice.choice([b"", b"\n"])


# ---- chat templates

_SNIPPETS = [
    "{% for m in messages %}", "{% endfor %}", "{% if true %}", "{% else %}", "{% endif %}", "{{", "}}", "{%", "%}", "{#",
    "{{ bos_token }}", "{{ messages[9].content }}", "{{ 1 / 0 }}", "{{ undefined.x.y }}", "{{ ''.__class__.__mro__ }}",
    "{{ self }}", "{{ messages | tojson }}", "{% set x = x + x %}", "{{ 'a' * 10**9 }}", "{{ range(10**9) | list }}",
    "{{ [1] * 10**8 }}", "{% include 'x' %}", "{% extends messages %}", "{{ raise_exception('\n\x1b[31m') }}",
    "{{ strftime_now('%' * 99) }}", "{{ '\\ud800' }}", "{{ 9**9**7 }}", "{{ lipsum(n=99) }}", "{% break %}", "\0",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ '%*d' % (10**7, 1) }}", "{{ cycler('a').next() }}",
    "{% generation %}", "{% for i in range(99999) %}{{ i }}{% endfor %}", "{{ namespace(a=messages).a }}", "{% raw %}",
    "{{ messages.pop() }}", "{% do x %}",
]  # fmt: skip
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def damaged_template(content: bytes, dice: random.Random) -> bytes:
    """Parts of the template in other places, and parts that want too much. One in two hundred never ends."""
    if dice.random() < 0.15:
        return damaged_bytes(content, dice)
    parts = re.split(r"(\{[{%#].*?[}%#]\}|\s)", content.decode(), flags=re.DOTALL)
    for _ in range(dice.choice([1, 1, 2, 5])):
        at, other = (dice.randrange(len(parts)) for _ in range(2))
        match dice.randrange(6):
            case 0 if len(parts) > 1:
                del parts[at]
            case 1:
                parts[other:other] = [parts[at]] * dice.choice([1, 1, 3, 500])
            case 2:
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts[at] = damaged_bytes(parts[at].encode(), dice).decode("utf-8", "replace")
            case _:
                parts.insert(at, dice.choice(_SNIPPETS))
    if dice.random() < 0.005:
        parts.insert(dice.randrange(len(parts)), ENDLESS)
    return "".join(parts).encode("utf-8", "replace")
