"""How large a model, and how long: chosen from the bytes of the text and the number of cores, never from a clock.

Small text is learned by heart by a large model, and large text is wasted on a small one, so the width grows with the
text. The work is bounded by the cores: FLOP_PER_CORE, times the row's `effort`. Small matrices reach about 35 GFLOP/s on a
core of 2025, so that the quickstart's row (effort 1) takes about four minutes.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

from lamoid.models.llama_config import LlamaConfig
from lamoid.recipes.settings import TrainingSettings

S = TypeVar("S", bound=TrainingSettings)
FLOP_PER_CORE = 8e12
HEAD_DIM = 64


@dataclass(frozen=True)
class Size:
    """A row of the table: for text of up to `max_bytes`."""

    max_bytes: float
    vocab_size: int
    d_model: int
    n_layers: int
    d_ff: int
    context: int
    batch_rows: int
    learning_rate: float
    max_epochs: int
    effort: float


TABLE = (
    #    max_bytes  vocab  d_model layers d_ff  context rows  rate  epochs effort
    Size(3e5, 1024, 128, 4, 352, 128, 4, 3e-3, 20, 0.25),
    Size(1e7, 1024, 128, 6, 352, 128, 4, 3e-3, 8, 1.0),
    Size(1e8, 4096, 320, 6, 864, 256, 8, 2e-3, 4, 8.0),
    Size(1e9, 8192, 512, 8, 1376, 512, 8, 1e-3, 2, 60.0),
    Size(float("inf"), 16_384, 768, 12, 2048, 1024, 8, 6e-4, 1, 600.0),
)


def choose_size(n_bytes: int) -> Size:
    """The row of TABLE for a text of this many bytes."""
    return next(row for row in TABLE if n_bytes <= row.max_bytes)


def model_config(size: Size, vocab_size: int, context: int) -> LlamaConfig:
    """A Llama 3 of this size: heads of 64, one key/value head for three or four of them if that divides, tied embeddings."""
    n_heads = size.d_model // HEAD_DIM
    return LlamaConfig(
        vocab_size=vocab_size,
        d_model=size.d_model,
        n_layers=size.n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads // next(group for group in (3, 4, 1) if n_heads % group == 0),
        head_dim=HEAD_DIM,
        d_ff=size.d_ff,
        max_seq_len=context,
        tied_embeddings=True,
    )


def choose_steps(size: Size, n_parameters: int, tokens_per_step: int, n_tokens: int, cores: int) -> int:
    """As many steps as the cores' share of work allows at 6 FLOP per parameter and token, at most `max_epochs` epochs."""
    by_work = FLOP_PER_CORE * cores * size.effort / (6 * n_parameters * tokens_per_step)
    by_text = size.max_epochs * n_tokens / tokens_per_step
    return max(int(min(by_work, by_text)) // 10 * 10, 10)


LLAMA2_WARMUP_STEPS, LARGEST_WARMUP_SHARE = 2000, 0.05


def fill_course(s: S, steps: int, rate: float, *, evaluations: int, samples: int) -> S:
    """Fill in what is None of a run's course: `steps` and the highest `rate`, Llama 2's warm-up and cosine, and so many
    evaluations and samples spread over the run."""
    warmup = min(LLAMA2_WARMUP_STEPS, int(LARGEST_WARMUP_SHARE * steps))
    every = max(steps // samples, 1) if samples else 0
    return replace(
        s,
        max_steps=steps,
        warmup_steps=warmup if s.warmup_steps is None else s.warmup_steps,
        learning_rate=s.learning_rate or rate,
        schedule=s.schedule or "cosine",
        eval_every=s.eval_every or max(steps // evaluations, 1),
        sample_every=every if s.sample_every is None else s.sample_every,
    )
