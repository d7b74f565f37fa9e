"""SmolLM2's perplexity on 50 KB of English, as `lamoid eval` finds it, against transformers on the same windows."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics

import pytest
import torch
import transformers

from lamoid.cli import main
from lamoid.tokenizers.load import load_tokenizer

N_BYTES, WINDOW, STRIDE = 50_000, 2048, 1536


def test_smollm2s_perplexity_is_that_of_transformers(
    smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], measured: Callable[..., None]
) -> None:
    text = "\n".join(topics.topics.values()).encode()[:N_BYTES].decode(errors="ignore")
    (tmp_path / "english.txt").write_text(text, encoding="utf-8")
    windows = ["--context", str(WINDOW), "--stride", str(STRIDE)]
    assert main(["eval", "smollm2", "--text", str(tmp_path / "english.txt"), *windows, "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)

    own = transformers.AutoTokenizer.from_pretrained(smollm2)
    begin_of_text = load_tokenizer(smollm2).special_id("bos")
    ids = torch.tensor([begin_of_text, *own(text, split_special_tokens=True)["input_ids"]])
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    nats, scored = 0.0, 0
    for begin in range(0, len(ids) - 1, STRIDE):
        inputs, targets = ids[begin : begin + WINDOW], ids[begin + 1 : begin + WINDOW + 1]
        new = slice(scored - begin, len(targets))
        with torch.inference_mode():
            behind = model(inputs[None]).logits[0, new].double().log_softmax(dim=-1)
        nats -= float(behind.gather(1, targets[new, None]).sum())
        scored += len(targets[new])
        if scored == len(ids) - 1:
            break
    theirs = math.exp(nats / scored)
    measured("perplexity, 50 KB of English", tokens=scored, lamoid=ours["perplexity"], transformers=theirs)
    assert ours["bytes"] == len(text.encode()) >= N_BYTES - 3 and ours["tokens"] == scored > 10_000
    assert abs(ours["perplexity"] / theirs - 1) <= 1e-4
