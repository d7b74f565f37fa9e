"""`lamoid embed`: one vector for each line of a text."""

import json
from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import DataError, UsageError
from lamoid.recipes.progress import progress
from lamoid.recipes.recipe import option


@dataclass(frozen=True)
class Recipe:
    """Turn each line of a file into a vector, so that lines of like meaning lie close. Vectors are written as a NumPy array.

    Pooling and scaling follow the model's sentence-transformers files; without them it is the mean over the tokens.
    """

    model: str = option("", "a BERT or RoBERTa directory, or a fetched model such as minilm", positional=True)
    texts: str = option("", "a UTF-8 file with a text in each line", positional=True)
    out: str = option("", "the .npy file to write, an array of (lines, width)")
    threads: int | None = option(None, "cores to compute on (default: all)")
    json: bool = option(
        False, "print one JSON object: texts, width, pooling, normalised, out; or the vectors without --out"
    )


def run(recipe: Recipe) -> int:
    """Read the lines, embed them in batches of like length, write the array."""
    import numpy as np
    import torch

    from lamoid.checkpoints.store import atomic_file
    from lamoid.inference.embed import embed, read_pooling
    from lamoid.models.heads import Encoder, HeadedEncoder, PooledEncoder
    from lamoid.recipes.load import load, model_directory, set_threads

    if not recipe.model or not recipe.texts or not (recipe.out or recipe.json):
        raise UsageError(
            "a model, a file and --out are needed, such as: lamoid embed minilm texts.txt --out vectors.npy"
        )
    lines = read_lines(Path(recipe.texts))
    set_threads(recipe.threads)
    pooling = read_pooling(model_directory(recipe.model))
    model, tokenizer = load(recipe.model, dtype=torch.float32)
    if not isinstance(model, Encoder | PooledEncoder | HeadedEncoder):
        raise UsageError(f"{recipe.model} is a {type(model).__name__}; vectors come from encoders such as minilm")
    if tokenizer is None:
        raise DataError(f"{recipe.model} has no tokenizer; put its tokenizer.json beside the model")
    encoder = model if isinstance(model, Encoder) else model.encoder
    with progress("embedding", len(lines), "texts") as bar:
        vectors = embed(encoder, tokenizer, lines, pooling, on_texts=bar.update)
    if recipe.out:
        with atomic_file(Path(recipe.out)) as temporary, temporary.open("wb") as file:
            np.save(file, vectors)
    facts = {"texts": len(lines), "width": vectors.shape[1], "pooling": pooling.kind, "normalised": pooling.normalise}
    if recipe.json:
        print(json.dumps(facts | ({"out": recipe.out} if recipe.out else {"vectors": vectors.tolist()})))
    else:
        print(f"{recipe.out}: {len(lines):,} vectors of width {vectors.shape[1]}, {pooling.kind} pooling")
    return 0


def read_lines(file: Path) -> list[str]:
    """The lines of a text, empty ones too, so that line numbers and rows agree. Raises DataError naming what is wrong."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from error
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise DataError(f"{file} is empty; put a text into each line")
    return [line.removesuffix("\r") for line in lines]
