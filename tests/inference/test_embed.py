"""MiniLM's hidden states and sentence embeddings against transformers, in many scripts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lamoid.cli import main
from lamoid.errors import DataError
from lamoid.inference.embed import Pooling, embed, read_pooling
from lamoid.models.heads import PooledEncoder
from lamoid.recipes.load import load
from lamoid.tokenizers.tokenizer import Tokenizer

TEXTS = [
    "The cat sits on the mat.",
    "Con mèo ngồi trên tấm thảm.",
    "猫坐在垫子上。",
    "고양이가 매트에 앉아 있다.",
    "Кошка сидит на коврике.",
    "القط يجلس على السجادة.",
    "बिल्ली चटाई पर बैठी है।",
    "Ένα μακρύ κείμενο " * 40,
    "A long text that has to be cut somewhere. " * 60,
    "naïve café, e\u0301 and é 🐈‍⬛ ½",
    "",
    "   \t ",
    "a",
]


@pytest.fixture(scope="module")
def ours(minilm: Path) -> tuple[PooledEncoder, Tokenizer]:
    model, tokenizer = load(minilm)
    assert isinstance(model, PooledEncoder) and tokenizer is not None
    return model, tokenizer


@pytest.fixture(scope="module")
def theirs(minilm: Path) -> tuple[Any, Any]:
    model = transformers.BertModel.from_pretrained(minilm, attn_implementation="eager").eval()
    return model, transformers.AutoTokenizer.from_pretrained(minilm)


@pytest.fixture(scope="module")
@torch.no_grad()
def reference(theirs: tuple[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and mask of all texts at once, cut at 256 tokens, as sentence-transformers is told to."""
    model, tokenizer = theirs
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    return model(**inputs).last_hidden_state, inputs["attention_mask"]


@torch.no_grad()
def test_hidden_states_equal_transformers(ours: Any, reference: Any) -> None:
    expected, mask = reference
    model, tokenizer = ours
    for row, text in enumerate(TEXTS[:7]):
        ids = tokenizer.encode(text)
        found = model(torch.tensor([ids]))[0]
        wanted = expected[row][mask[row].bool()]
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() / wanted.abs().max() < 1e-4


@torch.no_grad()
def test_the_pooler_is_kept(ours: Any, theirs: Any) -> None:
    ids = torch.tensor([ours[1].encode(TEXTS[0])])
    torch.testing.assert_close(ours[0].pooler(ours[0](ids)), theirs[0](ids).pooler_output, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_sentence_embeddings_equal_transformers(ours: Any, reference: Any, minilm: Path) -> None:
    hidden, mask = reference
    weights = mask[..., None].float()
    means = (hidden * weights).sum(1) / weights.sum(1)
    pooling = read_pooling(minilm)
    assert pooling == Pooling("mean", True, 256)
    for pooled, settings in (
        (torch.nn.functional.normalize(means, dim=-1), pooling),
        (means, Pooling("mean", False, 256)),
        (hidden[:, 0], Pooling("first", False, 256)),
    ):
        found = torch.from_numpy(embed(ours[0].encoder, ours[1], TEXTS, settings))
        assert found.shape == (len(TEXTS), 384)
        assert (found - pooled).abs().max() / pooled.abs().max() < 1e-4


def test_like_meanings_lie_close(ours: Any, minilm: Path) -> None:
    texts = ["A cat is sitting on a rug.", "The kitten rests on the carpet.", "Interest rates rose in March."]
    a, b, c = embed(ours[0].encoder, ours[1], texts, read_pooling(minilm))
    assert a @ b > 0.5 > a @ c + 0.2


def test_the_verb_writes_a_row_for_each_line(
    ours: Any, minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["một", "", "둘", "\u2028 three"]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ["embed", "minilm", str(tmp_path / "texts.txt")]
    assert main([*arguments, "--out", str(tmp_path / "v.npy"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"texts": 4, "width": 384, "pooling": "mean", "normalised": True, "out": str(tmp_path / "v.npy")}
    vectors = np.load(tmp_path / "v.npy")
    expected = embed(ours[0].encoder, ours[1], lines, read_pooling(minilm))
    np.testing.assert_array_equal(vectors, expected)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert main([*arguments, "--json"]) == 0
    np.testing.assert_allclose(json.loads(capsys.readouterr().out)["vectors"], vectors, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["minilm"], 2, "a model, a file and --out are needed"),
        (["minilm", "texts.txt"], 2, "a model, a file and --out are needed"),
        (["minilm", "missing.txt", "--json"], 3, "missing.txt cannot be read"),
        (["minilm", "empty.txt", "--json"], 3, "empty.txt is empty"),
        (["minilm", "latin.txt", "--json"], 3, "latin.txt cannot be read as UTF-8"),
        (["nothing", "texts.txt", "--json"], 3, "nothing is no model"),
    ],
)
def test_wrong_calls_of_embed(
    arguments: list[str], code: int, message: str, minilm: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("x\n")
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes("é".encode("latin-1"))
    assert main(["embed", *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["generate", "minilm", "x"], ["eval", "minilm", "--text", "texts.txt"]])
def test_an_encoder_writes_no_text(
    verb: list[str], minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("x y z\n")
    assert main(verb) == 2
    assert "minilm is a PooledEncoder, which writes no text" in capsys.readouterr().err


def test_pooling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == Pooling("mean", False, None)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(DataError, match="pooling_mode_max_tokens; known are"):
        read_pooling(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "modules.json").write_text("7")
    with pytest.raises(DataError, match="is no list of modules"):
        read_pooling(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    assert read_pooling(tmp_path) == Pooling("first", False, None)
