"""A run that could begin: what every training verb makes, what `fit` trains, and what `plan` looks at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lamoid.data.packed import PackedRows
from lamoid.models.decoders import DecoderModel
from lamoid.recipes.complete import sample
from lamoid.recipes.evaluation import Evaluate, on_text
from lamoid.recipes.load import check_device
from lamoid.recipes.prepare import PreparedText
from lamoid.recipes.resume import Form, identity, whole_model
from lamoid.recipes.settings import PretrainSettings, TrainingSettings, UptrainSettings
from lamoid.training.loop import Batches, Objective
from lamoid.training.objectives import next_token

BYTES_PER_PARAMETER = 12
"""Of a trained parameter in a checkpoint: itself and Adam's two moments, in fp32."""
EVAL_BYTES = 50_000
"""Of held-out text, which a decoder is measured by between steps."""


@dataclass(frozen=True)
class Training:
    """A run that could begin: every setting filled in, the model as it will be trained, and how it lies on disk.

    `evaluate(should_stop)` scores the model on held-out data, or returns None when it was stopped; `identity` holds
    what must not differ on resume; `n_epochs` are the passes through the data; `compare` says what a finished run
    gained; `counted` names what the objective counts: its rate is shown.
    """

    settings: TrainingSettings
    model: nn.Module
    form: Form
    batches: Batches
    objective: Objective
    evaluate: Evaluate
    sample: Callable[[], str] | None
    identity: dict[str, Any]
    n_epochs: float
    hint: str = ""
    compare: Callable[[], object] | None = None
    counted: str = "trained tok"


def ready_on_text(
    s: PretrainSettings | UptrainSettings,
    model: DecoderModel,
    text: PreparedText,
    *,
    hint: str = "",
    compare: Callable[[], object] | None = None,
) -> Training:
    """A decoder that learns to predict the next token of raw text."""
    assert s.context and s.batch_rows and s.max_steps
    model.gradient_checkpointing = s.gradient_checkpointing
    model.to(dtype=getattr(torch, s.dtype), device=check_device(s.device))
    return Training(
        s,
        model,
        whole_model(model, text.tokenizer),
        PackedRows(text.tokens, s.context, s.batch_rows, s.seed),
        next_token,
        on_text(model, *text.heldout_documents(EVAL_BYTES), s.context),
        lambda: sample(model, text.tokenizer, s.prompt),
        identity(s, text.key, text.tokenizer),
        n_epochs=s.max_steps * s.context * s.batch_rows * s.accumulate / len(text.tokens),
        hint=hint,
        compare=compare,
    )
