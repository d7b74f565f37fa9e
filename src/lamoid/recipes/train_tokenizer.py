"""`lamoid tokenizer train`: text on disk -> a tokenizer directory."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamoid.errors import RunError, UsageError
from lamoid.recipes.progress import progress
from lamoid.recipes.recipe import option

if TYPE_CHECKING:
    from lamoid.data.sources import Source
    from lamoid.tokenizers.tokenizer import Tokenizer
KINDS, PASSAGE_BYTES = ("bpe", "char", "sentencepiece", "tiktoken"), 32_768


@dataclass(frozen=True)
class Recipe:
    """Train a tokenizer on text and write it as a directory that transformers opens."""

    data: list[str] = option([], "files, folders, globs, or python-docs, python-code")
    out: str = option("", "directory to write")
    kind: str = option("bpe", "byte-level BPE, characters, Llama 2's SentencePiece, or Llama 3's file", choices=KINDS)
    vocab_size: int | None = option(None, "ids, special tokens included (8192; sentencepiece: 32000; char: all)")
    split_digits: bool = option(False, "make each digit a token of its own (bpe; sentencepiece always does)")
    sample_bytes: int | None = option(None, "text to train on, spread evenly (default: what fits into 200 MB)")
    json: bool = option(False, "print what was made as one JSON object")


def run(recipe: Recipe) -> int:
    """Read a sample of the data, train, write the directory."""
    from lamoid.checkpoints.store import atomic_file
    from lamoid.data.sources import find_sources, first_texts
    from lamoid.tokenizers.bpe import affordable_bytes

    if not recipe.data or not recipe.out:
        raise UsageError("--data and --out are needed: lamoid tokenizer train --data texts/ --out my-tokenizer")
    sources = find_sources(recipe.data)
    n_bytes = sum(source.n_bytes for source in sources)
    sample_bytes = recipe.sample_bytes or affordable_bytes(first_texts(sources))
    tokenizer = _train(recipe, _sample(sources, n_bytes, sample_bytes))
    out = Path(recipe.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror}; choose another --out") from error
    for name, content in tokenizer.files().items():
        with atomic_file(out / name) as temporary:
            temporary.write_bytes(content)
    facts = {"out": str(out), "kind": recipe.kind, "vocab_size": tokenizer.vocab_size, "bytes": n_bytes}
    print(json.dumps(facts) if recipe.json else f"{out}: {recipe.kind}, {tokenizer.vocab_size:,} ids")
    return 0


def _train(recipe: Recipe, texts: Iterator[str]) -> "Tokenizer":
    from lamoid.tokenizers import bpe, char, sentencepiece, tiktoken

    if recipe.kind == "char":
        return char.train_char(texts, recipe.vocab_size)
    if recipe.kind == "sentencepiece":
        return sentencepiece.train_sentencepiece(texts, recipe.vocab_size or 32_000)
    if recipe.kind == "tiktoken":  # Llama 3's special tokens in place of ours
        n_more = len(tiktoken.LLAMA_3_SPECIAL_TOKENS) - len(bpe.SPECIAL_TOKENS)
        learned = bpe.train_bpe(texts, (recipe.vocab_size or 8192) - n_more)
        return tiktoken.read_tiktoken(tiktoken.write_tiktoken(learned))
    return bpe.train_bpe(texts, recipe.vocab_size or 8192, split_digits=recipe.split_digits)


def _sample(sources: "list[Source]", n_bytes: int, sample_bytes: int) -> Iterator[str]:
    from lamoid.data.sources import read_passages, spread

    def texts() -> Iterator[str]:
        for source in sources:
            yield from (passage.text for passage in read_passages(source, PASSAGE_BYTES))
            bar.update(source.n_bytes)

    with progress("reading", n_bytes, "B") as bar:
        yield from spread(texts(), sample_bytes / max(n_bytes, 1))
