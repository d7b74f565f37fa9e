"""SmolLM2 meets Vietnamese, Chinese and Korean: its vocabulary grown, and some steps (python -m benchmarks.new_language).

For each language: tokens per character and bits per byte on held-out text, of the model as it was, grown but not yet
trained, and trained. `--control` trains without growing too, for as many steps. The texts come through apt-get.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.debian_texts import PACKAGES, texts
from benchmarks.pairs import seconds, write_proof
from lamoid.adapt.grow import grow_embeddings
from lamoid.data.packed import PackedRows
from lamoid.inference.score import score
from lamoid.models.llama import Llama
from lamoid.recipes.fetch import fetch
from lamoid.recipes.load import load_with_tokenizer
from lamoid.recipes.prepare import PreparedText, encode_documents, prepare
from lamoid.recipes.prepare import measure as find_sources
from lamoid.tokenizers.grow import old_pieces, tokens_per_character
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.training.loop import Progress, train
from lamoid.training.objectives import next_token
from lamoid.training.optim import make_optimizer, make_schedule

MODEL = "smollm2"
CONTEXT, ROWS, LEARNING_RATE, WARMUP_STEPS = 128, 4, 5e-4, 2
SCORED_PASSAGES, SCORED_CHARACTERS = 4, 1000
"""The beginnings of held-out passages; little text, since 135 M parameters read some hundred tokens a second on a core."""


def main() -> None:
    parser = argparse.ArgumentParser(description="SmolLM2 meets a new language")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens that the tokenizer learns")
    parser.add_argument("--steps", type=int, default=20, help=f"steps of {ROWS} x {CONTEXT} tokens")
    parser.add_argument("--languages", nargs="+", default=list(PACKAGES), choices=list(PACKAGES))
    parser.add_argument("--control", action="store_true", help="train without growing too")
    parser.add_argument("--texts", type=Path, default=Path(tempfile.gettempdir()) / "lamoid-debian-texts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the result as JSON into this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {language: measure(language, arguments) for language in arguments.languages}
    settings = {"tokens": arguments.tokens, "steps": arguments.steps, "tokens_a_step": CONTEXT * ROWS}
    settings |= {"learning_rate": LEARNING_RATE, "context": CONTEXT}
    write_proof("new_language", {"model": MODEL, "settings": settings, "languages": results}, arguments.out)


def measure(language: str, arguments: argparse.Namespace) -> dict[str, object]:
    model, tokenizer = load_with_tokenizer(fetch(MODEL, print), arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{language}.txt"
        file.write_text(texts(language, arguments.texts), encoding="utf-8")
        text = prepared(file, tokenizer, arguments.tokens)
        plain = prepared(file, tokenizer, 0)
    heldout = [passage[:SCORED_CHARACTERS] for passage in text.heldout[:SCORED_PASSAGES]]
    everything = text.heldout
    tokens = {
        "before": tokens_per_character(tokenizer, everything),
        "after": tokens_per_character(text.tokenizer, everything),
    }
    bits = {"before": bits_per_byte(model, tokenizer, heldout)}
    grown = grow_embeddings(model, old_pieces(tokenizer, text.tokenizer), tokenizer.vocab_size)
    bits["grown"] = bits_per_byte(grown, text.tokenizer, heldout)
    print(f"{language}: tokens per character {tokens}, bits per byte {bits}", flush=True)
    took = seconds(lambda: learn(grown, text, arguments.steps))
    bits["grown and trained"] = bits_per_byte(grown, text.tokenizer, heldout)
    if arguments.control:
        learn(model, plain, arguments.steps)
        bits["trained without growing"] = bits_per_byte(model, tokenizer, heldout)
    print(f"{language}: bits per byte {bits}, {took:.0f} s of training", flush=True)
    return {
        "packages": PACKAGES[language],
        "text_bytes": text.facts["n_bytes"],
        "heldout_bytes": text.facts["heldout_bytes"],
        "scored_bytes": sum(len(passage.encode()) for passage in heldout),
        "new_tokens": text.tokenizer.vocab_size - tokenizer.vocab_size,
        "tokens_per_character": {name: round(value, 4) for name, value in tokens.items()},
        "bits_per_byte": {name: round(value, 4) for name, value in bits.items()},
        "training_s": round(took),
    }


def prepared(file: Path, tokenizer: Tokenizer, n_tokens: int) -> PreparedText:
    sources, _ = find_sources([str(file)])
    return prepare(
        sources, tokenizer=tokenizer, vocab_size=0, heldout_share=0.05, seed=0, notify=print, grow_vocab=n_tokens
    )


def learn(model: Llama, text: PreparedText, n_steps: int) -> None:
    train(
        model,
        PackedRows(text.tokens, CONTEXT, ROWS, seed=0),
        next_token,
        make_optimizer(model.named_parameters()),
        schedule=make_schedule("cosine", LEARNING_RATE, WARMUP_STEPS, n_steps),
        max_steps=n_steps,
        progress=Progress((0, 0)),
    )


def bits_per_byte(model: Llama, tokenizer: Tokenizer, heldout: list[str]) -> float:
    n_bytes = sum(len(text.encode()) for text in heldout)
    result = score(model, encode_documents(heldout, tokenizer), n_bytes, context=CONTEXT)
    assert result is not None
    return result.bits_per_byte


if __name__ == "__main__":
    main()
