"""`make quickstart`: a tokenizer and a small Llama from text that is on every machine with Python, and what it can do."""

import json
import time
from pathlib import Path

OUT, DATA, PROMPTS = Path("runs/quickstart"), "python-docs", ("The ", "Return the ", "If the object ")
NEXT = """what to type next:
  .venv/bin/lamoid generate runs/quickstart "Return a list of"
  .venv/bin/lamoid tokenizer show runs/quickstart "an iterable of dictionaries"
  .venv/bin/lamoid pretrain --data FOLDER_WITH_YOUR_TEXT --out runs/mine"""


def run(max_steps: int | None = None) -> int:
    """Pretrain on the Python documentation (for the table's number of steps, unless given), then draw, compare and write."""
    from lamoid.recipes import pretrain

    began = time.monotonic()
    code = pretrain.run(pretrain.Recipe(data=[DATA], out=str(OUT), max_steps=max_steps))
    records = [json.loads(line) for line in (OUT / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    if code or not any("bits_per_byte" in record for record in records):
        return code
    _draw(records)
    _compare()
    _write()
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes. {NEXT}")
    return 0


def _draw(records: list[dict[str, float]]) -> None:
    from lamoid.inspect.figures import loss_curve_png, loss_curve_text

    training = [(r["step"], r["loss"]) for r in records if "loss" in r]
    heldout = [(r["step"], r["heldout_loss"]) for r in records if "heldout_loss" in r]
    print(loss_curve_text(training, heldout))
    loss_curve_png(OUT / "loss.png", training, heldout, "Quickstart: a small Llama on the Python documentation")
    print(f"the same curve as a picture: {OUT / 'loss.png'}")


def _compare() -> None:
    """Bits per byte of the model, a byte 5-gram model and xz on the same held-out text, after the same training text."""
    from lamoid.data.corpus import survey
    from lamoid.data.sources import find_sources
    from lamoid.inference.score import score
    from lamoid.recipes.baselines import ngram_bits_per_byte, xz_bits_per_byte
    from lamoid.recipes.load import load_with_tokenizer
    from lamoid.recipes.prepare import encode_documents

    corpus = survey(find_sources([DATA]), seed=0)
    training = "\n".join(passage.text for passage in corpus.training()).encode()
    texts = [passage.text for passage in corpus.heldout]
    heldout = "\n".join(texts).encode()
    model, tokenizer = load_with_tokenizer(OUT, None)
    n_bytes = sum(len(text.encode()) for text in texts)
    result = score(model, encode_documents(texts, tokenizer), n_bytes, context=model.config.max_seq_len)
    assert result is not None
    xz, xz_alone = xz_bits_per_byte(training, heldout), xz_bits_per_byte(b"", heldout)
    print(f"\nbits per byte on {len(heldout):,} bytes of held-out text (less is better)")
    print(f"  this model       {result.bits_per_byte:.3f}")
    print(f"  byte 5-gram      {ngram_bits_per_byte(training, heldout):.3f}")
    print(f"  xz -9            {xz:.3f}   ({xz_alone:.3f} without the training text)")


def _write() -> None:
    from lamoid.recipes.complete import sample
    from lamoid.recipes.load import load_with_tokenizer

    model, tokenizer = load_with_tokenizer(OUT, None)
    print()
    for prompt in PROMPTS:
        print(f"{prompt!r} -> {sample(model, tokenizer, prompt)}")


if __name__ == "__main__":
    raise SystemExit(run())
