"""The native engine beside llama.cpp on the same files (python -m benchmarks.engine --rows decode-q8_0,first-token).

Every row prints when it is done. Systems run in turn, one round that does not count and then --rounds that do; both have
the same threads, and take the likeliest token. llama-cpp-python is needed: pip install llama-cpp-python.
"""

import argparse
import math
import os
import pydoc_data.topics
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.llama_cpp import LlamaCpp
from benchmarks.pairs import measure_in_turn, report, seconds
from lamoid.checkpoints.conversion import convert, open_model
from lamoid.checkpoints.gguf import read_gguf
from lamoid.checkpoints.quants import FORMATS
from lamoid.inference.engine import NativeDecoder, NativeModel
from lamoid.inference.native.library import Team
from lamoid.inference.speculation import SpeculatingDecoder
from lamoid.inference.speed import memory_read_rate
from lamoid.inference.weights import weights_of_gguf
from lamoid.recipes.conversation import find_encoder
from lamoid.recipes.fetch import fetch
from lamoid.recipes.load import load
from lamoid.tokenizers.gguf_vocabulary import tokenizer_from_gguf

NEW_TOKENS, ANSWER_TOKENS = 64, 96
EDITING = """Rename the class Stack to Pile and return the whole file:

```python
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def peek(self):
        if not self.items:
            raise IndexError("peek at an empty stack")
        return self.items[-1]

    def __len__(self):
        return len(self.items)
```"""
BILLION = dict(block_count=16, embedding_length=2048, feed_forward_length=8192, context_length=8192, vocab_size=32_000)
HEADS = {"attention.head_count": 32, "attention.head_count_kv": 8, "rope.dimension_count": 64}


