"""`lamoid pretrain` of an encoder: BERT with pairs of sentences, RoBERTa without; a new one, or one that exists."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lamoid.data.masked import FullSentences, make_masking
from lamoid.data.packed import id_type
from lamoid.data.sentences import NextSentencePairs, open_sentences
from lamoid.errors import DataError, UsageError
from lamoid.models import bert, roberta
from lamoid.models.heads import HeadedEncoder, MLMHead, PooledEncoder, PretrainingHead, attach_head
from lamoid.nn.losses import IGNORED
from lamoid.recipes.choose import ENCODERS
from lamoid.recipes.evaluation import evaluating, on_masked
from lamoid.recipes.load import check_device, load, load_named_tokenizer
from lamoid.recipes.prepare import HELDOUT_FOLDER, TOKENS_FILE, PreparedText, measure, prepare, store_path
from lamoid.recipes.ready import Training
from lamoid.recipes.resume import identity, whole_model
from lamoid.recipes.settings import PretrainSettings
from lamoid.recipes.sizes import choose_size, choose_steps, fill_course
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.training.encoder_objectives import masked_tokens

CONTEXT, BATCH_ROWS = 128, 32
MORE_WORK, MORE_EPOCHS = 8, 5
"""Times a Llama's: only 15 % of the tokens teach, and each epoch hides other ones."""
RATES = {512: 5e-4, 768: 2e-4, 1024: 1e-4}
"""Highest learning rate by width; a model that exists takes CONTINUED_RATE."""
CONTINUED_RATE = 5e-5
Rows = FullSentences | NextSentencePairs


def ready(recipe: PretrainSettings, notify: Callable[[str], object]) -> Training:
    """Prepare the text, fill in what was not given, make the model."""
    initial, tokenizer = _begin(recipe)
    uses_pairs = _uses_pairs(recipe, initial)
    text, n_bytes = _prepare(recipe, tokenizer, uses_pairs, notify)
    model = _model(recipe, initial, text.tokenizer, uses_pairs)
    s = _choose(recipe, model, text, n_bytes, notify)
    assert s.max_steps and s.context and s.batch_rows
    model.encoder.gradient_checkpointing = s.gradient_checkpointing
    model.to(dtype=getattr(torch, s.dtype), device=check_device(s.device))
    torch.manual_seed(s.seed)  # of dropout
    training, heldout = (_rows(s, text, folder) for folder in ("", HELDOUT_FOLDER))
    return Training(
        s,
        model,
        whole_model(model, text.tokenizer),
        training,
        masked_tokens,
        on_masked(model, heldout),
        lambda: guesses(model, text.tokenizer, heldout),
        identity(s, text.key, text.tokenizer),
        n_epochs=s.max_steps * s.context * s.batch_rows * s.accumulate / len(text.tokens),
        hint=f"lamoid finetune {s.out} --task classify --data reviews.csv",
    )


def _begin(recipe: PretrainSettings) -> tuple[Any, Tokenizer | None]:
    """The encoder of --init and its tokenizer, or none and the tokenizer that was named, if one was."""
    if not recipe.init:
        return None, load_named_tokenizer(recipe.tokenizer) if recipe.tokenizer else None
    if recipe.model != "auto" or recipe.tokenizer or recipe.grow_vocab:
        raise UsageError("an encoder of --init keeps shape and tokenizer; leave out --model, --tokenizer, --grow-vocab")
    model, tokenizer = load(recipe.init, dtype=torch.float32)
    if tokenizer is None:
        raise DataError(f"{recipe.init} has no tokenizer; put a tokenizer.json or vocab.txt beside the model")
    return model, tokenizer


def _uses_pairs(recipe: PretrainSettings, initial: Any) -> bool:
    """Whether the next sentence is predicted too: where it was asked for, or where a BERT has or may get a head for it."""
    has_head = isinstance(initial, HeadedEncoder) and isinstance(initial.head, PretrainingHead)
    can = has_head if initial is not None else recipe.model in bert.PRESETS
    if recipe.nsp and not can and (initial is None or not isinstance(_encoder_of(initial), bert.Bert)):
        raise UsageError("nsp is for BERT, which has segments; RoBERTa has none")
    return can if recipe.nsp is None else recipe.nsp


def _encoder_of(model: Any) -> bert.Bert | roberta.Roberta:
    return model.encoder if isinstance(model, HeadedEncoder | PooledEncoder) else model


def _prepare(
    recipe: PretrainSettings, tokenizer: Tokenizer | None, uses_pairs: bool, notify: Callable[[str], object]
) -> tuple[PreparedText, int]:
    sources, n_bytes = measure(recipe.data)
    text = prepare(
        sources,
        tokenizer=tokenizer,
        vocab_size=recipe.vocab_size or max(choose_size(n_bytes).vocab_size, 2048),
        heldout_share=recipe.heldout_share,
        seed=recipe.seed,
        notify=notify,
        kind="roberta" if recipe.model in roberta.PRESETS else "wordpiece",
        layout="sentences" if uses_pairs else "separated",
    )
    return text, n_bytes


