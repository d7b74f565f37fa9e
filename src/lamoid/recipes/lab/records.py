"""What was measured, on disk: parts of experiments and finished ones, found by the settings and the machine that made them."""

import hashlib
import inspect
import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from lamoid.checkpoints.store import atomic_file, write_json
from lamoid.errors import DataError, RunError
from lamoid.inspect.svg import standalone
from lamoid.recipes.lab.experiment import Experiment, Settings, together
from lamoid.recipes.recipe import say

PARTS, FACTS = "parts", "facts.json"


def machine() -> dict[str, Any]:
    """What a measurement depends on besides its settings."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {"torch": torch.__version__, "lamoid": version("lamoid")}
    return {"processor": names[0] if names else platform.processor(), "threads": torch.get_num_threads(), **versions}


class Parts:
    """The parts of experiments in a folder, a file each. Two experiments that ask for the same part share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, what: str, settings: Settings, measure: Callable[[], Any]) -> Any:
        identity = {"what": what, "settings": dict(settings), "machine": machine()}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
        file = self._folder / f"{key}.json"
        if "value" in (kept := _read(file)):
            return kept["value"]
        say(f"  {what}")
        began = time.perf_counter()
        value = measure()
        write_json(file, identity | {"seconds": round(time.perf_counter() - began, 2), "value": value})
        return value


def perform(experiment: Experiment, out: Path, *, trial: bool) -> dict[str, Any]:
    """Measure an experiment, or take what it gave before; judge it; write its files into `out`/name. Returns the result.

    It is measured again when its settings, the machine or the experiment's own file changed. The parts that it keeps are
    found by settings and machine alone.
    """
    settings = {**experiment.settings, **(experiment.trial if trial else {})}
    folder = out / experiment.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()  # to know before long measuring that the result can be written
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}; choose another --out") from error
    code = hashlib.sha256(Path(inspect.getfile(experiment.judge)).read_bytes()).hexdigest()[:20]
    identity = {"settings": json.loads(json.dumps(settings)), "machine": machine(), "code": code}
    record = _read(folder / FACTS)
    whole = isinstance(record.get("facts"), dict) and isinstance(record.get("seconds"), float) and "date" in record
    if not whole or {key: record.get(key) for key in identity} != identity or "missing" in record["facts"]:
        say(f"{experiment.name}: measuring ({'a trial' if trial else experiment.budget})")
        began = time.perf_counter()
        try:
            facts = json.loads(json.dumps(experiment.measure(settings, Parts(out / PARTS))))
        except KeyboardInterrupt:
            say(f"stopped; what was measured is kept in {out}, and the same command goes on from there")
            raise
        seconds = round(time.perf_counter() - began, 1)
        record = {**identity, "date": datetime.now(UTC).strftime("%Y-%m-%d"), "seconds": seconds, "facts": facts}
        write_json(folder / FACTS, record)
        return _conclude(experiment, record, folder, trial=trial)
    try:
        return _conclude(experiment, record, folder, trial=trial)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / FACTS} is damaged ({error!r}); delete it, and {experiment.name} is measured again"
        ) from error


def _conclude(experiment: Experiment, record: dict[str, Any], folder: Path, *, trial: bool) -> dict[str, Any]:
    facts, figures = record["facts"], list[str]()
    checks, table = [], None
    reason = facts.get("missing") or ("a trial shows that the machinery works, and nothing else" if trial else None)
    if "missing" not in facts:
        checks, table, figures = experiment.judge(facts), experiment.tabulate(facts), experiment.draw(facts)
    for number, figure in enumerate(figures, start=1):
        with atomic_file(folder / f"figure-{number}.svg") as temporary:
            temporary.write_text(standalone(figure), encoding="utf-8")
    described = {key: getattr(experiment, key) for key in ("name", "claim", "question", "budget", "rule", "about")}
    result = {
        **described,
        "verdict": "undecided" if reason else together(checks),
        "reason": reason,
        "trial": trial,
        "checks": [vars(check) for check in checks],
        "table": None if table is None else {"columns": list(table.columns), "rows": [list(r) for r in table.rows]},
        "figures": [f"{experiment.name}/figure-{number}.svg" for number in range(1, len(figures) + 1)],
        **record,
    }
    write_json(folder / "result.json", result)
    return result


def _read(file: Path) -> dict[str, Any]:
    """A kept record; empty where there is none, or where it is damaged, as then it is measured again."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
