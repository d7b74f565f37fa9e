"""`lamoid tokenizer show`: the merges that turn a text into its tokens, one by one."""

import json
from dataclasses import asdict, dataclass

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option


@dataclass(frozen=True)
class Recipe:
    """Show how a tokenizer cuts a text: words, merges in their order, tokens and ids."""

    tokenizer: str = option("", "a model or tokenizer directory, or a tokenizer.json", positional=True)
    text: str = option("", "the text", positional=True)
    json: bool = option(False, "print one JSON object")


def run(recipe: Recipe) -> int:
    """Print every word of the text with its merges; the ids at the end are the tokenizer's own."""
    from lamoid.recipes.load import load_named_tokenizer
    from lamoid.tokenizers.bpe import merge_steps, readable

    if not recipe.tokenizer or not recipe.text:
        raise UsageError('a tokenizer and a text are needed, such as: lamoid tokenizer show my-tokenizer "low lower"')
    tokenizer = load_named_tokenizer(recipe.tokenizer)
    ids = tokenizer.encode(recipe.text, add_special_tokens=False)
    words = list(merge_steps(tokenizer, recipe.text))
    symbols = [s for start, merges in words for s in (merges[-1].symbols if merges else start)]
    if recipe.json:
        steps = [{"symbols": start, "merges": [asdict(m) for m in merges]} for start, merges in words]
        print(json.dumps({"words": steps, "tokens": symbols, "ids": ids}, ensure_ascii=False))
        return 0

    def cut(symbols: tuple[str, ...] | list[str]) -> str:
        return " | ".join(readable(symbol) for symbol in symbols)

    for start, merges in words:
        print(f"word      {cut(start)}")
        for merge in merges:
            print(f"{'#' + str(merge.rank):>8}  {cut(merge.symbols)}")
    print(f"tokens    {cut(symbols)}")
    print(f"ids       {' '.join(map(str, ids))}")
    print(f"{len(recipe.text)} characters, {len(recipe.text.encode())} bytes, {len(ids)} tokens")
    return 0
