"""The settings that several verbs have: generation, chat, training, pretraining."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamoid.recipes.recipe import option

if TYPE_CHECKING:
    from lamoid.inference.sampling import Sampling


@dataclass(frozen=True)
class GenerationSettings:
    """How text is generated."""

    temperature: float = option(0.8, "0 takes the most likely token; higher is more varied")
    top_k: int = option(0, "keep the k most likely tokens; 0 is off")
    top_p: float = option(0.95, "keep the fewest most likely tokens that reach this probability; 1 is off")
    min_p: float = option(0.0, "keep tokens at least this share as likely as the most likely one; 0 is off")
    repetition_penalty: float = option(1.0, "above 1 makes tokens that occurred less likely; 1 is off")
    stop: list[str] = option([], "end before any of these strings")
    seed: int = option(0, "the same seed gives the same text")
    threads: int | None = option(None, "cores to compute on (default: all)")
    engine: str = option(
        "auto", "what decodes: the native CPU engine where it applies", choices=("auto", "native", "torch")
    )
    speculate: bool = option(
        False, "guess what repeats itself and check several tokens at once; the text stays the same"
    )

    def sampling(self) -> "Sampling":
        """The rules of sampling. Raises UsageError for a value out of range."""
        from lamoid.inference.sampling import Sampling

        return Sampling(self.repetition_penalty, self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass(frozen=True)
class ChatSettings(GenerationSettings):
    """The settings of a conversation."""

    model: str = option("", "a model directory, a .gguf file, or the name of a fetched model", positional=True)
    system: str = option("", "what the model is told before all else")
    template: str = option("", "llama-2, llama-3, or a .jinja file (default: the template that the model carries)")
    max_new_tokens: int | None = option(
        None, "at most this many tokens in an answer (default: 512, or ¼ of the context)"
    )


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
    schedule: str | None = option(
        None,
        "its course (default: cosine; inverse-sqrt for a Transformer)",
        choices=("cosine", "inverse-sqrt", "warmup-stable-decay"),
    )
    warmup_steps: int | None = option(None, "steps over which it rises (default: 2000, but at most 5 % of all)")
    optimizer: str = option("adamw", "weight decay beside the gradient, or inside it", choices=("adamw", "adam-l2"))
    weight_decay: float = option(0.1, "weight decay of matrices; norms and biases have none")
    adam_eps: float = option(1e-5, "Adam's epsilon")
    clip_norm: float = option(1.0, "largest norm of the gradient")
    eval_every: int | None = option(
        None, "steps between evaluations, each with a checkpoint (default: 10 in a run, 3 with --init)"
    )
    sample_every: int | None = option(None, "steps between printed samples (default: 10 in a run; 0 prints none)")
    patience: int = option(0, "stop after this many evaluations without a better one; 0 never does")
    keep: int = option(2, "checkpoints kept beside the best model, at least 2")
    dtype: str = option("float32", "type of weights and arithmetic", choices=("float32", "bfloat16"))
    device: str = option("cpu", "where to compute: cpu, cuda or mps")
    gradient_checkpointing: bool = option(False, "recompute blocks in the backward pass: less memory, more time")
    tensorboard: bool = option(False, "also write metrics for TensorBoard, into tensorboard/ of the run")
    resume: str = option("", "go on from this checkpoint (default: the newest in --out)")
    parallel: str = option(
        "data",
        "under torchrun: the whole model in every process, or a shard of it in each",
        choices=("data", "sharded"),
    )
    rank_timeout_s: int = option(1800, "under torchrun: how long a process waits for another one that does not answer")
    force: bool = option(False, "go on although data, tokenizer or model differ from the run's")


@dataclass(frozen=True)
class PretrainSettings(TrainingSettings):
    """The settings of pretraining."""

    data: list[str] = option([], "files, folders, globs, or python-docs, python-code")
    out: str = option("", "directory of the run; the same command goes on where it stopped")
    model: str = option("auto", "auto, or a published size such as llama-3.2-1b, gpt2, bert-small, transformer-base")
    init: str = option("", "go on with this model instead of a new one: a directory, a GGUF file or a fetched model")
    grow_vocab: int = option(0, "tokens that the tokenizer of --init learns from the text, for a new language")
    old_text: str = option("python-docs", "text of the domain that --init knows, to see what it forgets")
    tokenizer: str = option("", "directory of a tokenizer (default: train a byte-level BPE on the text)")
    vocab_size: int | None = option(None, "ids of the tokenizer that is trained")
    heldout_share: float = option(0.05, "share of the text that is held out, at most 2 MB")
    prompt: str = option("", "beginning of the samples (default: the model's own)")
    masking: str = option(
        "dynamic", "encoders: hide other tokens in each epoch, or always the same", choices=("dynamic", "static")
    )
    mask_rate: float = option(0.15, "encoders: share of the tokens that are hidden")
    whole_words: bool = option(False, "encoders: hide whole words")
    nsp: bool | None = option(
        None, "encoders: also predict whether a sentence is the next one (default: a new BERT does)"
    )
    label_smoothing: float = option(0.1, "Transformer: share of each target that is spread over the vocabulary")
    skip_bad: bool = option(False, "Transformer: count pairs that cannot be read, and go on without them")


@dataclass(frozen=True)
class FinetuneSettings(TrainingSettings):
    """The settings of fine-tuning."""

    model: str = option("", "a model directory or the name of a fetched model", positional=True)
    data: list[str] = option(
        [], "conversations (.jsonl, .json, .txt); for a task labelled examples (.csv, .tsv, .jsonl, .conll)"
    )
    out: str = option("", "directory of the run; the same command goes on where it stopped")
    task: str = option(
        "chat",
        "what is learned: answers, or with an encoder classes, tags, spans",
        choices=("chat", "classify", "tokens", "span"),
    )
    method: str | None = option(
        None,
        "what is trained, and what the frozen rest is kept in (default: lora; full for an encoder)",
        choices=("full", "lora", "qlora", "houlsby"),
    )
    epochs: float = option(3.0, "passes through the data, where --max-steps is not given")
    weight_decay: float = option(0.0, "weight decay of matrices; norms and biases have none")
    rank: int = option(8, "rank of LoRA's update of a matrix")
    alpha: float = option(16.0, "LoRA's update is scaled by alpha / rank")
    dropout: float = option(0.0, "share of LoRA's inputs that are dropped in training")
    rslora: bool = option(False, "scale by alpha / √rank instead")
    targets: list[str] = option(
        ["all-linear"], "names of the linear layers that LoRA updates, such as q_proj v_proj; all-linear is all"
    )
    bottleneck: int = option(64, "width of a Houlsby adapter")
    train_on: str = option("all", "which of a conversation's answers are trained", choices=("all", "last"))
    long: str = option("cut", "what happens to a conversation that is longer than a row", choices=("cut", "drop"))
    template: str = option("", "llama-2, llama-3, or a .jinja file (default: the template that the model carries)")
    heldout_share: float = option(0.05, "share of the examples that is held out, at least one")
    text_column: str = option("", "classify: the column of the text (default: recognised by its name)")
    pair_column: str = option("", "classify: the column of a second text")
    label_column: str = option("", "classify: the column of the label")
    balance: bool = option(False, "classify, tokens: let rare labels weigh as much as frequent ones")
    skip_bad: bool = option(False, "count lines that cannot be read, and go on without them")


@dataclass(frozen=True)
class UptrainSettings(TrainingSettings):
    """The settings of uptraining; batch, row and learning rate are the original run's where nothing is said."""

    model: str = option("", "a model directory, a .gguf file, or the name of a fetched model", positional=True)
    data: list[str] = option([], "files, folders, globs, or python-docs, python-code")
    out: str = option("", "directory of the run; the same command goes on where it stopped")
    alpha: float = option(0.05, "share of the original tokens to train on")
    original_tokens: int | None = option(None, "tokens that MODEL was trained on, where it is no run of lamoid")
    heldout_share: float = option(0.05, "share of the text that is held out, at most 2 MB")
    prompt: str = option("", "beginning of the samples (default: the model's own)")
