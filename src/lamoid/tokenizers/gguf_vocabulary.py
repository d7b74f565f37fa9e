"""The tokenizer inside a GGUF file: the `tokenizer.ggml.…` metadata <-> Tokenizer. No torch.

Two kinds matter for Llamas: `llama`, SentencePiece with a score for each piece, and `gpt2`, byte-level BPE with merges
and the name of the pattern that splits a text into words. Source: ggml, docs/gguf.md, section "Tokenizer".
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from tokenizers import models

from lamoid.errors import DataError
from lamoid.tokenizers.bpe import DIGITS_ALONE
from lamoid.tokenizers.byte_level import GPT_2, SPLITS, from_merges
from lamoid.tokenizers.sentencepiece import SPACE, from_pieces
from lamoid.tokenizers.templates import check_template
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.tokenizers.vocabulary import TokenType, every_cut

PREFIX, CHAT_TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
ROLE_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # so it is spelled there
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}
BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
PROBE = (
    "The quick brown fox can't jump 12345 times, or 3.14; naïve café №9!  Two  spaces\n\n\tand a tab.\r\n"
    "def f(x):\n    return x**2  # code\n"
    "Tiếng Việt có dấu: Hà Nội, phở bò. Tie\u0302\u0301ng Vie\u0323\u0302t. "
    "中文没有空格。한국어 문장입니다. العربية من اليمين. हिन्दी Ελληνικά русский ไทย "
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 ½ ² \u00a0 <s> </s> <|begin_of_text|> <|im_start|>user [INST] "
)
"""Text in many scripts, digits, spaces, code, joiners, special tokens spelled out: ids that agree on it agree."""
_LLAMA_DEFAULTS = {"bos": (1, TokenType.CONTROL), "eos": (2, TokenType.CONTROL), "unk": (0, TokenType.UNKNOWN)}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a file's metadata describe, with its chat template, None where they describe none.

    Tokens that only fill the vocabulary up to the model's size (`[PAD123]`, unused) are left out.
    Raises DataError, naming the key, for another kind and for a vocabulary that contradicts itself.
    """
    if PREFIX + "model" not in metadata:
        return None
    tokenizer = _tokenizer(metadata)
    if CHAT_TEMPLATE in metadata:
        tokenizer.chat_template = check_template(metadata[CHAT_TEMPLATE], CHAT_TEMPLATE)
    return tokenizer


def _tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    kind = metadata[PREFIX + "model"]
    if not isinstance(kind, str) or kind not in ("llama", "gpt2"):
        raise DataError(
            f"{PREFIX}model is {kind!r:.80}; only 'llama' (SentencePiece) and 'gpt2' (byte-level) can be read"
        )
    if np.size(metadata.get(PREFIX + "precompiled_charsmap", ())):
        raise DataError(f"{PREFIX}precompiled_charsmap rewrites texts; only files without it can be read")
    tokens, types = _strings(metadata, "tokens"), [_whole(t) for t in _numbers(metadata, "token_type")]
    types = types or [TokenType.NORMAL] * len(tokens)
    while tokens and types[len(tokens) - 1 :] == [TokenType.UNUSED] and tokens[-1] == filler(len(tokens) - 1):
        tokens, types = tokens[:-1], types[:-1]
    special_ids = {role: _id(metadata, key) for role, key in ROLE_KEYS.items() if PREFIX + key in metadata}
    add_eos = _flag(metadata, "add_eos_token") or False
    if kind == "gpt2":
        return from_merges(
            tokens,
            _strings(metadata, "merges"),
            types,
            split=str(metadata.get(PREFIX + "pre", "default")),
            special_ids=special_ids,
            add_bos=_flag(metadata, "add_bos_token"),
            add_eos=add_eos,
        )
    add_bos, add_space = _flag(metadata, "add_bos_token"), _flag(metadata, "add_space_prefix")
    return from_pieces(
        tokens,
        [float(score) for score in _numbers(metadata, "scores")[: len(tokens)]],
        types,
        special_ids={role: i for role, (i, kind) in _LLAMA_DEFAULTS.items() if types[i : i + 1] == [kind]}
        | special_ids,
        add_bos=add_bos is not False,
        add_eos=add_eos,
        add_dummy_prefix=add_space is not False,
    )


def filler(index: int) -> str:
    """The token for an id that the model has and the tokenizer lacks."""
    return f"[PAD{index}]"


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(PREFIX + key)
    if not isinstance(value, list):
        raise DataError(f"{PREFIX}{key} is {'missing' if value is None else 'no list of texts'}; the file needs one")
    return value


