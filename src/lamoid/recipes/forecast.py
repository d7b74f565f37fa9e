"""What a run that could begin will take: memory by kind, operations, time, disk; and what would change it.

Memory and operations follow from shapes (`inspect/memory.py`, `inspect/flops.py`); time from a few steps of the run itself, at a
learning rate of zero, in a process that writes nothing.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lamoid.checkpoints.hf_bert import KINDS
from lamoid.checkpoints.store import atomic_file
from lamoid.inspect.anatomy import Anatomy, anatomy
from lamoid.inspect.flops import Method, MethodName, Work, count_parameters, training_flops
from lamoid.inspect.memory import Memory, gibibytes, training_memory
from lamoid.models.heads import HeadedEncoder
from lamoid.models.llama import Llama
from lamoid.nn.losses import IGNORED
from lamoid.recipes.cache import cache_directory
from lamoid.recipes.ready import BYTES_PER_PARAMETER, Training
from lamoid.recipes.settings import FinetuneSettings
from lamoid.training.loop import Progress, StepReport, train
from lamoid.training.metrics import duration
from lamoid.training.optim import make_optimizer

PROCESS_BYTES = 400 * 2**20
"""Python, torch and our own modules with their buffers, before there is a model (measured: 401 MiB, torch 2.13, Linux)."""
SAMPLED_BATCHES = 16
CALIBRATION_STEPS, CALIBRATION_S = 3, 60.0
"""Steps that time is measured on, of which the first does not count; no further one begins after so many seconds."""
MATRIX_EFFICIENCY = 0.6
"""Share of the rate of a large matrix product that training reaches, where no step can be tried."""


@dataclass(frozen=True)
class Shape:
    """What the costs of a training follow from: its model's parts, its method, and the work of some of its micro-batches."""

    parts: Anatomy
    method: Method
    works: tuple[Work, ...]
    packed: bool
    accumulate: int
    checkpointing: bool
    bytes_per_value: int

    def memory(self, data: int, process: int) -> Memory:
        """The peak, by the largest of the micro-batches."""
        of_each = (
            training_memory(
                self.parts,
                work,
                self.method,
                bytes_per_value=self.bytes_per_value,
                checkpointing=self.checkpointing,
                packed=self.packed,
                accumulates=self.accumulate > 1,
                data=data,
                process=process,
            )
            for work in self.works
        )
        return max(of_each, key=lambda memory: memory.total)

    def flops(self, works: tuple[Work, ...] | None = None) -> float:
        """Operations of a step: the mean over the micro-batches, or over these, times those of a step."""
        chosen = works or self.works
        of_each = [training_flops(self.parts, w, self.method, checkpointing=self.checkpointing) for w in chosen]
        return self.accumulate * sum(of_each) / len(of_each)


def shape_of(training: Training) -> Shape:
    """The shape of a training, from its model, its settings, and its first micro-batches."""
    s, model = training.settings, training.model
    head = getattr(model, "head", None)
    parts = anatomy(model.config, KINDS[type(head)] if head else "", len(getattr(head, "labels", ())) or 2)
    method = Method()
    if isinstance(s, FinetuneSettings):
        kind: MethodName = s.method  # type: ignore[assignment]
        method = Method(kind, s.rank, tuple(s.targets), s.bottleneck)
    batches = list(_first_batches(training))
    return Shape(
        parts,
        method,
        tuple(work_of(batch) for batch in batches),
        packed=not isinstance(model, HeadedEncoder) and getattr(batches[0], "segment_ids", None) is not None,
        accumulate=s.accumulate,
        checkpointing=s.gradient_checkpointing,
        bytes_per_value=getattr(torch, s.dtype).itemsize,
    )


def _first_batches(training: Training) -> Iterator[Any]:
    position: Any = (0, 0)
    for _ in range(SAMPLED_BATCHES):
        batch, position = training.batches(position)
        yield batch


def work_of(batch: Any) -> Work:
    """Rows, tokens and trained positions of a micro-batch of any of our data sets."""
    trained = int((batch.labels != IGNORED).sum())
    if hasattr(batch, "source_ids"):
        rows, tokens = batch.target_ids.shape
        return Work(rows, tokens, trained, batch.source_ids.shape[1])
    rows, tokens = batch.input_ids.shape
    return Work(rows, tokens, trained)


