"""The machinery for fair pairs: rounds in turn, medians, peak memory in processes of their own, and the machine's limits."""

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch


def argument_parser(description: str) -> argparse.ArgumentParser:
    """What every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5, help="times that each system is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the result as JSON into this folder")
    return parser


def parse_arguments(description: str) -> argparse.Namespace:
    arguments = argument_parser(description).parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def measure_in_turn(systems: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every system once a round, in turn, after one round that does not count; each returns its rate."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for round_number in range(rounds + 1):
        for name, run in systems.items():
            rate = run()
            if round_number:
                rates[name].append(rate)
    return rates


def peak_memory_bytes(run: Callable[[], object]) -> int:
    """Peak resident set of a fresh process that runs this; the function must be importable."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_and_report, args=(run, sender))
    process.start()
    peak = receiver.recv()
    process.join()
    return int(peak)


def _run_and_report(run: Callable[[], object], sender) -> None:
    run()
    # Not getrusage: its ru_maxrss is inherited from the parent, which holds all systems.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    sender.send(int(status.partition("VmHWM:")[2].split()[0]) * 1024)


def matrix_product_rate(size: int = 2048, repeats: int = 8) -> float:
    """Best fp32 FLOP/s of a square matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return max(2 * size**3 / seconds(lambda: a @ b) for _ in range(repeats))


def memory_read_rate(n_bytes: int = 512 * 2**20, repeats: int = 8) -> float:
    """Best bytes per second at which all cores together read memory."""
    x = torch.randn(n_bytes // 4)
    return max(n_bytes / seconds(lambda: x.sum()) for _ in range(repeats))


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def report(name: str, unit: str, rates: dict[str, list[float]], facts: dict[str, object], out: Path | None) -> None:
    """Print a table of medians, spread and the ratio to each peer; Lamoid is the first system."""
    medians = {system: statistics.median(values) for system, values in rates.items()}
    own, *peers = medians
    print(f"\n{name} ({unit}, median of {len(rates[own])}, lowest - highest)")
    for system, values in rates.items():
        ratio = "" if system == own else f"   Lamoid has {medians[own] / medians[system]:.2f} x"
        print(f"  {system:<14}{medians[system]:10.1f}   {min(values):.1f} - {max(values):.1f}{ratio}")
    for key, value in facts.items():
        print(f"  {key}: {value}")
    result = {
        "unit": unit,
        "medians": medians,
        "ratios": {peer: medians[own] / medians[peer] for peer in peers},
        "values": rates,
        "facts": facts,
    }
    write_proof(name, result, out)


def write_proof(name: str, result: dict[str, object], out: Path | None) -> None:
    """Write a result into the folder `out`, if there is one, with the commit, the machine and the date."""
    if out is None:
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    whole = {
        "benchmark": name,
        **result,
        "commit": commit,
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(whole, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
