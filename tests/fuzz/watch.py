"""Damaged files are read in a process of their own, and another one watches it: for crashes, hangs, memory, wrong errors.

A file passes if it is used without an error, or with a LamoidError of bearable length that does not blame the call, in
MAX_CPU_S seconds of computing, and with no more new address space than FREE_BYTES + FREE_PER_BYTE for each byte of the
file. (In JSON `[]` is two bytes, and in Python an object of 56 and a place of 8 in a list.) What the system refuses beyond
that ends a Rust library at once and is a MemoryError in Python: both are faults. The seconds are those of this process, so
that a busy machine is no fault; a chat template is rendered in yet another process, whose own limits stand in
`templates.py`.
"""

import ctypes
import faulthandler
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from lamoid.errors import LamoidError, UsageError

MAX_CPU_S, MAX_WALL_S, MAX_START_S = 1.0, 60.0, 300.0
FREE_BYTES, FREE_PER_BYTE = 64 * 2**20, 32
MAX_MESSAGE_CHARACTERS = 10_000
M_ARENA_MAX = -8  # of malloc.h
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "tests.fuzz.kinds"])

Make = Callable[[int], tuple[int, Callable[[], object]]]
"""Makes the file with this number: its size in bytes, and what uses it."""

Prepare = Callable[[Path], Make]
"""Gets a folder to write in, in the process that is watched."""


@dataclass
class Findings:
    """How often each outcome came, which files are faults and why, and the most seconds that one took."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, 0)

    def add(self, index: int, outcome: str, fault: str, seconds: float) -> None:
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, (seconds, index))
        if seconds > MAX_CPU_S:
            fault = f"takes {seconds:.2f} s; {fault}"
        if fault:
            self.faults[index] = fault


def watch(prepare: Prepare, n_files: int, folder: Path, max_wall_s: float = MAX_WALL_S) -> Findings:
    """Use files 0 to n − 1, each once, in a process that is replaced when it dies or hangs."""
    findings, done = Findings(), 0
    while done < n_files:
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        scratch = folder / f"from-{done}"
        scratch.mkdir(parents=True)
        process = _CONTEXT.Process(target=_work, args=(sender, prepare, range(done, n_files), scratch))
        process.start()
        sender.close()
        try:
            done = _listen(receiver, findings, done, n_files, max_wall_s, scratch / "log.txt")
        finally:
            process.kill()
            process.join()
            receiver.close()
    return findings


def _listen(receiver: Connection, findings: Findings, done: int, n_files: int, max_wall_s: float, log: Path) -> int:
    """Hear of one file after the other until there is no more; returns the number of the next."""
    try:
        assert receiver.poll(MAX_START_S), "the process does not begin"
        process_id = receiver.recv()
    except EOFError:
        raise AssertionError(f"the process did not begin: {log.read_text(errors='replace')[-2000:]}") from None
    while done < n_files:
        if not receiver.poll(max_wall_s):
            os.kill(process_id, signal.SIGUSR1)  # where is it?
            time.sleep(1)
            findings.add(done, "hang", f"no answer in {max_wall_s} s: {log.read_text(errors='replace')[-3000:]}", 0.0)
            return done + 1
        try:
            heard = receiver.recv()
        except EOFError:
            findings.add(done, "crash", f"the process died: {log.read_text(errors='replace')[-500:]}", 0.0)
            return done + 1
        assert isinstance(heard, tuple), f"file {done} could not be made: {heard}"
        findings.add(done, *heard)
        done += 1
    return done


def _work(sender: Connection, prepare: Prepare, indices: Iterable[int], scratch: Path) -> None:
    os.environ |= {"RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}  # to print one takes more memory than all else
    log = os.open(scratch / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)  # else each thread reserves 64 MB of address space, and uses little of it
    make = prepare(scratch)
    faulthandler.register(signal.SIGUSR1, log)
    sender.send(os.getpid())
    for index in indices:
        os.ftruncate(log, 0)
        try:
            made = make(index)
        except Exception:
            sender.send(traceback.format_exc())
            raise
        sender.send(_outcome(*made))


def _outcome(n_bytes: int, use: Callable[[], object]) -> tuple[str, str, float]:
    """What came of using a file, why that is a fault if it is one, and the seconds that it took."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + FREE_BYTES + FREE_PER_BYTE * n_bytes, hard))
    outcome, fault, began = "used", "", time.process_time()
    try:
        use()
    except LamoidError as error:
        outcome, n_characters = type(error).__name__, len(str(error))
        fault = f"a message of {n_characters} characters" if n_characters > MAX_MESSAGE_CHARACTERS else ""
        fault = f"blames the call: {error}" if isinstance(error, UsageError) else fault
    except BaseException as error:
        outcome, fault = "wrong error", "".join(traceback.format_exception(error)[-4:])[-1500:]
    seconds = time.process_time() - began
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return outcome, fault, seconds


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
