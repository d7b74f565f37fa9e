"""Raw text -> a tokenizer, a store of training tokens and a held-out text, made once and used again while nothing changed.

The stores lie in the user's cache, each in a folder named by a hash of everything that decides its content.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamoid.data.sources import Source, find_sources
from lamoid.errors import DataError
from lamoid.recipes.cache import cache_directory
from lamoid.recipes.progress import progress
from lamoid.recipes.tokenizer_kinds import train
from lamoid.tokenizers.bpe import affordable_bytes
from lamoid.tokenizers.grow import SAMPLE_BYTES, grow, tokens_per_character
from lamoid.tokenizers.load import load_tokenizer
from lamoid.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lamoid.data.corpus import Corpus

STORE_VERSION = 1
TOKENS_FILE, HELDOUT_FILE, MANIFEST_FILE = "tokens.bin", "heldout.jsonl", "manifest.json"
HELDOUT_FOLDER = "heldout"
Layout = Literal["documents", "separated", "sentences"]
"""How the ids lie: between begin and end of text; with [SEP] behind each document; or with the borders of sentences."""
KIND_NAMES = {"bpe": "a byte-level BPE", "wordpiece": "a WordPiece", "roberta": "a byte-level BPE of RoBERTa's kind"}


@dataclass(frozen=True)
class PreparedText:
    """Training tokens (mapped, not loaded), held-out passages, the tokenizer of both, and the facts about them."""

    tokenizer: Tokenizer
    tokens: np.ndarray
    heldout: list[str]
    facts: dict[str, Any]

    @property
    def key(self) -> str:
        """The hash that names the store: equal keys mean equal tokens."""
        return str(self.facts["key"])

    def heldout_texts(self, max_bytes: float = math.inf) -> list[str]:
        """Held-out passages up to about `max_bytes`, at least one."""
        texts: list[str] = []
        n_bytes = 0
        for text in self.heldout:
            n_bytes += len(text.encode())
            if texts and n_bytes > max_bytes:
                break
            texts.append(text)
        return texts

    def heldout_documents(self, max_bytes: float = math.inf) -> tuple[list[list[int]], int]:
        """The same as ids, each behind a begin-of-text token; and their bytes."""
        texts = self.heldout_texts(max_bytes)
        return encode_documents(texts, self.tokenizer), sum(len(text.encode()) for text in texts)


def encode_documents(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each text behind a begin-of-text token, which gives its first token something to stand behind."""
    begin = tokenizer.special_id("bos")
    return [[begin, *ids] if begin is not None else ids for ids in tokenizer.encode_many(texts)]


def measure(data: Sequence[str]) -> tuple[list[Source], int]:
    """The sources that `data` names, and their bytes together."""
    sources = find_sources(data)
    return sources, sum(source.n_bytes for source in sources)


def prepare(
    sources: Sequence[Source],
    *,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    heldout_share: float,
    seed: int,
    notify: Callable[[str], object],
    grow_vocab: int = 0,
    kind: str = "bpe",
    layout: Layout = "documents",
) -> PreparedText:
    """Find the store for these sources and settings, or make it: survey, train a tokenizer unless given, encode.

    With `grow_vocab` the tokenizer that is given learns so many more tokens from the training text. `kind` is what is
    trained, as `lamoid tokenizer train --kind` names it. Encoders have layouts of their own, in which the held-out text
    lies beside the other, in HELDOUT_FOLDER.
    """
    from lamoid.checkpoints.store import atomic_directory
    from lamoid.training.distributed import current

    settings = {
        "version": STORE_VERSION,
        "sources": [[source.name, source.n_bytes, source.digest()] for source in sources],
        "tokenizer": tokenizer.fingerprint() if tokenizer is not None else f"{kind} {vocab_size}",
        "heldout_share": heldout_share,
        "seed": seed,
    }
    if grow_vocab:
        settings["grow_vocab"] = grow_vocab
    if layout != "documents":
        settings["layout"] = layout
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    store = store_path(key)
    with current().in_turn():
        if store.is_dir():
            notify(f"text: tokenized before, in {store}")
            return open_store(key, tokenizer)
        with atomic_directory(store) as temporary:
            _build(temporary, sources, tokenizer, (kind, vocab_size), settings | {"key": key}, notify)
    return open_store(key, tokenizer)