def _model(recipe: PretrainSettings, initial: Any, tokenizer: Tokenizer, uses_pairs: bool) -> HeadedEncoder:
    """The encoder to train, with a head for each task; heads that it has are kept."""
    wanted = PretrainingHead if uses_pairs else MLMHead
    if isinstance(initial, HeadedEncoder) and isinstance(initial.head, wanted):
        return initial
    if initial is None:
        pad_id, context = tokenizer.special_id("pad") or 0, recipe.context or CONTEXT
        config = replace(ENCODERS[recipe.model], vocab_size=tokenizer.vocab_size, max_seq_len=context, pad_id=pad_id)
        kind = bert.Bert if isinstance(config, bert.BertConfig) else roberta.Roberta
        initial = kind(config).initialise(recipe.seed)
    return attach_head(initial, "pretraining" if uses_pairs else "mlm", recipe.seed)


def _choose(
    recipe: PretrainSettings, model: HeadedEncoder, text: PreparedText, n_bytes: int, notify: Callable[[str], object]
) -> PretrainSettings:
    """Fill in every setting that is None, and say what was chosen."""
    config = model.config
    context = recipe.context or min(CONTEXT, config.max_seq_len)
    if context > config.max_seq_len:
        raise UsageError(f"context is {context}; the model reads at most {config.max_seq_len} tokens")
    rows = recipe.batch_rows or BATCH_ROWS
    size = choose_size(n_bytes)
    size = replace(size, effort=size.effort * MORE_WORK, max_epochs=size.max_epochs * MORE_EPOCHS)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    per_step, cores = context * rows * recipe.accumulate, recipe.threads or torch.get_num_threads()
    steps = recipe.max_steps or choose_steps(size, n_parameters, per_step, len(text.tokens), cores)
    rate = (
        CONTINUED_RATE if recipe.init else next((RATES[d] for d in RATES if config.d_model <= d), min(RATES.values()))
    )
    notify(
        f"model: {n_parameters / 1e6:.1f} M parameters ({config.n_layers} layers of width {config.d_model}, vocabulary "
        f"{config.vocab_size:,}), trained on hidden tokens{' and next sentences' if _has_pairs(model) else ''}"
    )
    notify(f"schedule: {steps:,} steps of {per_step:,} tokens, {steps * per_step / len(text.tokens):.1f} epochs")
    filled = replace(
        recipe, vocab_size=text.tokenizer.vocab_size, context=context, batch_rows=rows, nsp=_has_pairs(model)
    )
    return fill_course(filled, steps, rate, evaluations=10, samples=10)


def _has_pairs(model: HeadedEncoder) -> bool:
    return isinstance(model.head, PretrainingHead)


def _rows(s: PretrainSettings, text: PreparedText, folder: str) -> Rows:
    """The batches of the training text, or those of the held-out text, whose masks never change."""
    store, tokenizer, is_heldout = store_path(text.key) / folder, text.tokenizer, bool(folder)
    assert s.context and s.batch_rows
    masking = make_masking(
        tokenizer,
        rate=s.mask_rate,
        whole_words=s.whole_words,
        dynamic=s.masking == "dynamic" and not is_heldout,
        seed=s.seed,
    )
    ids = [tokenizer.special_id(role) for role in ("cls", "sep", "pad")]
    if None in ids:
        raise DataError("the tokenizer lacks one of [CLS], [SEP], [PAD]; an encoder needs all of them")
    cls_id, sep_id, pad_id = (int(index) for index in ids if index is not None)
    if s.nsp:
        pairs = open_sentences(store, tokenizer)
        if is_heldout and len(pairs.document_ends) < 2:
            raise DataError(
                f"the held-out text is one passage, and next-sentence prediction needs two: give more text, hold out more "
                f"than {s.heldout_share:.0%} with --heldout-share, or train with --no-nsp"
            )
        return NextSentencePairs(pairs, s.context, s.batch_rows, s.seed, masking, cls_id, sep_id, pad_id)
    tokens = np.memmap(store / TOKENS_FILE, dtype=id_type(tokenizer.vocab_size), mode="r")
    return FullSentences(tokens, s.context, s.batch_rows, s.seed, masking, cls_id, sep_id)


def guesses(model: HeadedEncoder, tokenizer: Tokenizer, rows: Rows, n_shown: int = 6) -> str:
    """What stood at the first hidden positions of the held-out text, and what the model takes it for."""
    batch, _ = rows((0, 0))
    device = next(model.parameters()).device
    inputs = (batch.input_ids, batch.attention_mask, batch.segment_ids)
    chosen = batch.labels[0] != IGNORED
    with evaluating(model):
        hidden = model.encoder(*(part[:1].to(device) for part in inputs))
        best = getattr(model.head, "mlm", model.head)(hidden[0][chosen]).argmax(-1).tolist()
    names = [
        [tokenizer.decode([index]).strip() or "·" for index in ids] for ids in (batch.labels[0][chosen].tolist(), best)
    ]
    return ", ".join(f"{truth} → {guess}" for truth, guess in list(zip(*names, strict=True))[:n_shown])
