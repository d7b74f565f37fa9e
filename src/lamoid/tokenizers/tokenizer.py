"""One tokenizer class around the `tokenizers` runtime: encode, decode, batches, and a directory that transformers opens."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as runtime
from tokenizers import normalizers, pre_tokenizers, processors

from lamoid.errors import DataError
from lamoid.tokenizers.patterns import check_patterns

CONFIG_FILE, TOKENIZER_FILE, TEMPLATE_FILE = "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"
CANNOT_ENCODE = "the tokenizer cannot encode this text"
MAX_TOKENIZER_BYTES, MAX_CONFIG_BYTES = 256 * 2**20, 8 * 2**20
_NEVER_EXECUTED = ("auto_map", "trust_remote_code", "custom_pipelines")
SPECIAL_ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
MAX_ID = 2**20 - 1  # the largest vocabularies have a quarter of it
_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_STRAY_BYTE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is no UTF-8


@dataclass(frozen=True)
class EncodedBatch:
    """Texts of unequal length as one rectangle, each (B, T): ids, mask (0 is padding), segments (0 first text, 1 second)."""

    ids: np.ndarray
    mask: np.ndarray
    segments: np.ndarray


class Tokenizer:
    """Text to ids and back.

    Special tokens that a user writes out in a text stay text: only the tokenizer itself and chat templates place them.
    `specials` names the token of each role in SPECIAL_ROLES that the model has, such as {"bos": "<|begin_of_text|>"}.
    `vocab_size` is the number of ids, special tokens included: the largest id plus one.
    `native` are the files from which it was read, by name, where that was no `tokenizer.json`.
    `chat_template` is the model's format of conversations, as Jinja source; it decides no ids of texts.
    """

    def __init__(
        self,
        backend: runtime.Tokenizer,
        specials: dict[str, str],
        native: Mapping[str, bytes] | None = None,
        chat_template: str | None = None,
    ) -> None:
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.specials = backend, specials
        vocabulary = backend.get_vocab(with_added_tokens=True)
        _check_ids(vocabulary)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self._special_ids = {role: backend.token_to_id(token) for role, token in specials.items()}
        missing = [specials[role] for role, index in self._special_ids.items() if index is None]
        if missing:
            raise DataError(f"special tokens {missing!r:.200} are not in the vocabulary; add them to {TOKENIZER_FILE}")
        self.native, self.chat_template = dict(native or {}), chat_template
        self._byte_ids = _byte_ids(backend)
        self._byte_of_id = {index: byte for byte, index in enumerate(self._byte_ids)}

    def special_id(self, role: str) -> int | None:
        """The id of the token in a role of SPECIAL_ROLES, None where the tokenizer has none."""
        return self._special_ids.get(role)

    def encode(self, text: str, pair: str | None = None, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, or of a pair of texts, with the special tokens that the model expects around them."""
        check_encodable(text)
        if pair is not None:
            check_encodable(pair)
        with runtime_errors(CANNOT_ENCODE):
            return self.backend.encode(text, pair, add_special_tokens=add_special_tokens).ids

    def encode_many(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        """Ids of many texts, on all cores. The environment's RAYON_NUM_THREADS limits them."""
        for text in texts:
            check_encodable(text)
        with runtime_errors(CANNOT_ENCODE):
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def encode_batch(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> EncodedBatch:
        """Texts (or pairs) as one rectangle, padded on the right with the pad token (id 0 where there is none)."""
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts)} texts but {len(pairs)} pairs; give one pair for each text")
        for text in (*texts, *(pairs or ())):
            check_encodable(text)
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        with runtime_errors(CANNOT_ENCODE):
            encodings = self.backend.encode_batch(inputs)
        shape = (len(encodings), max((len(e.ids) for e in encodings), default=0))
        ids = np.full(shape, self.special_id("pad") or 0, dtype=np.int64)
        mask, segments = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, encoding in enumerate(encodings):
            n_tokens = len(encoding.ids)
            ids[row, :n_tokens], mask[row, :n_tokens], segments[row, :n_tokens] = encoding.ids, 1, encoding.type_ids
        return EncodedBatch(ids, mask, segments)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        for index in ids:
            if not 0 <= index < self.vocab_size:
                raise DataError(f"id {index} is outside the vocabulary; ids run from 0 to {self.vocab_size - 1}")
        ids = [int(i) for i in ids]
        if self._byte_of_id:
            ids = self._replace_stray_bytes(ids)
        with runtime_errors("the tokenizer cannot decode these ids"):
            return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def _replace_stray_bytes(self, ids: list[int]) -> list[int]:
        """Byte tokens that are no UTF-8 become the three of U+FFFD, one U+FFFD for each, as in sentencepiece.

        The runtime would give up the whole run of byte tokens, its valid characters too.
        """
        repaired: list[int] = []
        for is_byte, run in groupby(ids, self._byte_of_id.__contains__):
            if is_byte:
                text = bytes(self._byte_of_id[i] for i in run).decode("utf-8", "surrogateescape")
                repaired += [self._byte_ids[byte] for byte in _STRAY_BYTE.sub("\ufffd", text).encode()]
            else:
                repaired += run
        return repaired

    def decode_stream(self, before: Sequence[int]) -> Callable[[int], str]:
        """Decode id by id: a function from the next id to the text it completes, empty inside a character.

        `before` are the ids that came earlier, whose text is not repeated. The runtime's own DecodeStream repeats it
        where it ends in U+FFFD, and fails where a stray byte changes how the bytes before it are read.
        """
        context, waiting = list(before), list[int]()

        def step(index: int) -> str:
            nonlocal context, waiting
            waiting.append(index)
            earlier, text = self.decode(context), self.decode(context + waiting)
            if text.endswith("\ufffd") or text == earlier:
                return ""
            new = text.removeprefix(earlier) if text.startswith(earlier) else self.decode(waiting)
            context, waiting = waiting, []
            return new

        return step

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the ids."""
        import hashlib  # 4 MB of OpenSSL, which a chat does not need

        content = json.dumps([json.loads(self.backend.to_str()), self.specials], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def files(self) -> dict[str, bytes]:
        """Name and content of each file that a model directory needs, for whoever writes it."""
        config = {
            **_class_in_transformers(self.backend),
            "clean_up_tokenization_spaces": False,
            **{f"{role}_token": self.specials[role] for role in SPECIAL_ROLES if role in self.specials},
        }
        template = {} if self.chat_template is None else {TEMPLATE_FILE: self.chat_template.encode()}
        return {
            TOKENIZER_FILE: self.backend.to_str(pretty=True).encode(),
            CONFIG_FILE: (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode(),
            **template,
            **self.native,
        }


def _class_in_transformers(backend: runtime.Tokenizer) -> dict[str, Any]:
    """The class that opens the files, with what it is made from: BERT's and RoBERTa's, which transformers builds anew."""
    before, words, after = backend.normalizer, backend.pre_tokenizer, backend.post_processor
    if isinstance(before, normalizers.BertNormalizer) and isinstance(words, pre_tokenizers.BertPreTokenizer):
        return {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": before.lowercase,
            "strip_accents": before.strip_accents,
            "tokenize_chinese_chars": before.handle_chinese_chars,
        }
    if isinstance(after, processors.RobertaProcessing) and isinstance(words, pre_tokenizers.ByteLevel):
        return {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": words.add_prefix_space}
    return {"tokenizer_class": "PreTrainedTokenizerFast"}


def read_tokenizer_json(path: str | Path) -> Tokenizer:
    """Read the `tokenizer.json` of a model directory, or by itself.

    Raises DataError where the files are missing, too large, or make no tokenizer.
    """
    path = Path(path)
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file} does not exist; a tokenizer is a directory with {TOKENIZER_FILE}, or that file")
    if file.stat().st_size > MAX_TOKENIZER_BYTES:
        raise DataError(f"{file} has {file.stat().st_size} bytes; a tokenizer has at most {MAX_TOKENIZER_BYTES}")
    with runtime_errors(f"{file} is no tokenizer"):
        backend = runtime.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        check_patterns(backend)
    return Tokenizer(backend, name_roles(read_config(file.with_name(CONFIG_FILE))))


def read_config(file: Path) -> dict[str, Any]:
    """What a `tokenizer_config.json` says, nothing where there is none. Raises DataError where it is no JSON object."""
    if not file.is_file():
        return {}
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise DataError(f"{file} has {file.stat().st_size} bytes; at most {MAX_CONFIG_BYTES} are read")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{file} is not a JSON object: {error}") from error


def note_code(config: dict[str, Any], file: Path) -> None:
    """Say, on standard error, which fields of a configuration name code of the model's own: it is never run."""
    for field in _NEVER_EXECUTED:
        if field in config:
            print(f"note: {file}: {field} is ignored; no code of a model directory is ever run", file=sys.stderr)


