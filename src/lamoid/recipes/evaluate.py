"""`lamoid eval`: loss, perplexity and bits per byte of a model on a text."""

import json
from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import DataError, UsageError
from lamoid.recipes.progress import progress
from lamoid.recipes.recipe import option


@dataclass(frozen=True)
class Recipe:
    """Measure how well a model predicts a text. Every token is scored, each with the tokens before it as context."""

    model: str = option("", "a model directory", positional=True)
    text: str = option("", "a UTF-8 text file, or anything that --data of pretrain takes")
    context: int | None = option(None, "window in tokens (default: the model's context)")
    stride: int | None = option(None, "tokens between the beginnings of two windows (default: half the context)")
    threads: int | None = option(None, "cores to compute on (default: all)")
    json: bool = option(False, "print one JSON object: loss, perplexity, bits_per_byte, tokens")


def run(recipe: Recipe) -> int:
    """Encode each document with its special tokens, score it in overlapping windows, print the figures."""
    from lamoid.data.sources import find_sources
    from lamoid.inference.score import score
    from lamoid.recipes.load import load_decoder
    from lamoid.recipes.prepare import encode_documents

    if not recipe.model or not recipe.text:
        raise UsageError("a model and --text are needed, such as: lamoid eval runs/mine --text book.txt")
    sources = find_sources([recipe.text])
    model, tokenizer = load_decoder(recipe.model, recipe.threads)
    texts = ["".join(blocks) for source in sources for blocks in source.documents()]
    n_bytes = sum(len(text.encode()) for text in texts)
    if not n_bytes:
        raise DataError(f"{recipe.text} is empty; there is nothing to score")
    documents = encode_documents(texts, tokenizer)
    context = min(recipe.context or model.config.max_seq_len, model.config.max_seq_len)
    n_tokens = sum(len(ids) - 1 for ids in documents)
    with progress("scoring", n_tokens, "tok") as bar:
        result = score(model, documents, n_bytes, context=context, stride=recipe.stride, on_tokens=bar.update)
    assert result is not None
    facts = {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.tokens,
        "bytes": n_bytes,
        "context": context,
    }
    if recipe.json:
        print(json.dumps(facts))
    else:
        print(f"{Path(recipe.text).name}: {result.tokens:,} tokens, {n_bytes:,} bytes, context {context}")
        print(
            f"loss {result.loss:.4f} nats, perplexity {result.perplexity:.2f}, {result.bits_per_byte:.4f} bits per byte"
        )
    return 0
