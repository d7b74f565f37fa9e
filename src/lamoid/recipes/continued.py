"""Continued pretraining: begin from a model that exists, and say what it gained on the new text and lost on the old."""

from pathlib import Path
from typing import TYPE_CHECKING

from lamoid.data.sources import find_sources
from lamoid.errors import UsageError
from lamoid.recipes.load import load_with_tokenizer
from lamoid.recipes.recipe import say
from lamoid.recipes.settings import PretrainSettings
from lamoid.tokenizers.grow import old_pieces, tokens_per_character

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


def grown(initial: "tuple[Llama | None, Tokenizer | None]", text: "PreparedText") -> "Llama | None":
    """The model of --init with a row for each token that its tokenizer learned from the text, None where there is no model."""
    from lamoid.adapt.grow import grow_embeddings

    model, tokenizer = initial
    if model is None or tokenizer is None or text.tokenizer.vocab_size == tokenizer.vocab_size:
        return model
    return grow_embeddings(model, old_pieces(tokenizer, text.tokenizer), tokenizer.vocab_size)


def compare(recipe: PretrainSettings, text: "PreparedText") -> dict[str, dict[str, tuple[float, float]]]:
    """Bits per byte, and with --grow-vocab tokens per character, before and after, on the held-out new text and on a text
    of the old domain; prints and returns them, by figure and text."""
    texts = {"new text": text.heldout_texts(COMPARED_BYTES), "old text": [_beginning(recipe.old_text)]}
    before, after = (_measure(recipe, path, texts) for path in (recipe.init, recipe.out))
    results = {
        figure: {name: (before[figure][name], after[figure][name]) for name in texts}
        for figure in ("bits per byte", *(["tokens per character"] if recipe.grow_vocab else []))
    }
    for figure, values in results.items():
        say(f"{figure}, before -> after ({Path(recipe.out).name})")
        for name, (first, last) in values.items():
            say(f"  {name}   {first:.4f} -> {last:.4f}   ({last / first - 1:+.1%})")
    return results


def _beginning(old_text: str) -> str:
    blocks = (block for source in find_sources([old_text]) for document in source.documents() for block in document)
    old = next(blocks, "")
    while len(old.encode()) < COMPARED_BYTES and (block := next(blocks, "")):
        old += "\n\n" + block
    return old.encode()[:COMPARED_BYTES].decode(errors="ignore")


def _measure(recipe: PretrainSettings, path: str, texts: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    from lamoid.inference.score import score
    from lamoid.recipes.prepare import encode_documents

    assert recipe.context
    model, tokenizer = load_with_tokenizer(path, recipe.threads)
    figures: dict[str, dict[str, float]] = {"bits per byte": {}, "tokens per character": {}}
    for name, parts in texts.items():
        n_bytes = sum(len(part.encode()) for part in parts)
        result = score(model, encode_documents(parts, tokenizer), n_bytes, context=recipe.context)
        assert result is not None
        figures["bits per byte"][name] = result.bits_per_byte
        figures["tokens per character"][name] = tokens_per_character(tokenizer, parts)
    return figures
