"""Continued pretraining: begin from a model that exists, and say what it gained on the new text and lost on the old."""

from pathlib import Path
from typing import TYPE_CHECKING

from lamoid.data.sources import find_sources
from lamoid.errors import UsageError
from lamoid.recipes.load import load_with_tokenizer
from lamoid.recipes.recipe import say
from lamoid.recipes.settings import PretrainSettings

if TYPE_CHECKING:
    from lamoid.models.llama import Llama
    from lamoid.recipes.prepare import PreparedText
    from lamoid.tokenizers.tokenizer import Tokenizer

COMPARED_BYTES = 30_000
"""Of each text; reading it four times takes a minute with 135 M parameters on two cores."""


def begin(recipe: PretrainSettings) -> "tuple[Llama | None, Tokenizer | None]":
    """The model of --init and its tokenizer, nothing where a new model is wanted."""
    if not recipe.init:
        return None, None
    if recipe.model != "auto" or recipe.tokenizer:
        raise UsageError("--init brings its own shape and tokenizer; leave out --model and --tokenizer")
    return load_with_tokenizer(recipe.init, recipe.threads)


def compare(recipe: PretrainSettings, text: "PreparedText") -> dict[str, tuple[float, float]]:
    """Bits per byte before and after, on the held-out new text and on a text of the old domain; prints and returns them."""
    from lamoid.inference.score import score
    from lamoid.recipes.prepare import encode_documents

    assert recipe.context
    blocks = (
        block for source in find_sources([recipe.old_text]) for document in source.documents() for block in document
    )
    old = next(blocks, "")
    while len(old.encode()) < COMPARED_BYTES and (block := next(blocks, "")):
        old += "\n\n" + block
    old = old.encode()[:COMPARED_BYTES].decode(errors="ignore")
    results: dict[str, list[float]] = {"new text": [], "old text": []}
    for path in (recipe.init, recipe.out):
        model, tokenizer = load_with_tokenizer(path, recipe.threads)
        new_documents, new_bytes = text.heldout_documents(COMPARED_BYTES)
        texts = {
            "new text": (new_documents, new_bytes),
            "old text": (encode_documents([old], tokenizer), len(old.encode())),
        }
        for name, (documents, n_bytes) in texts.items():
            result = score(model, documents, n_bytes, context=recipe.context)
            assert result is not None
            results[name].append(result.bits_per_byte)
    say(f"bits per byte, before -> after ({Path(recipe.out).name})")
    for name, (before, after) in results.items():
        say(f"  {name}   {before:.4f} -> {after:.4f}   ({after / before - 1:+.1%})")
    return {name: (before, after) for name, (before, after) in results.items()}
