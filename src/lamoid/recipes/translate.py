"""`lamoid pretrain` of a Transformer from pairs of source and target, and its translations in `lamoid generate`."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from lamoid.data.padded import pad
from lamoid.data.pairs import EncodedPair, PairRows, TextPair, encode_pairs, read_pairs, split_pairs
from lamoid.data.sources import spread
from lamoid.errors import DataError, MissingExtra, UsageError
from lamoid.inference.beam import Hypothesis, translate
from lamoid.models.transformer import PRESETS, Transformer
from lamoid.recipes.evaluation import on_pairs
from lamoid.recipes.load import check_device, load, load_named_tokenizer
from lamoid.recipes.ready import Training
from lamoid.recipes.resume import identity, whole_model
from lamoid.recipes.settings import PretrainSettings
from lamoid.recipes.sizes import choose_size, choose_steps, fill_course
from lamoid.tokenizers.bpe import affordable_bytes, train_bpe
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.training.objectives import target_tokens
from lamoid.training.scores import chrf

CONTEXT, BATCH_ROWS = 256, 32
LEAST_VOCABULARY = 2048
MORE_WORK, MORE_EPOCHS = 4, 5
"""Times a Llama's of the same bytes: half of them are sources, which only the encoder reads."""
PAPER_WARMUP_STEPS, LARGEST_WARMUP_SHARE = 4000, 0.1
"""The paper's highest rate is 1 / √(D · warm-up), after 4000 steps; a shorter run warms up for a tenth of its steps."""
MOST_HELDOUT, MOST_TRANSLATED = 1000, 64
"""Held-out pairs that an evaluation reads, and those of them that it translates."""
Notify = Callable[[str], object]


@dataclass(frozen=True)
class PairData:
    """Pairs to train on and pairs to measure by; `key` is a hash of all of them."""

    training: PairRows
    heldout: PairRows
    n_bytes: int
    key: str


def ready(recipe: PretrainSettings, notify: Notify) -> Training:
    """Read the pairs, fill in what was not given, make the model."""
    _refuse(recipe)
    initial, tokenizer = _begin(recipe)
    pairs, n_bytes = read_pairs(recipe.data, skip_bad=recipe.skip_bad, notify=notify)
    training, heldout = split_pairs(pairs, recipe.heldout_share, recipe.seed)
    if tokenizer is None:
        tokenizer = _train_tokenizer(training, recipe.vocab_size or _vocabulary(n_bytes), notify)
    context = recipe.context or min(CONTEXT, initial.config.max_seq_len if initial is not None else CONTEXT)
    model = initial if initial is not None else _new_model(recipe, tokenizer, context)
    if context > model.config.max_seq_len:
        raise UsageError(f"context is {context}; the model reads at most {model.config.max_seq_len} tokens")
    data = _encode(replace(recipe, context=context), training, heldout, tokenizer, model, n_bytes, notify)
    s = _choose(recipe, model, data, tokenizer, context, notify)
    assert s.max_steps
    model.to(dtype=getattr(torch, s.dtype), device=check_device(s.device))
    torch.manual_seed(s.seed)  # of dropout
    source = " ".join(data.heldout.pairs[0].texts.source.split())[:60].replace("'", "’")
    return Training(
        s,
        model,
        whole_model(model, tokenizer),
        data.training,
        target_tokens(s.label_smoothing),
        on_pairs(model, data.heldout, _scorer(model, tokenizer, data.heldout, notify)),
        lambda: _example(model, tokenizer, data.heldout.pairs[0]),
        identity(s, data.key, tokenizer),
        n_epochs=s.max_steps * data.training.batch_rows * s.accumulate / len(data.training.pairs),
        hint=f"lamoid generate {s.out} '{source}'",
    )


def _refuse(s: PretrainSettings) -> None:
    """Raise UsageError for settings that are not for a Transformer."""
    if not 0 <= s.label_smoothing < 1:
        raise UsageError(f"label_smoothing is {s.label_smoothing}; it must be at least 0 and below 1")
    for name in ("grow_vocab", "gradient_checkpointing", "whole_words", "nsp"):
        if getattr(s, name):
            raise UsageError(f"{name} is not for a Transformer; leave out --{name.replace('_', '-')}")


def _begin(s: PretrainSettings) -> tuple[Transformer | None, Tokenizer | None]:
    """The Transformer of --init and its tokenizer, or none and the tokenizer that was named, if one was."""
    if not s.init:
        tokenizer = load_named_tokenizer(s.tokenizer) if s.tokenizer else None
    elif s.model != "auto" or s.tokenizer:
        raise UsageError("a Transformer of --init keeps shape and tokenizer; leave out --model and --tokenizer")
    else:
        model, tokenizer = load(s.init, dtype=torch.float32)
        assert isinstance(model, Transformer)
        if tokenizer is None:
            raise DataError(f"{s.init} has no tokenizer; put a tokenizer.json beside the model")
        return model, tokenizer
    lacking = [role for role in ("bos", "eos", "pad") if tokenizer and tokenizer.special_id(role) is None]
    if lacking:
        raise DataError(
            f"{s.tokenizer} has no {lacking[0]} token, which a Transformer needs; take one of lamoid tokenizer train"
        )
    return None, tokenizer


def _vocabulary(n_bytes: int) -> int:
    return max(choose_size(n_bytes).vocab_size, LEAST_VOCABULARY)


def _train_tokenizer(training: Sequence[TextPair], vocab_size: int, notify: Notify) -> Tokenizer:
    """One for both sides, from all training text or as much of it, evenly spread, as memory allows."""
    notify(f"tokenizer: training a byte-level BPE of up to {vocab_size:,} ids on sources and targets")
    texts = [text for pair in training for text in (pair.source, pair.target)]
    n_bytes = sum(len(text.encode()) for text in texts)
    return train_bpe(spread(texts, affordable_bytes(texts) / n_bytes), vocab_size)


