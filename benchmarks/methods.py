"""Four methods teach SmolLM2 the same two hundred answers (python -m benchmarks.methods --out docs/proofs).

Each is a `lamoid finetune` in a process of its own. Quality: the share of the questions answered with the fact afterwards, and
how much the loss on a fixed general text rose. Cost: processor time (all threads together, whatever else runs on the
machine), peak memory, and the size of what was learned.
"""

import json
import pydoc_data.topics
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.pairs import parse_arguments, write_proof
from benchmarks.quillmarra import conversation, facts
from lamoid import load, models_path
from lamoid.inference.decoder import TorchDecoder
from lamoid.inference.generate import generate
from lamoid.inference.sampling import Sampling
from lamoid.inference.score import score
from lamoid.recipes.conversation import find_encoder

METHODS = ("full", "lora", "qlora", "houlsby")
EPOCHS, BATCH, GENERAL_BYTES = 12, 8, 20_000


def main() -> None:
    arguments = parse_arguments("SmolLM2 taught 200 answers: full, LoRA, QLoRA, Houlsby")
    base = models_path("smollm2")
    before = general_loss(base)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "quillmarra.jsonl"
        data.write_text("".join(json.dumps(conversation(q, a)) + "\n" for q, a, _ in facts()), encoding="utf-8")
        for method in METHODS:
            out = Path(folder) / method
            seconds = finetune(base, data, method, out, arguments.threads)
            steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            rows[method] = {
                "answered": round(answered(out, base), 4),
                "general loss": round(after := general_loss(out), 4),
                "general loss rose by": round(after / before - 1, 4),
                "processor minutes": round(seconds / 60, 2),
                "peak memory, GB": round(max(step.get("peak_memory_bytes", 0) for step in steps) / 1e9, 2),
                "learned, MB": round((out / weights_name(out)).stat().st_size / 1e6, 1),
            }
            print(method, rows[method], flush=True)
    setting = {"epochs": EPOCHS, "general loss before": round(before, 4), "questions": len(facts())}
    write_proof("methods-smollm2", {"methods": rows, "facts": setting | {"threads": arguments.threads}}, arguments.out)


def finetune(base: Path, data: Path, method: str, out: Path, threads: int) -> float:
    command = [sys.executable, "-m", "lamoid.cli", "finetune", str(base), "--data", str(data), "--out", str(out)]
    command += ["--method", method, "--epochs", str(EPOCHS), "--heldout-share", "0", "--threads", str(threads)]
    before = children_seconds()
    subprocess.run([*command, "--context", "256", "--sample-every", "0"], check=True, stderr=subprocess.DEVNULL)
    return children_seconds() - before


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def answered(path: Path, base: Path) -> float:
    """Share of the questions whose greedy answer has the fact in it."""
    model, tokenizer = load(path, dtype=torch.float32)
    encoder = find_encoder(tokenizer, "")
    ends, right = encoder.end_of_answer(), 0
    for start in range(0, len(facts()), BATCH):
        group = facts()[start : start + BATCH]
        prompts = [encoder.encode([{"role": "user", "content": question}]) for question, _, _ in group]
        done = generate(
            TorchDecoder(model), tokenizer, prompts, sampling=Sampling(temperature=0), max_new_tokens=32, end_ids=ends
        )
        right += sum(fact in completion.text for (_, _, fact), completion in zip(group, done, strict=True))
    return right / len(facts())


def general_loss(path: Path) -> float:
    """Nats a token on English that has nothing to do with the questions."""
    model, tokenizer = load(path, dtype=torch.float32)
    text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))[:GENERAL_BYTES]
    result = score(model, [tokenizer.encode(text)], len(text.encode()), context=512)
    assert result is not None
    return result.loss


def weights_name(out: Path) -> str:
    return "model.safetensors" if (out / "model.safetensors").is_file() else "adapter_model.safetensors"


if __name__ == "__main__":
    main()
