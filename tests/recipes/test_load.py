"""`lamoid.load` and the verbs on models of the lineage, through the command line."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import lamoid
from lamoid.checkpoints.hf import write_model
from lamoid.cli import main
from lamoid.models.bert import Bert, BertConfig
from lamoid.models.gpt2 import GPT2, GPT2Config
from lamoid.models.roberta import Roberta, RobertaConfig
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.models.variant import Variant, VariantConfig
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.tokenizer import Tokenizer

TEXT = "Con mèo ngồi trên tấm thảm. 猫坐在垫子上。고양이가 매트에 앉아 있다. The cat sits on the mat. "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT] * 5, 400)


def directory(path: Path, model: torch.nn.Module, tokenizer: Tokenizer) -> Path:
    path.mkdir()
    write_model(path, model.initialise(0), tokenizer)  # type: ignore[operator]
    return path


MODELS = {
    "gpt2": GPT2(GPT2Config(400, 30, 2, 5, 60, 64)),
    "variant": Variant(VariantConfig(400, 30, 2, 5, 1, 6, 60, 64, positions="alibi", norm="layernorm")),
    "bert": Bert(BertConfig(400, 30, 2, 5, 60)),
    "roberta": Roberta(RobertaConfig(400, 30, 2, 5, 60)),
    "transformer": Transformer(TransformerConfig(400, 30, 2, 5, 60)),
}


@pytest.mark.parametrize("name", MODELS)
def test_load_opens_every_model(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = directory(tmp_path / name, MODELS[name], tokenizer)
    model, found = lamoid.load(path)
    assert type(model) is type(MODELS[name]) and found is not None and found.vocab_size == tokenizer.vocab_size
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), MODELS[name].parameters(), strict=True))


@pytest.mark.parametrize("name", ["gpt2", "variant"])
def test_decoders_write_and_are_measured(
    name: str, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(directory(tmp_path / name, MODELS[name], tokenizer))
    assert main(["generate", path, "猫坐在 ", "--json", "--temperature", "0", "--max-new-tokens", "12"]) == 0
    written = json.loads(capsys.readouterr().out)
    model = MODELS[name].eval()
    ids = tokenizer.encode("猫坐在 ")
    with torch.no_grad():
        for found in written["ids"]:
            logits = model(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size]  # the others are never chosen
            assert found == int(logits.argmax())
            ids.append(found)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    assert main(["eval", path, "--text", str(tmp_path / "text.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(5.99, abs=0.3)  # ln 400: it knows nothing
    done = lamoid.generate(model, tokenizer, ["a", "The cat"], max_new_tokens=3)
    assert [len(d.ids) <= 3 for d in done] == [True, True]


def test_what_transformers_writes_with_gpt_2s_directory(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory(tmp_path / "gpt2", MODELS["gpt2"], tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    reader = transformers.AutoTokenizer.from_pretrained(path)
    inputs = reader("Con mèo", return_tensors="pt")
    settings = dict(do_sample=False, max_new_tokens=10, min_new_tokens=10, pad_token_id=0, eos_token_id=None)
    expected = theirs.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **settings)[0]
    assert main(["generate", str(path), "Con mèo", "--json", "--temperature", "0", "--max-new-tokens", "10"]) == 0
    found = json.loads(capsys.readouterr().out)["ids"]
    assert found == expected[inputs["input_ids"].shape[1] :].tolist()[: len(found)] and len(found) > 0


@pytest.mark.parametrize(
    ("verb", "name", "code", "message"),
    [
        (["generate", "MODEL", "x"], "bert", 2, "is a Bert, which writes no text"),
        (["eval", "MODEL", "--text", "TEXT"], "transformer", 2, "is a Transformer, which writes no text"),
        (["convert", "MODEL", "OUT.gguf"], "gpt2", 3, "holds no Llama"),
        (["convert", "MODEL", "OUT"], "roberta", 3, "holds no Llama"),
        (["embed", "MODEL", "TEXT", "--json"], "gpt2", 2, "is a GPT2; vectors come from encoders"),
    ],
)
def test_verbs_say_what_they_take(
    verb: list[str], name: str, code: int, message: str, tokenizer: Tokenizer, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = directory(tmp_path / name, MODELS[name], tokenizer)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    names = {"MODEL": str(path), "TEXT": str(tmp_path / "text.txt")}
    arguments = [names.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in verb]
    assert main(arguments) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and not list(tmp_path.glob("out*"))