@dataclass(frozen=True)
class Forecast:
    """What a run will take: memory at its peak, operations and seconds of a step (None: not measured), disk."""

    parameters: int
    trainable: int
    memory: Memory
    step_flops: float
    step_seconds: float | None
    steps: int
    tokens: int
    epochs: float
    disk_bytes: int

    @property
    def seconds(self) -> float | None:
        """Of all steps; evaluations, samples and checkpoints come on top."""
        return None if self.step_seconds is None else self.steps * self.step_seconds


def forecast(training: Training, step_seconds: float | None = None) -> Forecast:
    """Memory, operations and disk of a training whose model is in memory; the time of a step is taken as given."""
    s, shape = training.settings, shape_of(training)
    n = count_parameters(shape.parts, shape.method)
    data = _mapped_bytes(training.batches)
    memory = shape.memory(data, PROCESS_BYTES)
    tokens = sum(w.rows * (w.tokens + w.source_tokens) for w in shape.works) / len(shape.works) * s.accumulate
    assert s.max_steps
    checkpoint = n.trainable * BYTES_PER_PARAMETER
    disk = s.keep * checkpoint + (n.total * shape.bytes_per_value if shape.method.kind == "full" else n.trainable * 4)
    flops, steps = shape.flops(), s.max_steps
    n_tokens = round(tokens * steps)
    return Forecast(n.total, n.trainable, memory, flops, step_seconds, steps, n_tokens, training.n_epochs, disk)


def _mapped_bytes(batches: Any) -> int:
    """What of a mapped store of tokens will be read into memory."""
    return getattr(getattr(batches, "tokens", None), "nbytes", 0)


def plan_ahead(training: Training, *, calibrate: bool) -> Forecast:
    """A forecast with the time of a step: measured where the run fits, and then kept for the run; else estimated."""
    found = forecast(training)
    if not calibrate or found.memory.total > machine_memory():
        return replace(found, step_seconds=estimate_step(shape_of(training)))
    found = replace(found, step_seconds=measure_step(training))
    remember(training, found)
    return found


def measure_step(training: Training) -> float:
    """Seconds of a step: a few of the run's own, at a rate of zero, scaled from their operations to the mean of the run's.

    Changes nothing that is trained, but draws from the random generator, and leaves moments behind.
    """
    shape, reports = shape_of(training), list[StepReport]()
    optimizer = make_optimizer(training.model.named_parameters(), weight_decay=0.0)
    began = time.perf_counter()

    def after_step(report: StepReport) -> bool:
        reports.append(report)
        return time.perf_counter() - began > CALIBRATION_S

    train(
        training.model,
        training.batches,
        training.objective,
        optimizer,
        schedule=lambda step: 0.0,
        max_steps=CALIBRATION_STEPS,
        progress=Progress((0, 0)),
        after_step=after_step,
    )
    first = 1 if len(reports) > 1 else 0
    flops = shape.flops(shape.works[first : len(reports)]) / shape.accumulate
    seconds = sum(report.seconds for report in reports[first:]) / len(reports[first:])
    return seconds * shape.flops() / flops


