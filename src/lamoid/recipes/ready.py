"""A run that could begin: what every training verb makes, what `fit` trains, and what `plan` looks at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lamoid.recipes.evaluation import Evaluate
from lamoid.recipes.resume import Form
from lamoid.recipes.settings import TrainingSettings
from lamoid.training.loop import Batches, Objective

BYTES_PER_PARAMETER = 12
"""Of a trained parameter in a checkpoint: itself and Adam's two moments, in fp32."""


@dataclass(frozen=True)
class Training:
    """A run that could begin: every setting filled in, the model as it will be trained, and how it lies on disk.

    `evaluate(should_stop)` scores the model on held-out data, or returns None when it was stopped; `identity` holds
    what must not differ on resume; `n_epochs` are the passes through the data; `compare` says what a finished run
    gained.
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
