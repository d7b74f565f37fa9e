"""`lamoid tokenizer show`: the merges, or the longest matches, that turn a text into its tokens, one by one."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option

if TYPE_CHECKING:
    from lamoid.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Recipe:
    """Show how a tokenizer cuts a text: words, merges in their order or matches from the longest down, tokens and ids."""

    tokenizer: str = option("", "a model or tokenizer directory, or a tokenizer.json", positional=True)
    text: str = option("", "the text", positional=True)
    json: bool = option(False, "print one JSON object")


def run(recipe: Recipe) -> int:
    """Print every word of the text with its steps; the ids at the end are the tokenizer's own."""
    from lamoid.recipes.load import load_named_tokenizer

    if not recipe.tokenizer or not recipe.text:
        raise UsageError('a tokenizer and a text are needed, such as: lamoid tokenizer show my-tokenizer "low lower"')
    tokenizer = load_named_tokenizer(recipe.tokenizer)
    ids = tokenizer.encode(recipe.text, add_special_tokens=False)
    is_wordpiece = type(tokenizer.backend.model).__name__ == "WordPiece"
    words, lines, tokens = (_matches if is_wordpiece else _merges)(tokenizer, recipe.text)
    if recipe.json:
        print(json.dumps({"words": words, "tokens": tokens, "ids": ids}, ensure_ascii=False))
        return 0
    print("\n".join(lines))
    print(f"ids       {' '.join(map(str, ids))}")
    print(f"{len(recipe.text)} characters, {len(recipe.text.encode())} bytes, {len(ids)} tokens")
    return 0


Shown = tuple[list[dict[str, Any]], list[str], list[str]]
"""The words with their steps as plain values, the same as lines, and the tokens."""


def _merges(tokenizer: "Tokenizer", text: str) -> Shown:
    from lamoid.tokenizers.bpe import merge_steps, readable

    def cut(symbols: Iterable[str]) -> str:
        return " | ".join(readable(symbol) for symbol in symbols)

    words, lines = [], []
    tokens: list[str] = []
    for start, merges in merge_steps(tokenizer, text):
        words.append({"symbols": start, "merges": [asdict(m) for m in merges]})
        lines += [f"word      {cut(start)}", *(f"{'#' + str(m.rank):>8}  {cut(m.symbols)}" for m in merges)]
        tokens += merges[-1].symbols if merges else start
    return words, [*lines, f"tokens    {cut(tokens)}"], tokens


def _matches(tokenizer: "Tokenizer", text: str) -> Shown:
    from lamoid.tokenizers.wordpiece import match_steps

    words, lines = [], []
    tokens: list[str] = []
    for word, matches in match_steps(tokenizer, text):
        words.append({"word": word, "matches": [asdict(m) for m in matches]})
        lines.append(f"word      {word}")
        for match in matches:
            lines += [f"    no    {candidate}" for candidate in match.tried]
            lines.append(f"    yes   {match.token}" if match.token else "          so the whole word is unknown")
        unknown = matches[-1].token is None
        tokens += [tokenizer.specials["unk"]] if unknown else [m.token for m in matches if m.token]
    return words, [*lines, f"tokens    {' | '.join(tokens)}"], tokens
