"""The batches of a run, or of data that one could train on, once more: for looking at them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lamoid.checkpoints.hf import read_config
from lamoid.data.packed import PackedRows, Position
from lamoid.data.packing import PackedConversations
from lamoid.errors import DataError, UsageError
from lamoid.inspect.batch_view import BatchView, view_batch
from lamoid.recipes.conversation import find_encoder
from lamoid.recipes.instruct import read_data
from lamoid.recipes.load import find_tokenizer, model_directory
from lamoid.recipes.prepare import open_store
from lamoid.recipes.recipe import load, make
from lamoid.recipes.resume import FOLDER, PLAIN_FILE, RECIPE_FILE
from lamoid.recipes.settings import FinetuneSettings, TrainingSettings
from lamoid.tokenizers.chat import ChatEncoder
from lamoid.tokenizers.load import load_tokenizer
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.training.metrics import METRICS_FILE


@dataclass(frozen=True)
class RealBatches:
    """What a run takes its batches from, micro-batches in a step, and the tokenizer and chat format of the data."""

    batches: PackedRows | PackedConversations
    accumulate: int
    tokenizer: Tokenizer
    encoder: ChatEncoder | None
    run: Path | None = None

    def position(self, step: int) -> Position:
        """Where a step, counted from 1, begins in the data: as the run has noted it, or as it will be.

        Raises UsageError for a step that there is not.
        """
        if step < 1:
            raise UsageError(f"step is {step}; steps are counted from 1")
        if self.run is not None and step > 1:
            return _noted(self.run / METRICS_FILE, step)
        position = (0, 0)
        for _ in range((step - 1) * self.accumulate):
            _, position = self.batches(position)
        return position

    def view(self, position: Position) -> BatchView:
        """The batch at a position."""
        batch, _ = self.batches(position)
        examples = self.batches.rows_at(position)[0] if isinstance(self.batches, PackedConversations) else None
        segments = None if batch.segment_ids is None else batch.segment_ids.numpy()
        return view_batch(batch.input_ids.numpy(), batch.labels.numpy(), segments, self.tokenizer, examples)


def open_run(directory: Path, notify: Callable[[str], object]) -> RealBatches:
    """The batches of a run, from its recipe.yaml and newest checkpoint: of `finetune`, or of any verb that trains a decoder
    on running text. Raises DataError where it is no such run, or where its tokenized text is gone."""
    file = directory / RECIPE_FILE
    if not file.is_file():
        raise DataError(
            f"{directory} is no run: it has no {RECIPE_FILE}; give the --out of lamoid pretrain or finetune"
        )
    values, identity = load(file), _identity(directory)
    if "method" in values:
        found, key = _of_conversations(make(FinetuneSettings, values), notify)
        if identity and identity["data"] != key:
            notify("warning: the data have changed since the run began; this is not what it was trained on")
        return replace(found, run=directory)
    s = make(TrainingSettings, {f.name: values[f.name] for f in fields(TrainingSettings) if f.name in values})
    if not identity or not s.context or not s.batch_rows:
        raise DataError(f"{directory} has no checkpoint yet, or is of a run whose batches cannot be shown")
    try:
        text = open_store(identity["data"], load_tokenizer(directory))
    except DataError as error:
        raise DataError(f"the run's tokenized text: {error}, by the same command that began the run") from error
    if text.facts.get("layout", "documents") != "documents":
        raise DataError(f"{directory} is the run of an encoder; explain-batch shows batches of decoders alone")
    rows = PackedRows(text.tokens, s.context, s.batch_rows, s.seed)
    return RealBatches(rows, s.accumulate, text.tokenizer, None, directory)


def open_data(settings: FinetuneSettings, notify: Callable[[str], object]) -> RealBatches:
    """The batches that `finetune` would make with these settings."""
    return _of_conversations(settings, notify)[0]


def _of_conversations(settings: FinetuneSettings, notify: Callable[[str], object]) -> tuple[RealBatches, str]:
    origin = model_directory(settings.model).absolute()
    tokenizer = find_tokenizer(origin)
    if tokenizer is None:
        raise DataError(f"{origin} has no tokenizer; put a tokenizer.json beside the model")
    data = read_data(settings, origin, tokenizer, read_config(origin).max_seq_len, notify)
    encoder = find_encoder(tokenizer, settings.template)
    return RealBatches(data.training, settings.accumulate, tokenizer, encoder), data.key


def _identity(directory: Path) -> dict[str, Any]:
    """What the run's newest checkpoint says about its data and settings, nothing where there is none."""
    folders = [p for p in (directory / "checkpoints").glob("step-*") if p.name.removeprefix("step-").isdigit()]
    files = [p / FOLDER / PLAIN_FILE for p in sorted(folders, key=lambda p: int(p.name.removeprefix("step-")))]
    for file in reversed(files):
        try:
            return dict(json.loads(file.read_text(encoding="utf-8"))["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def _noted(file: Path, step: int) -> Position:
    """Where a step began, from metrics.jsonl."""
    last = 0
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        record = json.loads(line) if line.endswith("}") else {}
        if "position" in record:
            last = record["step"]
            if last == step:
                epoch, used = record["position"]
                return epoch, used
    raise UsageError(f"step is {step}; the run's last one is {last}")
