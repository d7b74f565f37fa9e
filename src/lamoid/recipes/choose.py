"""What `pretrain` does where nothing was said: tokenizer, size and schedule from the text and the cores, with the reasons."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch

from lamoid.checkpoints.hf import read_config
from lamoid.errors import UsageError
from lamoid.models import bert, gpt2, llama, roberta, transformer
from lamoid.models.gpt2 import GPT2, GPT2Config
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.recipes.load import is_gguf, load_named_tokenizer, model_directory
from lamoid.recipes.prepare import PreparedText, measure, prepare
from lamoid.recipes.settings import PretrainSettings
from lamoid.recipes.sizes import choose_size, choose_steps, fill_course, model_config
from lamoid.tokenizers.tokenizer import Tokenizer

S = TypeVar("S", bound=PretrainSettings)
PRESETS: dict[str, Any] = llama.PRESETS | gpt2.PRESETS
ENCODERS: dict[str, Any] = bert.PRESETS | roberta.PRESETS
_OTHERS: dict[str, Any] = ENCODERS | transformer.PRESETS
CONTINUED_LEARNING_RATE, CONTINUED_CONTEXT = 1e-4, 256
"""Where a model is trained on: a third of Llama 2's highest rate, so that it forgets little, and rows that fit a CPU."""


def choose(
    recipe: S, initial: tuple[Llama | None, Tokenizer | None], notify: Callable[[str], object]
) -> tuple[S, PreparedText, LlamaConfig]:
    """Prepare the text and fill in every setting that is None. `initial` is the model to go on with, if any."""
    model, tokenizer = initial
    if recipe.tokenizer:
        tokenizer = load_named_tokenizer(recipe.tokenizer)
    sources, n_bytes = measure(recipe.data)
    size = choose_size(n_bytes)
    text = prepare(
        sources,
        tokenizer=tokenizer,
        vocab_size=recipe.vocab_size or size.vocab_size,
        heldout_share=recipe.heldout_share,
        seed=recipe.seed,
        notify=notify,
        grow_vocab=recipe.grow_vocab,
    )
    context, batch_rows = recipe.context or size.context, recipe.batch_rows or size.batch_rows
    vocab_size = text.tokenizer.vocab_size
    rate = recipe.learning_rate or size.learning_rate
    if model is not None:
        config = replace(model.config, vocab_size=max(model.config.vocab_size, vocab_size))
        context = recipe.context or min(CONTINUED_CONTEXT, config.max_seq_len)
        rate = recipe.learning_rate or CONTINUED_LEARNING_RATE
    elif recipe.model == "auto":
        config = model_config(size, vocab_size, context)
    elif recipe.model in PRESETS:
        config = replace(PRESETS[recipe.model], vocab_size=vocab_size, max_seq_len=context)
    else:
        raise UsageError(f"model is {recipe.model!r}; it must be auto or one of {', '.join([*PRESETS, *_OTHERS])}")
    cores, n_parameters = recipe.threads or torch.get_num_threads(), count_parameters(config)
    per_step = context * batch_rows * recipe.accumulate
    steps = recipe.max_steps or choose_steps(size, n_parameters, per_step, len(text.tokens), cores)
    chosen = fill_course(
        replace(recipe, vocab_size=vocab_size, context=context, batch_rows=batch_rows),
        steps,
        rate,
        evaluations=10 if model is None else 3,
        samples=10,
    )
    origin = f"from {recipe.init}" if model is not None else f"the table's size for text of {n_bytes / 1e6:.1f} MB"
    notify(
        f"model: {n_parameters / 1e6:.1f} M parameters ({config.n_layers} layers of width {config.d_model}, "
        f"vocabulary {vocab_size:,}), {origin}"
    )
    notify(
        f"schedule: {steps:,} steps of {per_step:,} tokens, {steps * per_step / len(text.tokens):.1f} epochs of "
        f"{len(text.tokens):,} tokens, for {cores} cores"
    )
    return chosen, text, config


def count_parameters(config: LlamaConfig) -> int:
    """Parameters of a Llama of this shape, tied ones once; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(config).parameters())


def build(config: LlamaConfig | GPT2Config) -> Llama | GPT2:
    """The decoder that a configuration describes, its weights not yet drawn."""
    return Llama(config) if isinstance(config, LlamaConfig) else GPT2(config)


def kind_of(recipe: PretrainSettings) -> Literal["decoder", "encoder", "transformer"]:
    """What is to be trained: by the name of --model, or by what lies in --init. Raises UsageError for --grow-vocab without it."""
    if recipe.grow_vocab < 0 or (recipe.grow_vocab and not recipe.init):
        raise UsageError(
            f"grow_vocab is {recipe.grow_vocab}; it must be 0, or tokens to add to the tokenizer of --init"
        )
    config = PRESETS.get(recipe.model) or _OTHERS.get(recipe.model)
    if recipe.init and not is_gguf(recipe.init):
        config = read_config(model_directory(recipe.init))
    if isinstance(config, transformer.TransformerConfig):
        return "transformer"
    return "encoder" if isinstance(config, bert.BertConfig | roberta.RobertaConfig) else "decoder"