def name_roles(config: dict[str, Any]) -> dict[str, str]:
    """The special token of each role that a `tokenizer_config.json` names."""
    tokens = {role: config.get(f"{role}_token") for role in SPECIAL_ROLES}
    contents = {role: t.get("content") if isinstance(t, dict) else t for role, t in tokens.items()}
    roles = {role: token for role, token in contents.items() if isinstance(token, str)}
    for role, token in roles.items():
        check_encodable(token, f"the {role}_token")
    return roles


def _check_ids(vocabulary: dict[str, int]) -> None:
    token_of: dict[int, str] = {}
    for token, index in sorted(vocabulary.items()):
        if token_of.setdefault(index, token) != token:
            raise DataError(
                f"id {index} belongs to {token_of[index]!r:.80} and {token!r:.80}; each token needs its own"
            )
        if index > MAX_ID:  # the runtime counts up to it when it writes a vocabulary
            raise DataError(f"token {token!r:.80} has id {index}; ids run up to {MAX_ID}")


@contextlib.contextmanager
def runtime_errors(what: str) -> Iterator[None]:
    """Raise DataError for whatever the Rust library raises, its panic too, which is no Exception."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
            raise
        raise DataError(f"{what}: {str(error)[:300]}") from error


def check_encodable(text: str, what: str = "the text") -> None:
    """Raise DataError for a text that UTF-8 cannot write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} has a lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, which is no "
            f"character; replace it, for example with text.encode('utf-8', 'replace').decode()"
        ) from error


def _byte_ids(backend: runtime.Tokenizer) -> list[int]:
    """The ids of the 256 byte tokens, none where the model does not fall back on bytes."""
    if not getattr(backend.model, "byte_fallback", False):
        return []
    ids = [backend.token_to_id(token) for token in _BYTE_TOKENS]
    known = [index for index in ids if index is not None]
    return known if len(known) == len(_BYTE_TOKENS) else []
