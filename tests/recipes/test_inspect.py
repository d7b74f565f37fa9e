"""`lamoid inspect`: SmolLM2, MiniLM and a model of one's own on a page; the table of costs; wrong calls."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lamoid.checkpoints.hf import write_model
from lamoid.cli import main
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.tokenizers.bpe import train_bpe

TEXT = "Thủ đô của Việt Nam là Hà Nội, 中国的首都是北京, <script>한국</script>"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """What a quickstart leaves: a small Llama with a byte-level tokenizer trained on the text."""
    tokenizer, directory = train_bpe([TEXT] * 3, 300), tmp_path / "mine"
    directory.mkdir()
    shape = LlamaConfig(tokenizer.vocab_size, 24, 2, 4, 2, 6, 31, 64, tied_embeddings=True)
    write_model(directory, Llama(shape).initialise(0), tokenizer)
    return directory


def facts_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["inspect", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_smollm2_on_a_page(smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    facts = facts_of(capsys, "smollm2", TEXT, "--out", str(page))
    ids = [token["id"] for token in facts["tokens"]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    assert ids == tokenizer(TEXT, split_special_tokens=True)["input_ids"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.no_grad():
        out = theirs(torch.tensor([ids]), output_hidden_states=True)
        lens = theirs.lm_head(theirs.model.norm(torch.cat(out.hidden_states[:-1]))).softmax(-1)
    best = out.logits[0, -1].softmax(-1).topk(15)
    assert [g["id"] for g in facts["next"]] == best.indices.tolist()
    assert [g["probability"] for g in facts["next"]] == pytest.approx(best.values.tolist(), rel=1e-3)
    found = torch.tensor([[g["probability"] for g in row] for row in facts["logit_lens"]])
    torch.testing.assert_close(found[:-1], lens.amax(-1), rtol=1e-3, atol=1e-4)
    html = page.read_text(encoding="utf-8")
    assert html.count('class="map') == 30 * 9 and "<script" not in html and len(html) < 2e6
    assert {"What comes next", "Attention", "Logit lens"} <= set(facts["figures"]["This text in this model"])


def test_a_gguf_file(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(capsys, str(next(smollm2.glob("*.gguf"))), "The capital of France is")
    assert facts["next"][0]["text"] == "␣Paris" and facts["n_kv_heads"] == 3
    assert [token["text"] for token in facts["tokens"]] == ["The", "␣capital", "␣of", "␣France", "␣is"]


def test_minilm_on_a_page(minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    facts = facts_of(capsys, "minilm", TEXT, "--out", str(page))
    assert facts["tokens"][0]["text"] == "[CLS]" and "next" not in facts and "logit_lens" not in facts
    theirs = transformers.BertModel.from_pretrained(minilm)
    with torch.no_grad():
        out = theirs(torch.tensor([[t["id"] for t in facts["tokens"]]]), output_hidden_states=True)
    expected = torch.cat(out.hidden_states).norm(dim=-1)
    torch.testing.assert_close(torch.tensor(facts["residual_lengths"]), expected, rtol=1e-4, atol=1e-3)
    assert page.read_text(encoding="utf-8").count('class="map') == 6 * 12


def test_ones_own_model(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", str(own), "Việt Nam", "--out", str(page), "--threads", "1"]) == 0
    assert capsys.readouterr().err == f"written to {page}\n"
    assert "Inside mine" in page.read_text(encoding="utf-8")


def test_costs_without_weights(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {(r["section"], r["name"]): r["value"] for r in facts_of(capsys, str(own), "--cost", "--tokens", "50")}
    n_parameters = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(own).parameters())
    (own / "model.safetensors").unlink()
    assert rows["parameters", "all"] == n_parameters
    assert rows["KV cache", "50 tokens"] == 2 * 2 * 2 * 6 * 4 * 50
    assert main(["inspect", str(own), "--cost"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["all", f"{n_parameters:,}", "parameters"] and "operations of 1 x 64 tokens" in lines


def test_costs_of_a_gguf_file(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = facts_of(capsys, str(next(smollm2.glob("*.gguf"))), "--cost")
    assert rows[0] == {"section": "parameters", "name": "all", "value": 134_515_008, "unit": "parameters"}


WRONG = [
    (["OWN", "--out", "OUT"], 2, "a model, a text and --out are needed"),
    (["OWN", "Nam"], 2, "a model, a text and --out are needed"),
    (["OWN", "N" * 65, "--out", "OUT"], 2, "a page shows at most 64 of this model: shorten the text"),
    (["nowhere", "Nam", "--out", "OUT"], 3, "nowhere is no model"),
    (["OWN", "Nam", "--out", "/dev/null/page.html"], 4, "/dev/null/page.html cannot be written: Not a directory"),
    (["--cost"], 2, "a model is needed"),
    (["OWN", "--cost", "--tokens", "65"], 2, "tokens is 65; this model takes 1 to 64"),
    (["OWN", "--cost", "--tokens", "0"], 2, "tokens is 0; this model takes 1 to 64"),
    (["TRANSLATOR", "Nam", "--out", "OUT"], 2, "translator is a Transformer; inspect takes a decoder or an encoder"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG, ids=str)
def test_wrong_calls(
    arguments: list[str], code: int, message: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    translator, out = tmp_path / "translator", tmp_path / "page.html"
    tokenizer = train_bpe([TEXT] * 3, 300)
    translator.mkdir()
    write_model(translator, Transformer(TransformerConfig(tokenizer.vocab_size, 24, 1, 4, 31)).initialise(0), tokenizer)
    places = {"OWN": str(own), "OUT": str(out), "TRANSLATOR": str(translator)}
    assert main(["inspect", *(places.get(a, a) for a in arguments)]) == code
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not out.exists()
