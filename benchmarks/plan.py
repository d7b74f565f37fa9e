"""Predicted against measured, memory and time, of seven kinds of run (python -m benchmarks.plan --out docs/proofs).

Each is planned in one process and run for a few steps in another, by the same command. The goals are memory within 10 %, time
within 20 %. A row takes eleven steps and an evaluation: one to two minutes. Rows of different lengths reach their peak late, so
three steps are too few.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.pairs import write_proof
from lamoid.tokenizers.bpe import train_bpe

STEPS = 8
WORDS = ["một", "con", "mèo", "the", "cat", "sat", "on", "a", "mat", "猫坐在垫子上", "고양이가", "매트에", "앉았다"]
SMALL = ["--context", "256", "--batch-rows", "8"]
LARGE = ["--context", "256", "--batch-rows", "4"]


def runs(folder: Path) -> dict[str, list[str]]:
    """Name -> the words of the command, without --out."""
    short, long = conversations(folder / "short.jsonl", 10, 150), conversations(folder / "long.jsonl", 170, 185)
    everything = texts(folder / "texts.jsonl")
    tune = ["finetune", "smollm2", *LARGE, "--data"]
    return {
        "pretraining-11m": ["pretrain", "--data", "python-docs", "--init", str(llama_11m(folder / "11m")), *SMALL],
        "smollm2-full": [*tune, everything, "--method", "full"],
        "smollm2-lora": [*tune, everything, "--method", "lora"],
        "smollm2-lora-answers": [*tune, long, "--method", "lora"],
        "smollm2-lora-packed": [*tune, short, "--method", "lora"],
        "smollm2-qlora": [*tune, everything, "--method", "qlora"],
        "bert-small": [
            "pretrain",
            "--data",
            "python-docs",
            "--model",
            "bert-small",
            "--context",
            "128",
            "--batch-rows",
            "32",
        ],
    }


def llama_11m(folder: Path) -> Path:
    """The Llama of peers.md, newly drawn, with a tokenizer of the text that comes with Python."""
    import pydoc_data.topics

    from lamoid.checkpoints.hf import write_model
    from lamoid.models.llama import Llama, LlamaConfig

    folder.mkdir()
    tokenizer = train_bpe(list(pydoc_data.topics.topics.values()), 4096)
    config = LlamaConfig(tokenizer.vocab_size, 384, 6, 6, 6, 64, 1024, 256)
    write_model(folder, Llama(config).initialise(0), tokenizer)
    return folder


def conversations(file: Path, shortest: int, longest: int, n: int = 120) -> str:
    """Questions and answers of seeded lengths in words, a third of each answered."""
    draw = random.Random(0)
    lines = []
    for _ in range(n):
        length = draw.randint(shortest, longest) // 3
        question, answer = draw.choices(WORDS, k=max(length * 2 // 3, 1)), draw.choices(WORDS, k=max(length // 3, 1))
        roles = (("user", question), ("assistant", answer))
        lines.append({"messages": [{"role": role, "content": " ".join(words)} for role, words in roles]})
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return str(file)


def texts(file: Path, n: int = 60) -> str:
    """Plain texts, every token of which is trained."""
    draw = random.Random(1)
    lines = [json.dumps({"text": " ".join(draw.choices(WORDS, k=160))}, ensure_ascii=False) for _ in range(n)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def call(words: list[str]) -> str:
    command = [sys.executable, "-m", "lamoid.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-1000:]}")
    return done.stdout


def measure(words: list[str], out: Path, threads: int, steps: int) -> dict[str, object]:
    """The plan of a command, and what the command then took."""
    course = ["--threads", str(threads), "--max-steps", str(steps), "--eval-every", str(steps), "--sample-every", "0"]
    planned = json.loads(call(["plan", *words, *course, "--json"]))
    call([*words, *course, "--out", str(out)])
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "seconds" in record]
    peak = max(record["peak_memory_bytes"] for record in records)
    seconds = sum(record["seconds"] for record in records)
    return {
        "memory by kind, GB": {kind: round(n / 1e9, 3) for kind, n in planned["memory"].items()},
        "memory predicted, GB": round(planned["memory"]["total"] / 1e9, 3),
        "memory measured, GB": round(peak / 1e9, 3),
        "memory, predicted / measured": round(planned["memory"]["total"] / peak, 3),
        "time predicted, s": round(planned["seconds"], 2),
        "time measured, s": round(seconds, 2),
        "time, predicted / measured": round(planned["seconds"] / seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="predicted against measured")
    parser.add_argument("--only", nargs="*", help="names of runs (default: all)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the result as JSON into this folder")
    arguments = parser.parse_args()
    rows: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        for run, words in runs(Path(name)).items():
            if not arguments.only or run in arguments.only:
                print(f"{run}: its plan, then {arguments.steps} steps", file=sys.stderr, flush=True)
                rows[run] = measure(words, Path(name) / run, arguments.threads, arguments.steps)
                print(run, json.dumps(rows[run]), flush=True)
    setting = {"steps": arguments.steps, "threads": arguments.threads, "load": os.getloadavg()[0]}
    write_proof("plan", {"runs": rows, "facts": setting}, arguments.out)


if __name__ == "__main__":
    main()
