"""`lamoid plan`: what it says of a run is what the run then is; it trains nothing and writes nothing into --out."""

import json
from pathlib import Path

import pytest
import yaml
from tests.recipes.conftest import WORDS

from lamoid.checkpoints.hf import write_model
from lamoid.cli import main
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.recipes import forecast
from lamoid.tokenizers.bpe import train_bpe

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "model"
    folder.mkdir()
    tokenizer = train_bpe([" ".join(WORDS)] * 3, 300)
    tokenizer.chat_template = TEMPLATE
    write_model(folder, Llama(LlamaConfig(tokenizer.vocab_size, 32, 2, 4, 2, 8, 48, 128)).initialise(0), tokenizer)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    turns = [
        [{"role": "user", "content": f"con mèo {n}?"}, {"role": "assistant", "content": "猫坐"}] for n in range(30)
    ]
    file.write_text("".join(json.dumps({"messages": t}, ensure_ascii=False) + "\n" for t in turns), encoding="utf-8")
    return file


def planned(capsys, *words: str) -> dict:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "houlsby"])
def test_it_is_of_the_run_that_then_starts(capsys, tmp_path, model, chats, method):
    out = tmp_path / "run"
    words = ["finetune", str(model), "--data", str(chats), "--method", method, "--out", str(out), "--rank", "2"]
    words += ["--context", "64", "--batch-rows", "3", "--epochs", "2", "--accumulate", "2"]
    found = planned(capsys, *words)
    assert not out.exists()
    assert found["fits"] and found["seconds"] == pytest.approx(found["steps"] * found["step_seconds"])
    assert main(words) == 0
    said = capsys.readouterr().err
    assert f"{found['trainable']:,} of " in said
    settings = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
    assert settings["max_steps"] == found["steps"] and settings["method"] == method
    assert "memory: predicted" in said and "time in steps: predicted" in said
    assert found["disk_bytes"] == pytest.approx(2 * found["trainable"] * 12, rel=0.6)


def test_pretraining_and_gqa_are_planned_too(capsys, tmp_path, model):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{n} " + " ".join(WORDS[n % 7 :] + WORDS) for n in range(300)), encoding="utf-8")
    sizes = ["--data", str(text), "--context", "32", "--batch-rows", "2", "--max-steps", "7"]
    found = planned(capsys, "pretrain", *sizes, "--vocab-size", "300")
    assert found["steps"] == 7 and found["tokens"] == 7 * 64 and found["trainable"] == found["parameters"]
    assert [change["setting"] for change in found["changes"]] == [
        "--batch-rows 1 --accumulate 2",
        "--gradient-checkpointing",
    ]
    converted = planned(capsys, "gqa", str(model), "--kv-heads", "1", *sizes)
    whole = sum(p.numel() for p in Llama(LlamaConfig(300, 32, 2, 4, 2, 8, 48, 128)).parameters())
    assert converted["parameters"] < whole


def test_what_does_not_fit_is_said_and_not_tried(capsys, monkeypatch, model, chats):
    monkeypatch.setattr(forecast, "machine_memory", lambda: 2**20)
    monkeypatch.setattr(forecast, "measure_step", lambda training: pytest.fail("it was tried"))
    assert main(["plan", "finetune", str(model), "--data", str(chats), "--method", "full"]) == 0
    lines = capsys.readouterr().out
    assert "does not fit" in lines
    for setting in ("--batch-rows 2 --accumulate 2", "--gradient-checkpointing", "--method lora", "--method qlora"):
        assert f"with {setting}:" in lines


def test_the_checkpointed_and_the_smaller_run_take_less(capsys, model, chats):
    words = ("finetune", str(model), "--data", str(chats), "--method", "lora", "--no-calibrate", "--context", "64")
    found = planned(capsys, *words)
    by_setting = {change["setting"]: change["memory"] for change in found["changes"]}
    for flags in by_setting:
        if (
            "qlora" not in flags
        ):  # whose matrices, made anew for each product, leave more holes than a tiny model weighs
            assert by_setting[flags] <= found["memory"]["total"]
        if not flags.startswith("--method"):
            assert planned(capsys, *words, *flags.split())["memory"]["total"] == pytest.approx(
                by_setting[flags], rel=0.01
            )


def test_wrong_calls(capsys, model):
    for words, said in (
        ([], "cannot be planned"),
        (["chat"], "'chat' cannot be planned"),
        (["finetune", str(model)], "wanted: lamoid plan finetune"),
        (["finetune", str(model), "--metod", "lora"], "did you mean --method"),
    ):
        assert main(["plan", *words]) == 2
        assert said in capsys.readouterr().err