def estimate_step(shape: Shape, size: int = 1024) -> float:
    """Seconds of a step by the measured rate of a matrix product, where no step can be tried."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    fastest = math.inf
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, b)
        fastest = min(fastest, time.perf_counter() - began)
    return shape.flops() / (MATRIX_EFFICIENCY * 2 * size**3 / fastest)


@dataclass(frozen=True)
class Change:
    """Another setting, the memory that it would take, and how many times the operations."""

    setting: str
    memory: int
    times_the_work: float


def changes(training: Training, memory: Memory) -> list[Change]:
    """What else the run could be told, with the effect of each."""
    s, shape = training.settings, shape_of(training)
    others: dict[str, Shape] = {}
    rows = max(work.rows for work in shape.works)
    if rows > 1:
        halves = tuple(
            replace(work, rows=max(work.rows // 2, 1), trained=math.ceil(work.trained / 2)) for work in shape.works
        )
        flag = f"--batch-rows {rows // 2} --accumulate {2 * s.accumulate}"
        others[flag] = replace(shape, works=halves, accumulate=2 * s.accumulate)
    if not shape.checkpointing and hasattr(
        getattr(training.model, "encoder", training.model), "gradient_checkpointing"
    ):
        others["--gradient-checkpointing"] = replace(shape, checkpointing=True)
    if isinstance(s, FinetuneSettings) and isinstance(training.model, Llama):
        names: tuple[MethodName, ...] = ("lora", "qlora")
        for kind in names[names.index(shape.method.kind) + 1 :] if shape.method.kind in names else names:
            others[f"--method {kind}"] = replace(shape, method=replace(shape.method, kind=kind))
    own = shape.flops()
    return [
        Change(flag, other.memory(memory.data, memory.process).total, other.flops() / own)
        for flag, other in others.items()
    ]


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def facts(found: Forecast, other: list[Change]) -> dict[str, Any]:
    """A forecast as plain values, in bytes, seconds and operations."""
    own = asdict(found) | {"memory": asdict(found.memory) | {"total": found.memory.total}, "seconds": found.seconds}
    limit = machine_memory()
    return own | {"machine_memory": limit, "fits": found.memory.total <= limit, "changes": [asdict(c) for c in other]}


def describe(found: Forecast, other: list[Change]) -> str:
    """A forecast in lines."""
    memory, limit = found.memory, machine_memory()
    kinds = "\n".join(f"    {kind:<12}{gibibytes(n_bytes):>12}" for kind, n_bytes in asdict(memory).items())
    verdict = "fits" if memory.total <= limit else "does not fit"
    lines = [
        f"parameters    {found.parameters:,}, of which {found.trainable:,} are trained "
        f"({found.trainable / found.parameters:.2%})",
        f"data          {found.steps:,} steps, {found.tokens:,} tokens, {found.epochs:.1f} epochs",
        f"operations    {found.step_flops / 1e9:,.0f} GFLOP a step, {found.step_flops * found.steps / 1e12:,.1f} TFLOP in all",
        f"memory        {gibibytes(memory.total)} at the peak; {verdict} into this machine's {gibibytes(limit)}",
        kinds,
        f"disk          {gibibytes(found.disk_bytes)} with all checkpoints that are kept",
    ]
    if found.step_seconds is not None and found.seconds is not None:
        rate = found.step_flops / found.step_seconds / 1e9
        lines.append(
            f"time          {duration(found.seconds)} in steps of {found.step_seconds:.2f} s ({rate:.0f} GFLOP/s); "
            f"evaluations and checkpoints come on top"
        )
    for change in other:
        lines.append(f"with {change.setting}: {gibibytes(change.memory)}, {change.times_the_work:.2f} x the operations")
    return "\n".join(lines)


def remember(training: Training, found: Forecast) -> None:
    """Keep the time of a step, so that the run can say how right it was: in the cache, by what must not differ on resume."""
    file = _file(training)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps({"step_seconds": found.step_seconds}), encoding="utf-8")


def remembered(training: Training) -> float | None:
    """What `remember` kept for such a run, None where it was never planned."""
    try:
        return float(json.loads(_file(training).read_text(encoding="utf-8"))["step_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file(training: Training) -> Path:
    text = json.dumps(training.identity, sort_keys=True, default=str)
    return cache_directory() / "plans" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def compare(found: Forecast, peak_bytes: int, seconds: float, steps: int) -> list[str]:
    """How right a forecast was, in lines: its peak of memory, and the time of the steps that this process made."""
    error = found.memory.total / peak_bytes - 1
    lines = [f"memory: predicted {gibibytes(found.memory.total)}, measured {gibibytes(peak_bytes)} ({error:+.0%})"]
    if found.step_seconds is not None and steps:
        predicted = found.step_seconds * steps
        lines.append(
            f"time in steps: predicted {duration(predicted)}, measured {duration(seconds)} ({predicted / seconds - 1:+.0%})"
        )
    return lines
