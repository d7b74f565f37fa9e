"""`lamoid tokenizer train`: text on disk -> a tokenizer directory."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lamoid.errors import RunError, UsageError
from lamoid.recipes.recipe import option

DEFAULT_VOCAB_SIZES = {"bpe": 8192, "char": None}


@dataclass(frozen=True)
class Recipe:
    """Train a tokenizer on text and write it as a directory that transformers opens."""

    data: list[str] = option([], "files, folders, globs, or python-docs, python-code")
    out: str = option("", "directory to write")
    kind: str = option("bpe", "how text is cut: byte-level BPE, or single characters", choices=("bpe", "char"))
    vocab_size: int | None = option(None, "number of ids, special tokens included (bpe: 8192; char: all characters)")
    split_digits: bool = option(False, "make each digit a token of its own (bpe)")
    sample_bytes: int = option(50_000_000, "train on about this much text, spread evenly over all of it; bounds memory")
    json: bool = option(False, "print what was made as one JSON object")


def run(recipe: Recipe) -> int:
    """Read a sample of the data, train, write the directory."""
    from lamoid.checkpoints.store import atomic_file
    from lamoid.data.sources import find_sources, read_passages
    from lamoid.tokenizers.bpe import train_bpe
    from lamoid.tokenizers.char import train_char

    if not recipe.data or not recipe.out:
        raise UsageError(
            "--data and --out are needed, such as: lamoid tokenizer train --data texts/ --out my-tokenizer"
        )
    sources = find_sources(recipe.data)
    n_bytes = sum(source.n_bytes for source in sources)
    share = min(1.0, recipe.sample_bytes / max(n_bytes, 1))

    def texts() -> Iterator[str]:
        owed = 1.0
        with tqdm(total=n_bytes, unit="B", unit_scale=True, desc="reading", delay=2, file=sys.stderr) as bar:
            for source in sources:
                for passage in read_passages(source, 32_768):
                    bar.update(len(passage.text.encode()))
                    if owed >= 1.0:
                        owed -= 1.0
                        yield passage.text
                    owed += share

    if recipe.kind == "bpe":
        tokenizer = train_bpe(texts(), recipe.vocab_size or 8192, split_digits=recipe.split_digits)
    else:
        tokenizer = train_char(texts(), recipe.vocab_size)
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
