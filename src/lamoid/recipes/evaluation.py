"""What a run's model is measured by on held-out data, between steps of training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lamoid.inference.score import score
from lamoid.models.llama import Llama


@dataclass(frozen=True)
class Evaluation:
    """The loss, by which the best model is chosen, and other figures by name."""

    loss: float
    figures: dict[str, float] = field(default_factory=dict)


Evaluate = Callable[[Callable[[], bool]], Evaluation | None]
"""From a function that says whether to stop to the evaluation, or None where it was stopped."""


def on_text(model: Llama, documents: Sequence[Sequence[int]], n_bytes: int, context: int) -> Evaluate:
    """Loss and bits per byte on documents of ids that stand for `n_bytes` bytes."""

    def evaluate(should_stop: Callable[[], bool]) -> Evaluation | None:
        result = score(model, documents, n_bytes, context=context, should_stop=should_stop)
        return Evaluation(result.loss, {"bits_per_byte": result.bits_per_byte}) if result is not None else None

    return evaluate