def _build(
    store: Path,
    sources: Sequence[Source],
    tokenizer: Tokenizer | None,
    wanted: tuple[str, int],
    facts: dict[str, Any],
    notify: Callable[[str], object],
) -> None:
    from lamoid.data.corpus import survey

    n_bytes = sum(source.n_bytes for source in sources)
    with progress("reading", n_bytes, "B") as bar:
        corpus = survey(sources, heldout_share=facts["heldout_share"], seed=facts["seed"], on_bytes=bar.update)
    heldout_bytes = sum(len(p.text.encode()) for p in corpus.heldout)
    notify(
        f"text: {corpus.n_bytes:,} bytes to train on, {heldout_bytes:,} held out, "
        f"{corpus.n_repeated_bytes:,} left out because they stand elsewhere too"
    )
    if tokenizer is None:
        tokenizer = _train(corpus, *wanted, notify)
    elif facts.get("grow_vocab"):
        tokenizer = _grow(corpus, tokenizer, facts["grow_vocab"], notify)
    with progress("encoding", corpus.n_bytes, "B") as bar:
        n_tokens = _write(store, facts.get("layout", "documents"), corpus, tokenizer, bar.update)
    _write_heldout(store / HELDOUT_FILE, corpus)
    for name, content in tokenizer.files().items():
        (store / name).write_bytes(content)
    facts |= {"n_bytes": corpus.n_bytes, "heldout_bytes": heldout_bytes, "n_tokens": n_tokens}
    (store / MANIFEST_FILE).write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _write(store: Path, layout: str, corpus: "Corpus", tokenizer: Tokenizer, on_bytes: Callable[[int], object]) -> int:
    """Write the ids of the training text, and for an encoder of the held-out text; returns the tokens of the former."""
    from lamoid.data.packed import write_tokens
    from lamoid.data.sentences import write_sentences

    if layout == "documents":
        return write_tokens(store / TOKENS_FILE, corpus.training(), tokenizer, on_bytes)
    (store / HELDOUT_FOLDER).mkdir()
    if layout == "sentences":
        write_sentences(store / HELDOUT_FOLDER, corpus.heldout, tokenizer)
        return write_sentences(store, corpus.training(), tokenizer, on_bytes)
    sep = tokenizer.special_id("sep")
    write_tokens(store / HELDOUT_FOLDER / TOKENS_FILE, corpus.heldout, tokenizer, separator=sep)
    return write_tokens(store / TOKENS_FILE, corpus.training(), tokenizer, on_bytes, separator=sep)


def _train(corpus: "Corpus", kind: str, vocab_size: int, notify: Callable[[str], object]) -> Tokenizer:
    notify(f"tokenizer: training {KIND_NAMES.get(kind, kind)} of {vocab_size:,} ids")
    sample = corpus.sample(affordable_bytes(p.text for p in corpus.heldout))
    return train(kind, iter(sample), vocab_size, split_digits=False, cased=False)


def _grow(corpus: "Corpus", tokenizer: Tokenizer, n_tokens: int, notify: Callable[[str], object]) -> Tokenizer:
    n_bytes = min(SAMPLE_BYTES, corpus.n_bytes)
    with progress("reading", n_bytes, "B") as read, progress("learning tokens", n_tokens, "tok") as learned:
        sample = corpus.sample(SAMPLE_BYTES)
        grown = grow(tokenizer, sample, n_tokens, on_bytes=read.update, on_tokens=learned.update)
    texts = [passage.text for passage in corpus.heldout]
    before, after = (tokens_per_character(t, texts) for t in (tokenizer, grown))
    notify(
        f"tokenizer: {grown.vocab_size - tokenizer.vocab_size:,} tokens learned, now {grown.vocab_size:,}; "
        f"{before:.3f} -> {after:.3f} tokens per character of the held-out text"
    )
    return grown


def _write_heldout(file: Path, corpus: "Corpus") -> None:
    with file.open("w", encoding="utf-8") as out:
        for passage in corpus.heldout:
            out.write(json.dumps({"text": passage.text, "source": passage.source}, ensure_ascii=False) + "\n")


def store_path(key: str) -> Path:
    """Where the store of this hash lies."""
    return cache_directory() / "text" / key


def open_store(key: str, tokenizer: Tokenizer | None) -> PreparedText:
    """A store, with the tokenizer that was given: the store's gives the same ids, but may have another chat template.

    Raises DataError where it is damaged or not there.
    """
    from lamoid.data.packed import id_type

    store = store_path(key)
    try:
        facts = json.loads((store / MANIFEST_FILE).read_text(encoding="utf-8"))
        lines = (store / HELDOUT_FILE).read_text(encoding="utf-8").split("\n")
        stored = load_tokenizer(store) if tokenizer is None or "grow_vocab" in facts else tokenizer
        tokens = np.memmap(store / TOKENS_FILE, dtype=id_type(stored.vocab_size), mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{store} is damaged ({error}); delete it, it will be made again") from error
    if len(tokens) != facts["n_tokens"]:
        raise DataError(
            f"{store} has {len(tokens)} tokens instead of {facts['n_tokens']}; delete it, it will be made again"
        )
    if tokenizer is not None:
        stored.chat_template = tokenizer.chat_template
    return PreparedText(stored, tokens, [json.loads(line)["text"] for line in lines if line], facts)