def _numbers(metadata: Mapping[str, Any], key: str) -> list[float]:
    value = metadata.get(PREFIX + key, [])
    if isinstance(value, str | bool | int | float) or any(isinstance(item, str) for item in value[:1]):
        raise DataError(f"{PREFIX}{key} is {value!r:.80}; it must be an array of numbers")
    return np.asarray(value).tolist()


def _whole(token_type: float) -> int:
    if not float(token_type).is_integer():
        raise DataError(f"{PREFIX}token_type holds {token_type!r}; it must be an array of whole numbers")
    return int(token_type)


def _id(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata[PREFIX + key]
    if type(value) is not int:
        raise DataError(f"{PREFIX}{key} is {value!r:.80}; it must be a whole number")
    return value


def _flag(metadata: Mapping[str, Any], key: str) -> bool | None:
    value = metadata.get(PREFIX + key)
    if value is not None and type(value) is not bool:
        raise DataError(f"{PREFIX}{key} is {value!r:.80}; it must be true or false")
    return value


def tokenizer_to_gguf(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The metadata of a tokenizer for a model of so many ids; `tokenizer_from_gguf` makes the same ids of them.

    Raises DataError where no kind that GGUF knows gives the ids of this tokenizer.
    """
    state = json.loads(tokenizer.backend.to_str())
    model = state["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise DataError(f"the tokenizer is a {model['type']} that GGUF has no kind for; only BPE can be written")
    if tokenizer.vocab_size > vocab_size:
        raise DataError(f"the tokenizer has {tokenizer.vocab_size} ids, the model only {vocab_size}; they do not fit")
    write = _pieces_to_gguf if model.get("byte_fallback") else _merges_to_gguf
    metadata = write(tokenizer, state, vocab_size) | _surroundings(tokenizer)
    metadata |= {ROLE_KEYS[role]: tokenizer.special_id(role) for role in tokenizer.specials}
    if cut := [token for token in metadata["tokens"] if "\0" in token]:
        raise DataError(f"token {cut[0]!r:.80} has a U+0000 in it, where llama.cpp ends a token; GGUF cannot say it")
    metadata = {PREFIX + key: value for key, value in metadata.items()}
    if tokenizer.chat_template is not None:
        metadata[CHAT_TEMPLATE] = tokenizer.chat_template
    _check_same(tokenizer, state, metadata)
    return metadata


def _merges_to_gguf(tokenizer: Tokenizer, state: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    tokens, types = _tokens(tokenizer, vocab_size), _types(tokenizer, state, vocab_size)
    merges = [" ".join(pair) for pair in state["model"]["merges"]]
    return {"model": "gpt2", "pre": find_split(tokenizer), "tokens": tokens, "token_type": types, "merges": merges}


def _pieces_to_gguf(tokenizer: Tokenizer, state: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Pieces with scores that order them as the merges do: the first to be merged has the highest.

    llama.cpp keeps extra spaces of a text, and joins two pieces whenever they make a token, a control token too.
    """
    tokens, types = _tokens(tokenizer, vocab_size), _types(tokenizer, state, vocab_size)
    placed = [t for t, kind in zip(tokens, types, strict=True) if kind in (TokenType.CONTROL, TokenType.UNKNOWN)]
    if spelled := every_cut(placed, set(tokens)):
        raise DataError(
            f"pieces {' + '.join(map(repr, spelled[0]))} spell a special token, which llama.cpp would make of a text; "
            f"train the tokenizer without one of them"
        )
    merged = list(dict.fromkeys(left + right for left, right in state["model"]["merges"]))
    rank = {token: i for i, token in enumerate(merged)}
    typed = list(zip(tokens, types, strict=True))
    scores = [-float(rank.get(token, len(rank))) if kind == TokenType.NORMAL else 0.0 for token, kind in typed]
    if not any(SPACE in token for token in tokens):  # spaces as themselves, which GGUF cannot say
        tokens = [token.replace(" ", SPACE) if kind == TokenType.NORMAL else token for token, kind in typed]

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    if ids("a  a") == ids("a a"):
        raise DataError("the tokenizer removes extra spaces, which llama.cpp does not do with SentencePiece BPE")
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": scores,
        "token_type": types,
        "add_space_prefix": bool(ids("a")) and tokens[ids("a")[0]].startswith(SPACE),
    }


def find_split(tokenizer: Tokenizer) -> str:
    """The name in SPLITS of the way in which a byte-level tokenizer splits a text into words.

    A split that keeps words whole which are tokens also fits a tokenizer that does not, if every token taken by itself
    comes out whole. Raises DataError where none fits.
    """
    state = json.loads(tokenizer.backend.to_str())
    patterns, whole_words = _patterns(state), bool(state["model"].get("ignore_merges"))
    fitting = [name for name, split in SPLITS.items() if split.patterns == patterns]
    exact = [name for name in fitting if SPLITS[name].whole_words == whole_words]
    if fitting and fitting[0] not in exact and _tokens_come_out_whole(tokenizer, state):
        return fitting[0]
    if not exact:
        raise DataError(
            f"no way of splitting words that GGUF knows is this tokenizer's, {patterns!r:.200}; known are {', '.join(SPLITS)}"
        )
    return exact[0]


def _patterns(state: dict[str, Any]) -> tuple[str, ...] | None:
    """The patterns that cut a text one after the other, None where that is not all that happens to it."""
    steps = state["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    patterns: list[str] = []
    for step in steps:
        if (
            step.get("type") == "Split"
            and step["behavior"] == "Isolated"
            and not step["invert"]
            and "Regex" in step["pattern"]
        ):
            patterns.append(step["pattern"]["Regex"])
        elif step.get("type") == "Digits" and step["individual_digits"]:
            patterns.append(DIGITS_ALONE)
        elif step.get("type") == "ByteLevel" and not step["add_prefix_space"] and step is steps[-1]:
            patterns += [GPT_2] if step["use_regex"] else []
        else:
            return None
    is_byte_level = bool(steps) and steps[-1].get("type") == "ByteLevel"
    return tuple(patterns) if is_byte_level and state["normalizer"] is None else None


def _tokens_come_out_whole(tokenizer: Tokenizer, state: dict[str, Any]) -> bool:
    merged_only = json.loads(json.dumps(state["model"])) | {"ignore_merges": False}
    pairs = [(left, right) for left, right in merged_only["merges"]]
    model = models.BPE(vocab=merged_only["vocab"], merges=pairs)
    added = {token["content"] for token in state["added_tokens"]}
    return all(
        [piece.id for piece in model.tokenize(token)] == [index]
        for token, index in merged_only["vocab"].items()
        if token not in added
    )


def _tokens(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    token_of_id = {index: token for token, index in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    return [token_of_id.get(index, filler(index)) for index in range(vocab_size)]


def _types(tokenizer: Tokenizer, state: dict[str, Any], vocab_size: int) -> list[int]:
    kinds = dict.fromkeys(range(vocab_size), TokenType.UNUSED)
    for token, index in state["model"]["vocab"].items():
        is_byte = state["model"].get("byte_fallback") and token in BYTE_TOKENS
        kinds[index] = TokenType.BYTE if is_byte else TokenType.NORMAL
    for token in state["added_tokens"]:
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    unknown = tokenizer.backend.token_to_id(state["model"].get("unk_token") or "")
    if unknown is not None and state["model"].get("byte_fallback"):
        kinds[unknown] = TokenType.UNKNOWN
    return [int(kinds[index]) for index in range(vocab_size)]


def _surroundings(tokenizer: Tokenizer) -> dict[str, bool]:
    """Whether a text gets the bos token in front and the eos token behind; DataError for anything else around it."""
    bare, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    bos, eos = tokenizer.special_id("bos"), tokenizer.special_id("eos")
    for before, after in ((False, False), (True, False), (False, True), (True, True)):
        if whole == [bos] * before + bare + [eos] * after:
            return {"add_bos_token": before, "add_eos_token": after}
    raise DataError(f"the tokenizer makes {whole} of 'a'; GGUF can only say bos in front and eos behind")


def _check_same(tokenizer: Tokenizer, state: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Raise DataError unless the metadata make the same tokenizer: its tokens, its merges, the ids of PROBE."""
    again = tokenizer_from_gguf(metadata)
    assert again is not None
    written = json.loads(again.backend.to_str())["model"]
    spelled = [
        {(left.replace(" ", SPACE), right.replace(" ", SPACE)) for left, right in model["merges"]}
        for model in (state["model"], written)
    ]
    user_defined = [token["content"] for token in state["added_tokens"] if not token["special"]]
    text = " ".join([PROBE, *user_defined])
    if spelled[0] != spelled[1] or tokenizer.encode(text) != again.encode(text):
        raise DataError(
            f"a GGUF vocabulary of kind {metadata[PREFIX + 'model']!r} would give other ids than this tokenizer"
        )
