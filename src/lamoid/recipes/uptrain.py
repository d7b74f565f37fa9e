"""Uptraining: a model whose architecture was changed is pretrained on, for a fraction of the tokens that it was trained on.

Ainslie et al. 2023, section 2.1: convert the checkpoint, then go on with pretraining for a proportion α of its steps.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from lamoid.errors import DataError, UsageError
from lamoid.recipes.choose import CONTINUED_CONTEXT, CONTINUED_LEARNING_RATE
from lamoid.recipes.load import is_gguf, resolve
from lamoid.recipes.prepare import PreparedText, measure, prepare
from lamoid.recipes.ready import EVAL_BYTES, Training, ready_on_text
from lamoid.recipes.recipe import load, say
from lamoid.recipes.resume import RECIPE_FILE
from lamoid.recipes.settings import UptrainSettings
from lamoid.recipes.sizes import fill_course
from lamoid.training.metrics import METRICS_FILE

if TYPE_CHECKING:
    from lamoid.checkpoints.run_directory import RunDirectory
    from lamoid.models.llama import Llama
    from lamoid.recipes.ready import Training
    from lamoid.tokenizers.tokenizer import Tokenizer

BATCH_ROWS = 8
LEARNING_RATE_SHARE = 0.5
"""Of the highest rate that the original was trained with."""


S = TypeVar("S", bound=UptrainSettings)


def plan(s: S, model: "Llama", tokenizer: "Tokenizer", notify: Callable[[str], object]) -> tuple[S, PreparedText]:
    """Prepare the text and fill in every setting that is None, from the run that made the model if it was one of ours.

    Raises UsageError where the number of steps follows from nothing.
    """
    if not 0 < s.alpha < math.inf:
        raise UsageError(f"alpha is {s.alpha}; it must be above 0, such as 0.05 for 5 % of the original tokens")
    original = _original(s.model)
    for name in ("seed", "heldout_share"):
        if original.get(name, getattr(s, name)) != getattr(s, name):
            notify(f"warning: MODEL's run had {name} {original[name]}: it may have seen what is held out now")
    context = s.context or original.get("context") or min(CONTINUED_CONTEXT, model.config.max_seq_len)
    batch_rows = s.batch_rows or original.get("batch_rows") or BATCH_ROWS
    rate = LEARNING_RATE_SHARE * original["learning_rate"] if original.get("learning_rate") else CONTINUED_LEARNING_RATE
    per_step = context * batch_rows * s.accumulate
    n_tokens = s.original_tokens or original.get("total_tokens")
    if s.max_steps is None and not n_tokens:
        raise UsageError(f"{s.model} is no run with {METRICS_FILE}; give --original-tokens or --max-steps")
    steps = s.max_steps or max(round(s.alpha * (n_tokens or 0) / per_step), 1)
    text = prepare(
        measure(s.data)[0],
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size,
        heldout_share=s.heldout_share,
        seed=s.seed,
        notify=notify,
    )
    filled = replace(s, context=context, batch_rows=batch_rows, original_tokens=n_tokens)
    chosen = fill_course(filled, steps, rate, evaluations=3, samples=0)
    share = f", {steps * per_step / n_tokens:.1%} of the original {n_tokens:,}" if n_tokens else ""
    notify(f"uptraining: {steps:,} steps of {per_step:,} tokens{share}, learning rate {chosen.learning_rate:g}")
    return chosen, text


def ready_to_convert(given: Any) -> Training:
    """The training of `lamoid gqa` with these settings, its model converted."""
    from lamoid.adapt.gqa import group_kv_heads
    from lamoid.recipes.load import load_with_tokenizer

    model, tokenizer = load_with_tokenizer(given.model, given.threads)
    s, text = plan(given, model, tokenizer, say)
    return ready_on_text(s, group_kv_heads(model, s.kv_heads, pooling=s.pooling, seed=s.seed), text)


def is_finished(s: UptrainSettings, directory: "RunDirectory") -> bool:
    """Whether the run came to its end; with a patience, whether it ended at all."""
    return bool(s.patience) or directory.steps()[-1:] == [s.max_steps]


def facts(s: UptrainSettings) -> dict[str, Any]:
    """How much was trained, for a report; alpha is None where nothing is known of the original."""
    assert s.context and s.batch_rows and s.max_steps
    tokens = s.max_steps * s.context * s.batch_rows * s.accumulate
    alpha = tokens / s.original_tokens if s.original_tokens else None
    known = {"steps": s.max_steps, "tokens": tokens, "original_tokens": s.original_tokens, "alpha": alpha}
    return known | {"learning_rate": s.learning_rate, "context": s.context, "batch_rows": s.batch_rows}


def heldout_loss(s: UptrainSettings, model: "Llama", text: PreparedText) -> float:
    """−log p of a held-out token in nats, on the same text that training is measured by."""
    from lamoid.inference.score import score

    assert s.context
    result = score(model, *text.heldout_documents(EVAL_BYTES), context=s.context)
    assert result is not None
    return result.loss


def _original(model: str) -> dict[str, Any]:
    """The settings of the run that made a model, and its tokens; nothing where the model is none of our runs."""
    directory = resolve(model)
    metrics = directory / METRICS_FILE
    if is_gguf(directory) or not metrics.is_file():
        return {}
    recipe = directory / RECIPE_FILE
    settings = load(recipe) if recipe.is_file() else {}
    try:
        records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        n_tokens = max((int(record.get("total_tokens", 0)) for record in records), default=0)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{metrics} cannot be read ({error}); give --original-tokens") from error
    return settings | {"total_tokens": n_tokens}