def _new_model(s: PretrainSettings, tokenizer: Tokenizer, context: int) -> Transformer:
    bos, eos, padding = (tokenizer.special_id(role) for role in ("bos", "eos", "pad"))
    assert bos is not None and eos is not None and padding is not None
    config = replace(PRESETS[s.model], vocab_size=tokenizer.vocab_size, max_seq_len=context)
    return Transformer(replace(config, bos_id=bos, eos_id=eos, pad_id=padding)).initialise(s.seed)


def _encode(
    s: PretrainSettings,
    training: Sequence[TextPair],
    heldout: Sequence[TextPair],
    tokenizer: Tokenizer,
    model: Transformer,
    n_bytes: int,
    notify: Notify,
) -> PairData:
    assert s.context
    ids, sets = (model.config.bos_id, model.config.eos_id, model.config.pad_id), []
    n_long = 0
    for pairs in (training, heldout):
        kept, n_left_out = encode_pairs(pairs, tokenizer, s.context)
        n_long += n_left_out
        if not kept:
            raise DataError(f"all {len(pairs):,} pairs are longer than {s.context} tokens; raise --context")
        sets.append(kept)
    note = f"; {n_long:,} left out, being longer than {s.context} tokens (--context)" if n_long else ""
    notify(f"pairs: {len(sets[0]):,} to train on, {len(sets[1]):,} held out{note}")
    digest = hashlib.sha256()
    for pair in (*sets[0], *sets[1]):
        digest.update(f"{len(pair.texts.source)} {pair.texts.source}{pair.texts.target}\0".encode())
    rows = s.batch_rows or BATCH_ROWS
    trained, measured = (PairRows(pairs, rows, s.seed, *ids) for pairs in (sets[0], sets[1][:MOST_HELDOUT]))
    return PairData(trained, measured, n_bytes, digest.hexdigest()[:16])


def _choose(
    s: PretrainSettings, model: Transformer, data: PairData, tokenizer: Tokenizer, context: int, notify: Notify
) -> PretrainSettings:
    """Fill in every setting that is None, and say what was chosen."""
    rows, config = data.training, model.config
    size = choose_size(data.n_bytes)
    size = replace(size, effort=size.effort * MORE_WORK, max_epochs=size.max_epochs * MORE_EPOCHS)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    n_tokens = rows.n_tokens // 2  # each passes one of the two stacks, half of the parameters
    per_step = max(n_tokens * rows.batch_rows * s.accumulate // len(rows.pairs), 1)
    steps = s.max_steps or choose_steps(size, n_parameters, per_step, n_tokens, s.threads or torch.get_num_threads())
    warmup = min(PAPER_WARMUP_STEPS, max(int(LARGEST_WARMUP_SHARE * steps), 1))
    notify(
        f"model: {n_parameters / 1e6:.1f} M parameters (encoder and decoder of {config.n_layers} layers each, width "
        f"{config.d_model}, vocabulary {config.vocab_size:,})"
    )
    epochs = steps * rows.batch_rows * s.accumulate / len(rows.pairs)
    notify(f"schedule: {steps:,} steps of {rows.batch_rows * s.accumulate} pairs, {epochs:.1f} epochs")
    filled = replace(
        s,
        vocab_size=tokenizer.vocab_size,
        context=context,
        batch_rows=rows.batch_rows,
        warmup_steps=warmup if s.warmup_steps is None else s.warmup_steps,
        schedule=s.schedule or "inverse-sqrt",
    )
    return fill_course(filled, steps, (config.d_model * PAPER_WARMUP_STEPS) ** -0.5, evaluations=10, samples=10)


def _scorer(
    model: Transformer, tokenizer: Tokenizer, rows: PairRows, notify: Notify
) -> Callable[[Callable[[], bool]], dict[str, float]]:
    """chrF of greedy translations of the first MOST_TRANSLATED pairs; nothing, and a line about it, without sacrebleu."""
    pairs = rows.pairs[:MOST_TRANSLATED]
    try:
        chrf([""], ["a"])
    except MissingExtra as error:
        notify(f"note: only the loss is measured, no chrF: {error}")
        return lambda should_stop: {}

    def score(should_stop: Callable[[], bool]) -> dict[str, float]:
        found: list[str] = []
        for start in range(0, len(pairs), rows.batch_rows):
            if should_stop():
                return {}
            group = [pair.source for pair in pairs[start : start + rows.batch_rows]]
            found += [tokenizer.decode(done.ids) for done in decode_sources(model, group)]
        return {"chrf": chrf(found, [pair.texts.target for pair in pairs])}

    return score


def _example(model: Transformer, tokenizer: Tokenizer, pair: EncodedPair) -> str:
    """What the model makes of a pair's source, and what it should, on one line."""
    made = tokenizer.decode(decode_sources(model, [pair.source])[0].ids)
    source, made, target = (" ".join(text.split())[:80] for text in (pair.texts.source, made, pair.texts.target))
    return f"{source} → {made} (should be: {target})"


def decode_sources(
    model: Transformer, sources: Sequence[list[int]], n_beams: int = 1, max_new_tokens: int | None = None
) -> list[Hypothesis]:
    """The targets of sources, which are ids with their end; the model stays in the mode it is in."""
    was_training, device = model.training, model.embedding.weight.device
    ids, mask = pad(sources, model.config.pad_id), pad([[1] * len(source) for source in sources], 0)
    found = translate(model, ids.to(device), mask.to(device), n_beams=n_beams, max_new_tokens=max_new_tokens)
    model.train(was_training)
    return found
