"""A multi-head Llama gets fewer key/value heads: trained here, converted, uptrained on 5 % (python -m benchmarks.gqa).

The model has six layers with eight heads each and learns Python's documentation for 1,500 steps. Aligned heads, pooled to 4,
2 and 1, are uptrained; for 2 heads the other ways are too. SmolLM2, from three heads to one, shows how the ways compare
before uptraining in a model of thirty layers that saw 2 T tokens.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.pairs import write_proof
from lamoid.adapt.gqa import POOLINGS, group_kv_heads
from lamoid.checkpoints.hf import write_model
from lamoid.cli import main as lamoid
from lamoid.data.sources import find_sources
from lamoid.inference.score import score
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.recipes.fetch import fetch
from lamoid.recipes.load import load_with_tokenizer
from lamoid.recipes.prepare import encode_documents, prepare

DATA = "python-docs"
SHAPE = dict(d_model=192, n_layers=6, n_heads=8, n_kv_heads=8, head_dim=24, d_ff=512, max_seq_len=256)
VOCABULARY, CONTEXT, ROWS, LEARNING_RATE, ALPHA = 1024, 128, 8, 3e-3, 0.05
COMPARED, ALONE = 2, (4, 1)
SMOLLM2_BYTES = 6000


def main() -> None:
    parser = argparse.ArgumentParser(description="fewer key/value heads, measured")
    parser.add_argument("--steps", type=int, default=1500, help="of the original training")
    parser.add_argument("--work", type=Path, help="keep the runs here, and go on with those that are there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the result as JSON into this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.work or Path(folder), arguments.steps, arguments.threads)
    write_proof("gqa", result | {"smollm2, 3 -> 1": smollm2()}, arguments.out)


def measure(work: Path, steps: int, threads: int) -> dict[str, object]:
    """Train the original, then `lamoid gqa` for each number of heads; the reports, by number."""
    common = ["--data", DATA, "--threads", str(threads)]
    if not (work / "start").is_dir():
        (work / "start").mkdir(parents=True)
        text = prepare(
            find_sources([DATA]),
            tokenizer=None,
            vocab_size=VOCABULARY,
            heldout_share=0.05,
            seed=0,
            notify=print,
        )
        config = LlamaConfig(text.tokenizer.vocab_size, **SHAPE, tied_embeddings=True)
        write_model(work / "start", Llama(config).initialise(0), text.tokenizer)
    training = ["--context", str(CONTEXT), "--batch-rows", str(ROWS), "--learning-rate", str(LEARNING_RATE)]
    training += ["--max-steps", str(steps), "--sample-every", "0", "--init", str(work / "start")]
    assert lamoid(["pretrain", *common, *training, "--out", str(work / "mha")]) == 0
    reports = {}
    for n_kv_heads in (COMPARED, *ALONE):
        out = work / f"gqa-{n_kv_heads}"
        settings = ["--kv-heads", str(n_kv_heads), "--alpha", str(ALPHA), "--out", str(out)]
        settings += ["--compare"] if n_kv_heads == COMPARED else []
        assert lamoid(["gqa", str(work / "mha"), *common, *settings]) == 0
        reports[f"8 -> {n_kv_heads}"] = json.loads((out / "report.json").read_text(encoding="utf-8")) | {"model": "mha"}
    return {"shape": SHAPE, "original steps": steps, "reports": reports}


def smollm2() -> dict[str, float]:
    """Loss on the beginning of the Python documentation, before any uptraining."""
    model, tokenizer = load_with_tokenizer(fetch("smollm2", print), None)
    document = next(iter(find_sources([DATA])[0].documents()))
    text = "".join(document).encode()[:SMOLLM2_BYTES].decode(errors="ignore")
    documents = encode_documents([text], tokenizer)
    models = {"before": lambda: model} | {
        way: lambda way=way: group_kv_heads(model, 1, pooling=way) for way in POOLINGS
    }
    losses = {name: score(make(), documents, len(text.encode()), context=512) for name, make in models.items()}
    return {name: round(result.loss, 4) for name, result in losses.items() if result is not None}


if __name__ == "__main__":
    main()
