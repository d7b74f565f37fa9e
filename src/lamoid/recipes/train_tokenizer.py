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
KINDS = ("bpe", "char", "sentencepiece", "tiktoken", "wordpiece", "roberta", "gpt2")
PASSAGE_BYTES = 32_768


@dataclass(frozen=True)
class Recipe:
    """Train a tokenizer on text and write it as a directory that transformers opens."""

    data: list[str] = option([], "files, folders, globs, or python-docs, python-code")
    out: str = option("", "directory to write")
    kind: str = option(
        "bpe",
        "Lamoid's byte-level BPE, characters, or the kind of Llama 1 and 2, Llama 3, BERT, RoBERTa, GPT-2",
        choices=KINDS,
    )
    vocab_size: int | None = option(None, "ids, special tokens included (8192; sentencepiece: 32000; char: all)")
    split_digits: bool = option(False, "make each digit a token of its own (bpe; sentencepiece always does)")
    cased: bool = option(False, "keep capital letters and accents (wordpiece)")
    sample_bytes: int | None = option(None, "text to train on, spread evenly (default: what fits into 200 MB)")
    json: bool = option(False, "print what was made as one JSON object")


def run(recipe: Recipe) -> int:
    """Read a sample of the data, train, write the directory."""
    from lamoid.checkpoints.store import atomic_file
    from lamoid.data.sources import find_sources, first_texts
    from lamoid.recipes.tokenizer_kinds import train
    from lamoid.tokenizers.bpe import affordable_bytes

    if not recipe.data or not recipe.out:
        raise UsageError("--data and --out are needed: lamoid tokenizer train --data texts/ --out my-tokenizer")
    sources = find_sources(recipe.data)
    n_bytes = sum(source.n_bytes for source in sources)
    sample_bytes = recipe.sample_bytes or affordable_bytes(first_texts(sources))
    texts = _sample(sources, n_bytes, sample_bytes)
    tokenizer = train(recipe.kind, texts, recipe.vocab_size, split_digits=recipe.split_digits, cased=recipe.cased)
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


def _sample(sources: "list[Source]", n_bytes: int, sample_bytes: int) -> Iterator[str]:
    from lamoid.data.sources import read_passages, spread

    def texts() -> Iterator[str]:
        for source in sources:
            yield from (passage.text for passage in read_passages(source, PASSAGE_BYTES))
            bar.update(source.n_bytes)

    with progress("reading", n_bytes, "B") as bar:
        yield from spread(texts(), sample_bytes / max(n_bytes, 1))
