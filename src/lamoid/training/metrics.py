"""What a run reports: a line of JSON a step in metrics.jsonl, and a line in the terminal."""

import json
import math
import os
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lamoid.errors import MissingExtra
from lamoid.training.loop import StepReport

METRICS_FILE = "metrics.jsonl"
PRINT_EVERY_S = 5.0
_STATUS = Path("/proc/self/status")


class MetricsLog:
    """Appends to metrics.jsonl. A run that goes on from a step first drops the lines behind it, which it will write again.

    Of several processes one alone `writes`.
    """

    def __init__(self, directory: Path, resumed_at: int, *, writes: bool = True) -> None:
        file = directory / METRICS_FILE if writes else Path(os.devnull)
        kept = [line for line in _complete_lines(file) if json.loads(line)["step"] <= resumed_at]
        file.write_text("".join(kept), encoding="utf-8")
        self._directory, self._file = directory, file.open("a", encoding="utf-8")
        self._tensorboard: Any = None

    def add_tensorboard(self) -> None:
        """Write every number for TensorBoard too. Raises MissingExtra where it is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("tensorboard", "tensorboard") from None
        self._tensorboard = SummaryWriter(str(self._directory / "tensorboard"))

    def write(self, step: int, **values: Any) -> None:
        """One record; floats at full precision."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _complete_lines(file: Path) -> list[str]:
    if not file.is_file():
        return []
    return [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]


def step_record(report: StepReport, total_tokens: int) -> dict[str, Any]:
    """A step's report as it stands in metrics.jsonl, with tokens per second and the peak memory in bytes."""
    rate = report.tokens / report.seconds
    return asdict(report) | {
        "total_tokens": total_tokens,
        "tokens_per_s": rate,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far.

    Linux says so itself; the general call would count what the process was before it became this one.
    """
    if _STATUS.is_file():
        return int(_STATUS.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Display:
    """Progress with rate and time left: a bar in a terminal, a line every few seconds elsewhere (standard error).

    The rate is that of what is trained, which `counted` names: an encoder reads more tokens than it is asked about.
    """

    def __init__(self, max_steps: int, resumed_at: int, counted: str) -> None:
        self._bar = tqdm(
            total=max_steps, initial=resumed_at, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )
        self._counted = counted
        self._max_steps, self._began, self._first = max_steps, time.monotonic(), resumed_at
        self._printed = -PRINT_EVERY_S
        self._loss: float | None = None

    def step(self, report: StepReport) -> None:
        """Show a step; the loss is a running mean over about 20 steps."""
        if report.skipped:
            self.note(f"step {report.step} skipped: {report.skipped}")
        else:
            self._loss = report.loss if self._loss is None else 0.95 * self._loss + 0.05 * report.loss
        loss, rate = math.nan if self._loss is None else self._loss, report.tokens / report.seconds
        text = f"loss {loss:.3f} · {rate:,.{0 if rate >= 10 else 1}f} {self._counted}/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(1)
        now = time.monotonic()
        if self._bar.disable and (now - self._printed >= PRINT_EVERY_S or report.step == self._max_steps):
            self._printed = now
            left_s = (now - self._began) / (report.step - self._first) * (self._max_steps - report.step)
            self.note(f"step {report.step:,}/{self._max_steps:,} · {text} · {duration(left_s)} left")

    def note(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """75.0 → `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