class Bench:
    """Files, threads and where results go; a method for each kind of row."""

    def __init__(self, folder: Path, threads: int, rounds: int, out: Path | None) -> None:
        self.folder, self.threads, self.rounds, self.out = folder, threads, rounds, out
        self.team = Team(threads)

    def decode(self, name: str, kind: str, n_prompt: int = 20, n_new: int = NEW_TOKENS) -> None:
        """Tokens after a prompt, one sequence."""
        file = self.file(kind)
        model, peer = self.native(file), LlamaCpp(file, self.threads, n_prompt + n_new + 8)
        decoder, prompt = NativeDecoder(model), prompt_of(n_prompt, model.config.vocab_size)

        def lamoid() -> float:
            return n_new / timed_steps(decoder.prefill([prompt]), decoder.step, n_new)

        def llama_cpp() -> float:
            peer.clear()
            return n_new / timed_steps(peer.read(prompt)[None], peer.step, n_new)

        rates = measure_in_turn({"lamoid": lamoid, "llama.cpp": llama_cpp}, self.rounds)
        n_bytes = model.weight_bytes + model.cache_bytes_per_token * (n_prompt + n_new // 2)
        limit = memory_read_rate(self.team) / n_bytes
        share = statistics.median(rates["lamoid"]) / limit
        self.report(
            name,
            rates,
            {"limit of memory": f"{limit:.0f} tokens/s ({n_bytes / 1e6:.0f} MB a token)", "share": f"{share:.0%}"},
        )
        peer.close()

    def prefill(self, name: str, kind: str, n_prompt: int) -> None:
        """Tokens of a prompt per second. Every prompt is a new one: what was read before is not read again."""
        file, count = self.file(kind), iter(range(1000))
        model, peer = self.native(file), LlamaCpp(file, self.threads, n_prompt + 8)

        def lamoid() -> float:
            prompt = prompt_of(n_prompt, model.config.vocab_size, next(count))
            return n_prompt / seconds(lambda: NativeDecoder(model).prefill([prompt]))

        def llama_cpp() -> float:
            peer.clear()
            prompt = prompt_of(n_prompt, model.config.vocab_size, next(count))
            return n_prompt / seconds(lambda: peer.read(prompt))

        self.report(name, measure_in_turn({"lamoid": lamoid, "llama.cpp": llama_cpp}, self.rounds), {})
        peer.close()

    def batch(self, name: str, kind: str, n_sequences: int) -> None:
        """Tokens of several sequences together, and ours of one."""
        file = self.file(kind)
        model, peer = self.native(file), LlamaCpp(file, self.threads, 128, n_sequences)
        decoder = NativeDecoder(model)
        prompts = [prompt_of(20, model.config.vocab_size, i) for i in range(n_sequences)]

        def lamoid() -> float:
            return n_sequences * NEW_TOKENS / timed_steps(decoder.prefill(prompts), decoder.step, NEW_TOKENS)

        def alone() -> float:
            return NEW_TOKENS / timed_steps(decoder.prefill(prompts[:1]), decoder.step, NEW_TOKENS)

        def llama_cpp() -> float:
            peer.clear()
            logits = np.stack([peer.read(prompt, i) for i, prompt in enumerate(prompts)])
            return n_sequences * NEW_TOKENS / timed_steps(logits, peer.step, NEW_TOKENS)

        rates = measure_in_turn({"lamoid": lamoid, "llama.cpp": llama_cpp, "lamoid, one": alone}, self.rounds)
        self.report(name, rates, {})
        peer.close()

    def speculation(self, name: str, kind: str) -> None:
        """A chat in which a file is to be returned with a small change: most of the answer stands in the question."""
        file = self.file(kind)
        model, tokenizer = self.native(file), tokenizer_from_gguf(read_gguf(file).metadata)
        assert tokenizer is not None
        prompt = find_encoder(tokenizer, "").encode([{"role": "user", "content": EDITING}])
        plain, speculating = NativeDecoder(model), SpeculatingDecoder(NativeDecoder(model))
        texts: dict[str, list[int]] = {}

        def rate(which: str, decoder: NativeDecoder | SpeculatingDecoder) -> Callable[[], float]:
            def run() -> float:
                ids: list[int] = []
                took = timed_steps(decoder.prefill([prompt]), decoder.step, ANSWER_TOKENS, ids)
                assert texts.setdefault("first", ids) == ids
                return ANSWER_TOKENS / took

            return run

        systems = {"lamoid": rate("speculating", speculating), "lamoid, plain": rate("plain", plain)}
        rates = measure_in_turn(systems, self.rounds)
        right = speculating.n_right / max(speculating.n_guessed, 1)
        self.report(name, rates, {"guesses that were right": f"{right:.0%}", "text": "the same"})

    def first_token(self, name: str) -> None:
        """Seconds from the start of `lamoid generate smollm2` with 20 tokens to the end of its first token."""
        tokenizer = tokenizer_from_gguf(read_gguf(self.file("Q4_1")).metadata)
        assert tokenizer is not None
        prompt = tokenizer.decode(tokenizer.encode(pydoc_data.topics.topics["assert"])[:20])
        command = [sys.executable, "-m", "lamoid.cli", "generate", "smollm2", prompt, "--max-new-tokens", "1"]
        command += ["--threads", str(self.threads)]

        def run() -> float:
            return seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))

        self.report(name, measure_in_turn({"lamoid": run}, self.rounds), {}, "s")

    def perplexity(self, name: str, kind: str, n_bytes: int = 50_000) -> None:
        """exp of the mean loss on English text, in windows of 512 tokens; torch has the dequantized weights."""
        file = self.file(kind)
        tokenizer = tokenizer_from_gguf(read_gguf(file).metadata)
        assert tokenizer is not None
        text = "".join(pydoc_data.topics.topics.values())[:n_bytes]
        ids = tokenizer.encode(text)
        windows = [ids[i : i + 512] for i in range(0, len(ids) - 1, 512)]
        decoder, peer = NativeDecoder(self.native(file)), LlamaCpp(file, self.threads, 520)
        model, _ = load(file, dtype=torch.float32)

        def by_torch(window: list[int]) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.tensor([window]))[0].numpy()

        systems = {"lamoid": decoder.logits, "llama.cpp": peer.logits, "torch": by_torch}
        nats = {system: sum(loss(logits(w), w) for w in windows) for system, logits in systems.items()}
        n_scored = sum(len(window) - 1 for window in windows)
        rates = {system: [math.exp(total / n_scored)] for system, total in nats.items()}
        own = rates["lamoid"][0]
        facts = {f"above {peer}": f"{own / rates[peer][0] - 1:+.2%}" for peer in ("llama.cpp", "torch")}
        self.report(name, rates, {"tokens": n_scored, **facts}, "perplexity, lower is better")
        peer.close()

    def native(self, file: Path) -> NativeModel:
        """The engine with a file; keys and values in float16, as llama.cpp has them."""
        return NativeModel(weights_of_gguf(read_gguf(file)), self.team, half_cache=True)

    def file(self, kind: str) -> Path:
        """A GGUF file of SmolLM2 in this format, or of a random model of Llama 3.2 1B's shape ("1B Q8_0"), made once."""
        shipped = next(fetch("smollm2", lambda text: None).glob("*.gguf"))
        if kind == "Q4_1":
            return shipped
        file = self.folder / f"{kind.replace(' ', '-')}.gguf"
        if not file.is_file() and kind.startswith("1B "):
            write_random(file, kind.removeprefix("1B "))
        elif not file.is_file():
            convert(open_model(shipped), file, dtype=kind, notify=lambda text: None)
        return file

    def report(
        self, name: str, rates: dict[str, list[float]], facts: dict[str, object], unit: str = "tokens/s"
    ) -> None:
        """Print a row now, and write it."""
        report(f"engine-{name}", unit, rates, facts, self.out)
        sys.stdout.flush()


