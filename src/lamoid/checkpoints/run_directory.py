"""The directory of a run: its newest or best model at the root, older checkpoints inside, and one process at a time.

out/  config.json  model.safetensors  tokenizer.json …   what transformers opens
      recipe.yaml  metrics.jsonl                         what was asked, what happened
      checkpoints/step-120/                              a model directory each, with training/ and checksums.json
"""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from lamoid.checkpoints.store import atomic_directory, link_files, remove_leftovers, verify
from lamoid.errors import CheckpointError, RunError, UsageError


class RunDirectory:
    """Creates and locks the directory; a second run in it is refused, naming the process that holds it (use as `with`).

    Of several processes that train one model one `leads`; the others neither lock nor change the directory.
    """

    def __init__(
        self, path: Path, *, keep: int = 2, notify: Callable[[str], object] = print, leads: bool = True
    ) -> None:
        if keep < 2:
            raise UsageError(f"keep is {keep}; at least 2 checkpoints are kept, so that a damaged one is no loss")
        self.path, self._keep, self.notify, self.leads = path, keep, notify, leads
        self.checkpoints_path = path / "checkpoints"
        if not leads:
            return
        try:
            self.checkpoints_path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
        self._take_lock()
        for name in (*remove_leftovers(self.checkpoints_path), *remove_leftovers(path)):
            notify(f"note: {name} was not finished when its process ended; it is ignored")

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.leads:
            self._lock.close()

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in rising order."""
        names = (p.name.removeprefix("step-") for p in self.checkpoints_path.glob("step-*") if p.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.checkpoints_path / f"step-{step}"

    def newest(self) -> Path | None:
        """The newest checkpoint that is undamaged, or None; a damaged one is passed over with a note."""
        for step in reversed(self.steps()):
            try:
                verify(self.checkpoint(step))
            except CheckpointError as error:
                self.notify(f"warning: {error}")
                continue
            return self.checkpoint(step)
        return None

    def save(self, step: int, write: Callable[[Path], None], *, show: bool) -> Path:
        """Write a checkpoint whole or not at all; with `show`, make its model the one at the root. Old ones are deleted.

        Where another process leads, `write` only takes part in what is written together; that process says where.
        """
        target = self.checkpoint(step)
        if not self.leads:
            write(target)
            return target
        if target.exists():
            shutil.rmtree(target)
        with atomic_directory(target) as temporary:
            write(temporary)
        if show:
            self.show(target)
        for old in self.steps()[: -self._keep]:
            try:
                shutil.rmtree(self.checkpoint(old))
            except OSError as error:
                self.notify(f"warning: {self.checkpoint(old)} could not be deleted: {error.strerror}")
        return target

    def show(self, checkpoint: Path) -> None:
        """Make a checkpoint's model the one at the root of the run."""
        link_files(checkpoint, self.path)

    def require_space(self, checkpoint_bytes: int) -> None:
        """Refuse to begin where two checkpoints of this size do not fit beside each other."""
        free, needed = shutil.disk_usage(self.path).free, 2 * checkpoint_bytes
        if free < needed:
            raise RunError(
                f"{self.path} has {free:,} bytes free; two checkpoints need {needed:,}: free some space or choose another --out"
            )

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise RunError(
                f"{self.path} is in use by process {holder}; wait for it, stop it, or choose another --out"
            ) from error
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
