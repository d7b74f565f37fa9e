"""Small BERTs trained alike, without dropout: on windows of text with masks that may come again, or on pairs of texts.

All of a run follows from plain values: the budget, the task, the seed. The parts, rows and masks are those of `lamoid pretrain`.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lamoid.data.masked import FullSentences, make_masking
from lamoid.data.packed import Position, id_type
from lamoid.data.padded import EncoderBatch
from lamoid.data.sentences import NextSentencePairs, open_sentences
from lamoid.data.sources import find_sources
from lamoid.models.bert import Bert, BertConfig
from lamoid.models.heads import attach_head
from lamoid.nn.losses import IGNORED
from lamoid.recipes.evaluation import MOST_ROWS, Evaluation, first_epoch, on_masked
from lamoid.recipes.lab.budget import BUDGET, Run, learn
from lamoid.recipes.lab.experiment import Keep, Settings
from lamoid.recipes.prepare import HELDOUT_FOLDER, TOKENS_FILE, Layout, PreparedText, prepare, store_path
from lamoid.recipes.recipe import say
from lamoid.training.encoder_objectives import masked_tokens
from lamoid.training.loop import Batches

HELDOUT_ROWS = 64
Rows = FullSentences | NextSentencePairs


def trained_encoder(keep: Keep, settings: Settings, task: Mapping[str, Any], seed: int) -> Run:
    """One run, kept. The task is {"masks": n} for windows with n masks that take turns, or {"nsp": whether} for pairs.

    Beside what `learn` says: held-out `loss` and `figures`, the loss of a `guess` by frequency, `at_epoch` ((epoch, loss), …)
    at each `every` steps.
    """
    budget = {key: settings[key] for key in (*BUDGET, "every")}
    run = {"budget": budget, "task": dict(task), "seed": seed}
    said = ", ".join(f"{key} {value}" for key, value in task.items())
    return keep(f"train an encoder: {said}, seed {seed}", run, partial(_train, budget, task, seed))


def _train(b: Settings, task: Mapping[str, Any], seed: int) -> Run:
    text = _text(b["data"], b["vocabulary"], "sentences" if "nsp" in task else "separated")
    rows, heldout = _rows(text, b, task, seed), _rows(text, b, task, None)
    width, n_ids = b["width"], text.tokenizer.vocab_size
    shape = (n_ids, width, b["layers"], b["heads"], 4 * width, b["context"])
    config = BertConfig(*shape, dropout=0.0, attention_dropout=0.0, init_std=b["init_std"])
    model = attach_head(Bert(config).initialise(seed), "pretraining" if task.get("nsp") else "mlm", seed)
    seen = list[tuple[float, Evaluation]]()

    def then(step: int) -> None:
        if step % b["every"] == 0 or step == b["steps"]:
            found = on_masked(model, heldout)(lambda: False)
            assert found is not None
            seen.append((step * b["rows"] / rows.rows_per_epoch, found))

    batches = take_turns(rows, task["masks"]) if isinstance(rows, FullSentences) else rows
    run = learn(model, b, seed, then, batches, masked_tokens)
    guess = guessing(text.tokens, heldout, n_ids)
    figures = seen[-1][1].figures if seen else {}
    reached = {"loss": guess if run["diverged"] else seen[-1][1].loss, "figures": figures, "guess": guess}
    parameters = sum(p.numel() for p in model.parameters())
    return run | reached | {"parameters": parameters, "at_epoch": [(epoch, found.loss) for epoch, found in seen]}


@functools.cache
def _text(data: str, vocabulary: int, layout: Layout) -> PreparedText:
    sources = find_sources([data])
    fixed: dict[str, Any] = {"tokenizer": None, "heldout_share": 0.05, "seed": 0, "notify": say, "kind": "wordpiece"}
    return prepare(sources, vocab_size=vocabulary, layout=layout, **fixed)


def _rows(text: PreparedText, b: Settings, task: Mapping[str, Any], seed: int | None) -> Rows:
    """Rows to train on; without a seed held-out ones, whose masks are the same for all tasks and seeds."""
    tokenizer, store = text.tokenizer, store_path(text.key) / (HELDOUT_FOLDER if seed is None else "")
    n_rows, draws = (HELDOUT_ROWS, 0) if seed is None else (b["rows"], seed)
    masking = make_masking(tokenizer, dynamic="nsp" in task and seed is not None, seed=draws)
    cls_id, sep_id, pad_id = (tokenizer.special_id(role) for role in ("cls", "sep", "pad"))
    assert cls_id is not None and sep_id is not None and pad_id is not None
    if "nsp" in task:
        pairs = open_sentences(store, tokenizer)
        return NextSentencePairs(pairs, b["context"], n_rows, draws, masking, cls_id, sep_id, pad_id)
    tokens = np.fromfile(store / TOKENS_FILE, dtype=id_type(tokenizer.vocab_size))
    if seed is not None and b["tokens"]:
        tokens = spread(tokens, b["context"] - 2, b["tokens"])
    return FullSentences(tokens, b["context"], n_rows, draws, masking, cls_id, sep_id)


def spread(tokens: np.ndarray, window: int, n_tokens: int) -> np.ndarray:
    """`n_tokens` in windows that lie evenly over the whole text, as its beginning is not like the rest."""
    windows = tokens[: len(tokens) // window * window].reshape(-1, window)
    return windows[np.linspace(0, len(windows) - 1, n_tokens // window, dtype=int)].ravel()


def take_turns(rows: FullSentences, n_masks: int) -> Batches:
    """Static rows, whose windows stay where they are, with mask e mod `n_masks` in epoch e.

    A batch that ends in the next epoch has the mask of the one in which it began.
    """

    def batches(position: Position) -> tuple[EncoderBatch, Position]:
        seed = 1000 * rows.masking.seed + position[0] % n_masks
        return replace(rows, masking=replace(rows.masking, seed=seed))(position)

    return batches


def guessing(tokens: np.ndarray, heldout: Rows, n_ids: int) -> float:
    """Nats a hidden token that the frequencies of `tokens` cost, of the held-out rows that `on_masked` reads."""
    labels = np.concatenate([batch.labels.flatten() for batch in first_epoch(heldout, MOST_ROWS)])
    counts = np.bincount(tokens, minlength=n_ids) + 1.0
    return float(-np.log(counts / counts.sum())[labels[labels != IGNORED]].mean())
