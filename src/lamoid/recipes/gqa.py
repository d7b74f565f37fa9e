"""`lamoid gqa`: a model with fewer key/value heads, uptrained on a fraction of its tokens, and what that cost and gained."""

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from lamoid.errors import UsageError
from lamoid.recipes.recipe import option, say
from lamoid.recipes.settings import UptrainSettings

REPORT_FILE, COMPARED = "report.json", "compared"


@dataclass(frozen=True)
class Recipe(UptrainSettings):
    """Convert multi-head attention to grouped-query or multi-query attention (Ainslie et al. 2023), and measure it."""

    kv_heads: int = option(0, "key/value heads of the new model, 1 for multi-query; they must divide the model's")
    pooling: str = option("aligned", "how a group of heads becomes one", choices=("aligned", "mean", "first", "random"))
    compare: bool = option(False, f"uptrain the other ways too, in {COMPARED}/ of --out")
    json: bool = option(False, f"print the report, which is also in {REPORT_FILE} of --out, as one JSON object")


def run(recipe: Recipe) -> int:
    """Measure the model, convert it in each way, uptrain the one that is wanted, measure again, report."""
    from lamoid.adapt.gqa import POOLINGS, group_kv_heads
    from lamoid.checkpoints.run_directory import RunDirectory
    from lamoid.checkpoints.store import write_json
    from lamoid.models.llama import Llama
    from lamoid.recipes.fit import fit
    from lamoid.recipes.gqa_report import compare_decoding, describe
    from lamoid.recipes.load import keep_apart, load_with_tokenizer
    from lamoid.recipes.ready import ready_on_text
    from lamoid.recipes.resume import with_earlier
    from lamoid.recipes.uptrain import facts, heldout_loss, is_finished, plan

    if not (recipe.model and recipe.kv_heads and recipe.data and recipe.out):
        raise UsageError(
            "wanted: lamoid gqa MODEL --kv-heads 2 --data my_folder/ --out runs/gqa (see lamoid gqa --help)"
        )
    keep_apart(recipe.model, recipe.out)
    model, tokenizer = load_with_tokenizer(recipe.model, recipe.threads)

    def convert(way: str) -> Llama:
        return group_kv_heads(model, recipe.kv_heads, pooling=way, seed=recipe.seed)

    convert(recipe.pooling)  # says what is wrong before anything is done
    ways = [recipe.pooling, *(way for way in POOLINGS if way != recipe.pooling)]
    with ExitStack() as runs:
        directory = runs.enter_context(RunDirectory(Path(recipe.out), keep=recipe.keep, notify=say))
        s, text = plan(with_earlier(recipe, directory.path), model, tokenizer, say)
        before = heldout_loss(s, model, text)
        converted = {way: heldout_loss(s, convert(way), text) for way in ways}
        say(f"held-out loss {before:.4f}; converted: {', '.join(f'{w} {loss:.4f}' for w, loss in converted.items())}")
        uptrained: dict[str, Llama] = {}
        for way in ways if s.compare else ways[:1]:
            path = directory.path if way == s.pooling else directory.path / COMPARED / way
            run = directory if way == s.pooling else runs.enter_context(RunDirectory(path, keep=s.keep, notify=say))
            code = fit(ready_on_text(replace(s, pooling=way, out=str(path)), convert(way), text), run)
            if not is_finished(s, run):
                return code
            uptrained[way] = load_with_tokenizer(path, s.threads)[0]
        report = {
            "model": s.model,
            "pooling": s.pooling,
            "uptraining": facts(s),
            "loss": {
                "before": before,
                "converted": converted,
                "uptrained": {way: heldout_loss(s, after, text) for way, after in uptrained.items()},
            },
            **compare_decoding(model, uptrained[s.pooling], text),
        }
        write_json(directory.path / REPORT_FILE, report)
    print(json.dumps(report) if recipe.json else describe(report))
    return code
