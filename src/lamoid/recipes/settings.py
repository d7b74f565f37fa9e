"""The settings that every training verb has, and those of pretraining."""

from dataclasses import dataclass

from lamoid.recipes.recipe import option


@dataclass(frozen=True)
class TrainingSettings:
    """The defaults are Llama 2's recipe (Touvron et al. 2023b, section 2.2); None is filled in by the verb."""

    seed: int = option(0, "decides the first weights, the held-out text and the order of the data")
    threads: int | None = option(None, "cores to compute on (default: all)")
    max_steps: int | None = option(None, "optimizer steps")
    batch_rows: int | None = option(None, "rows in a micro-batch")
    accumulate: int = option(1, "micro-batches in a step; the update is that of one large batch")
    context: int | None = option(None, "tokens in a row")
    learning_rate: float | None = option(None, "highest learning rate")
    schedule: str = option("cosine", "its course", choices=("cosine", "inverse-sqrt", "warmup-stable-decay"))
    warmup_steps: int | None = option(None, "steps over which it rises (default: 2000, but at most 5 % of all)")
    optimizer: str = option("adamw", "weight decay beside the gradient, or inside it", choices=("adamw", "adam-l2"))
    weight_decay: float = option(0.1, "weight decay of matrices; norms and biases have none")
    adam_eps: float = option(1e-5, "Adam's epsilon")
    clip_norm: float = option(1.0, "largest norm of the gradient")
    eval_every: int | None = option(None, "steps between evaluations, each with a checkpoint (default: 20 in a run)")
    sample_every: int | None = option(None, "steps between printed samples (default: 10 in a run; 0 prints none)")
    patience: int = option(0, "stop after this many evaluations without a better one; 0 never does")
    keep: int = option(2, "checkpoints kept beside the best model, at least 2")
    dtype: str = option("float32", "type of weights and arithmetic", choices=("float32", "bfloat16"))
    device: str = option("cpu", "where to compute: cpu, cuda or mps")
    gradient_checkpointing: bool = option(False, "recompute blocks in the backward pass: less memory, more time")
    tensorboard: bool = option(False, "also write metrics for TensorBoard, into tensorboard/ of the run")
    resume: str = option("", "go on from this checkpoint (default: the newest in --out)")
    force: bool = option(False, "go on although data, tokenizer or model differ from the run's")


@dataclass(frozen=True)
class PretrainSettings(TrainingSettings):
    """The settings of pretraining."""

    data: list[str] = option([], "files, folders, globs, or python-docs, python-code")
    out: str = option("", "directory of the run; the same command goes on where it stopped")
    model: str = option("auto", "auto, or a published size such as llama-3.2-1b")
    tokenizer: str = option("", "directory of a tokenizer (default: train a byte-level BPE on the text)")
    vocab_size: int | None = option(None, "ids of the tokenizer that is trained")
    heldout_share: float = option(0.05, "share of the text that is held out, at most 2 MB")
    prompt: str = option("", "beginning of the samples (default: the model's own)")