def loss(logits: np.ndarray, ids: list[int]) -> float:
    logits = logits[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(ids) - 1), ids[1:]]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())


def prompt_of(n: int, vocab_size: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(10, vocab_size, n).tolist()


def timed_steps(
    logits: np.ndarray, step: Callable[[list[int]], np.ndarray], n: int, ids: list[int] | None = None
) -> float:
    """Seconds for n steps behind these logits; `ids` collects the first sequence's."""
    began = time.perf_counter()
    for _ in range(n):
        best = [int(row.argmax()) for row in logits]
        if ids is not None:
            ids.append(best[0])
        logits = step(best)
    return time.perf_counter() - began


def write_random(file: Path, kind: str) -> None:
    """A GGUF file of Llama 3.2 1B's shape with a vocabulary of 32,000, tied, all matrices random blocks of one format."""
    import gguf

    rng, block = np.random.default_rng(0), FORMATS[kind]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("no_vocab")
    for key, value in {**BILLION, **HEADS}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 500_000.0)
    d, f, v, kv = 2048, 8192, BILLION["vocab_size"], 512
    shapes = {"token_embd": (v, d), "output_norm": (d,)}
    for i in range(BILLION["block_count"]):
        layer = {"attn_norm": (d,), "ffn_norm": (d,), "attn_q": (d, d), "attn_k": (kv, d), "attn_v": (kv, d)}
        layer |= {"attn_output": (d, d), "ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
            continue
        blocks = rng.integers(0, 256, (shape[0], shape[1] // block.n_weights, block.n_bytes), np.uint8)
        blocks[..., :2] = np.array([0.0005], np.float16).view(np.uint8)
        raw = blocks.reshape(shape[0], -1)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType(block.type_id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ROWS: dict[str, Callable[[Bench, str], None]] = {
    "decode-q8_0": lambda b, name: b.decode(name, "Q8_0"),
    "decode-q4_1": lambda b, name: b.decode(name, "Q4_1"),
    "decode-q4_0": lambda b, name: b.decode(name, "Q4_0"),
    "decode-f16": lambda b, name: b.decode(name, "F16"),
    "decode-f32": lambda b, name: b.decode(name, "F32"),
    "decode-1b-q8_0": lambda b, name: b.decode(name, "1B Q8_0", n_new=32),
    "decode-1b-q4_0": lambda b, name: b.decode(name, "1B Q4_0", n_new=32),
    "prefill-256-q8_0": lambda b, name: b.prefill(name, "Q8_0", 256),
    "prefill-256-q4_0": lambda b, name: b.prefill(name, "Q4_0", 256),
    "prefill-2048-q8_0": lambda b, name: b.prefill(name, "Q8_0", 2048),
    "prefill-2048-q4_0": lambda b, name: b.prefill(name, "Q4_0", 2048),
    "batch-8-q8_0": lambda b, name: b.batch(name, "Q8_0", 8),
    "context-8000-q8_0": lambda b, name: b.decode(name, "Q8_0", n_prompt=8000, n_new=32),
    "speculation-q8_0": lambda b, name: b.speculation(name, "Q8_0"),
    "first-token": lambda b, name: b.first_token(name),
    "perplexity-q8_0": lambda b, name: b.perplexity(name, "Q8_0"),
    "perplexity-q4_1": lambda b, name: b.perplexity(name, "Q4_1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="rows to measure, with commas between (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each system is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, help="folder for the files that are made, to use them again")
    parser.add_argument("--out", type=Path, help="also write each result as JSON into this folder")
    arguments = parser.parse_args()
    unknown = set(arguments.rows.split(",")) - set(ROWS)
    if unknown:
        parser.error(f"no rows of these names: {', '.join(sorted(unknown))}; known are {', '.join(ROWS)}")
    torch.set_num_threads(arguments.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    with tempfile.TemporaryDirectory(prefix="lamoid-engine-") as temporary:
        folder = arguments.models or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, arguments.threads, arguments.rounds, arguments.out)
        for name in arguments.rows.split(","):
            ROWS[name](bench, name)


if __name__ == "__main__":
    main()
