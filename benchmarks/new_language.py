"""SmolLM2 learns to read Vietnamese, Chinese and Korean: its vocabulary grown, and a short training (python -m benchmarks.new_language).

For each language: tokens per character and bits per byte on held-out text, of the model as it was, grown but not yet
trained, and after some steps. `--control` trains without growing too. It needs `lamoid get smollm2`, and apt-get for the texts.
"""

import argparse
import json
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.debian_texts import PACKAGES, texts
from benchmarks.pairs import processor, seconds
from lamoid.adapt.grow import grow_embeddings
from lamoid.inference.score import score
from lamoid.models.llama import Llama
from lamoid.recipes import continued, pretrain
from lamoid.recipes.load import load_with_tokenizer
from lamoid.recipes.prepare import encode_documents
from lamoid.tokenizers.grow import old_pieces, tokens_per_character
from lamoid.tokenizers.tokenizer import Tokenizer

MODEL = "smollm2"
CONTEXT, ROWS, LEARNING_RATE = 128, 4, 5e-4
SCORED_BYTES = 6000
"""Little text, of several passages: reading it takes 135 M parameters some seconds on one core."""


def main() -> None:
    parser = argparse.ArgumentParser(description="a new language for SmolLM2, in short")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens that the tokenizer learns")
    parser.add_argument("--steps", type=int, default=20, help=f"steps of {ROWS} x {CONTEXT} tokens")
    parser.add_argument("--languages", nargs="+", default=list(PACKAGES), choices=list(PACKAGES))
    parser.add_argument("--control", action="store_true", help="train without growing too, for as many steps")
    parser.add_argument("--texts", type=Path, default=Path(tempfile.gettempdir()) / "lamoid-debian-texts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the result as JSON into this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pretrain.EVAL_BYTES = continued.COMPARED_BYTES = SCORED_BYTES
    results = {language: measure(language, arguments) for language in arguments.languages}
    print(table(results))
    if arguments.out is not None:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
        result = {
            "benchmark": "new_language",
            "model": MODEL,
            "settings": {"tokens": arguments.tokens, "steps": arguments.steps, "tokens_a_step": CONTEXT * ROWS}
            | {"learning_rate": LEARNING_RATE, "context": CONTEXT, "scored_bytes": SCORED_BYTES},
            "languages": results,
            "commit": commit.strip(),
            "machine": f"{processor()}, {arguments.threads} threads",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "new_language.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(language: str, arguments: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{language}.txt"
        file.write_text(texts(language, arguments.texts), encoding="utf-8")
        old_model, old = load_with_tokenizer(MODEL, arguments.threads)
        out, took = Path(folder) / "grown", 0.0
        took = seconds(lambda: train(file, out, arguments, arguments.tokens))
        model, new = load_with_tokenizer(out, arguments.threads)
        heldout = held_out(file, old, arguments.tokens)
        untrained = grow_embeddings(old_model, old_pieces(old, new), old.vocab_size)
        bits = {
            "before": bits_per_byte(old_model, old, heldout),
            "grown": bits_per_byte(untrained, new, heldout),
            "trained": bits_per_byte(model, new, heldout),
        }
        if arguments.control:
            plain = Path(folder) / "plain"
            train(file, plain, arguments, 0)
            bits["trained without growing"] = bits_per_byte(*load_with_tokenizer(plain, arguments.threads), heldout)
        everything = [file.read_text(encoding="utf-8")]
        return {
            "packages": PACKAGES[language],
            "text_bytes": file.stat().st_size,
            "new_tokens": new.vocab_size - old.vocab_size,
            "tokens_per_character": {
                "before": tokens_per_character(old, heldout),
                "after": tokens_per_character(new, heldout),
            },
            "tokens_per_character_all_text": {
                "before": tokens_per_character(old, everything),
                "after": tokens_per_character(new, everything),
            },
            "bits_per_byte": bits,
            "seconds": round(took),
        }


def train(file: Path, out: Path, arguments: argparse.Namespace, n_tokens: int) -> None:
    """`lamoid pretrain`, with one evaluation at the end."""
    settings = {"max_steps": arguments.steps, "eval_every": arguments.steps, "sample_every": 0}
    settings |= {"context": CONTEXT, "batch_rows": ROWS, "learning_rate": LEARNING_RATE, "threads": arguments.threads}
    recipe = pretrain.Recipe(init=MODEL, data=[str(file)], out=str(out), grow_vocab=n_tokens, **settings)
    assert pretrain.run(recipe) == 0


def held_out(file: Path, tokenizer: Tokenizer, n_tokens: int) -> list[str]:
    """The passages that the run held out, from its store."""
    from lamoid.recipes.prepare import measure as find
    from lamoid.recipes.prepare import prepare

    sources, _ = find([str(file)])
    text = prepare(
        sources, tokenizer=tokenizer, vocab_size=0, heldout_share=0.05, seed=0, notify=print, grow_vocab=n_tokens
    )
    return text.heldout_texts(SCORED_BYTES)


def bits_per_byte(model: Llama, tokenizer: Tokenizer, heldout: list[str]) -> float:
    n_bytes = sum(len(text.encode()) for text in heldout)
    result = score(model, encode_documents(heldout, tokenizer), n_bytes, context=CONTEXT)
    assert result is not None
    return result.bits_per_byte


def table(results: dict[str, dict]) -> str:
    lines = [f"{'':<12}tokens per character   bits per byte: before, grown, trained"]
    for language, result in results.items():
        tokens, bits = result["tokens_per_character"], result["bits_per_byte"]
        lines.append(
            f"{language:<12}{tokens['before']:.3f} -> {tokens['after']:.3f}"
            + "".join(f"{b:14.3f}" for b in bits.values())
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
