"""Fine-tuning through the command line: every method, killed and resumed, read back, and its faults."""

import io
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

import lamoid
from lamoid.cli import main

METHODS = ("full", "lora", "qlora", "houlsby")
TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTIONS = ["the cat?", "con mèo?", "猫?", "고양이?", "on a mat?", "một con?"]
ANSWERS = ["sat on a mat", "saw the cat", "猫坐在垫子上", "매트에 앉았다", "một con mèo"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, corpus: Path, run_class) -> Path:
    """A small Llama trained by a run, with a chat template."""
    run = run_class(tmp_path_factory.mktemp("base"), corpus, **{"max-steps": 10, "context": 192})
    assert run.finish() == 0, run.messages()
    (run.out / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return run.out


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(0)
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for number in range(40):
            turns = [
                {"role": role, "content": f"{generator.choice(texts)} {number}"}
                for _ in range(generator.randint(1, 2))
                for role, texts in (("user", QUESTIONS), ("assistant", ANSWERS))
            ]
            out.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    return file


@pytest.fixture
def make_tuning(tmp_path: Path, base: Path, chats: Path, run_class):
    def make(name: str, method: str, **flags: object):
        folder = tmp_path / name
        folder.mkdir()
        own = {"method": method, "context": 192, "rank": 3, "bottleneck": 5, "dropout": 0.1, "max-steps": 24}
        return run_class(folder, chats, ("finetune", str(base)), **{**own, **flags})

    return make


@pytest.mark.parametrize("method", METHODS)
def test_killed_five_times_is_bit_identical(make_tuning, method):
    reference, run = make_tuning("reference", method), make_tuning("killed", method)
    assert reference.finish() == 0, reference.messages()
    generator, kills = random.Random(2), 0
    while kills < 5:
        process, goal = run.start(), len(run.records()) + generator.randint(1, 4)
        while process.exitcode is None and len(run.records()) < goal:
            time.sleep(0.0005)
        time.sleep(generator.random() * 0.02)
        assert process.exitcode is None, f"the run ended after {kills} kills: {run.messages()[-500:]}"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        if run.records() and max(r["step"] for r in run.records()) > 18:
            shutil.rmtree(run.out)
    assert run.finish() == 0, run.messages()
    assert run.numbers() == reference.numbers()
    assert run.weights() == reference.weights()


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_only_what_is_trained_is_written(make_tuning, method, base):
    run = make_tuning("run", method, **{"learning-rate": 0.01, "max-steps": 40})
    assert run.finish() == 0, run.messages()
    heldout = [record["heldout_loss"] for record in run.records() if "heldout_loss" in record]
    assert min(heldout) < 0.9 * heldout[0]
    assert (run.out / "model.safetensors").is_file() == (method == "full")
    assert (run.out / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE
    assert "messages" in run.messages() and "are trained" in run.messages()
    model, tokenizer = lamoid.load(run.out)
    assert tokenizer is not None
    before, _ = lamoid.load(base)
    ids = torch.tensor([tokenizer.encode("con mèo? 猫坐在垫子上")])
    assert not torch.allclose(model(ids), before(ids))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft calls transformers so
@pytest.mark.parametrize("method", ["lora", "full"])
def test_transformers_and_peft_see_the_same_model(make_tuning, method, base):
    run = make_tuning("run", method)
    assert run.finish() == 0, run.messages()
    model, tokenizer = lamoid.load(run.out)
    assert tokenizer is not None
    if method == "full":
        theirs = transformers.AutoModelForCausalLM.from_pretrained(run.out)
    else:
        theirs = PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), run.out)
    ids = torch.tensor([tokenizer.encode("user: con mèo? 고양이가 앉았다")])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_chat_goes_on_with_what_was_taught(make_tuning, capsys, monkeypatch):
    run = make_tuning("run", "lora")
    assert run.finish() == 0, run.messages()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat", str(run.out)]) == 0
    assert main(["generate", str(run.out), "con mèo", "--max-new-tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] is not None


def test_going_on_with_another_rank_or_other_data_is_refused(make_tuning, chats, tmp_path):
    run = make_tuning("run", "lora", **{"max-steps": 6})
    assert run.finish() == 0
    assert run.finish(rank=4) == 2
    assert "rank" in run.messages().splitlines()[-1]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(chats.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
    assert run.finish(data=other) == 2
    assert "data" in run.messages().splitlines()[-1]


def test_going_on_with_another_base_is_refused(make_tuning, base, tmp_path):
    own = tmp_path / "base"
    shutil.copytree(base, own)
    run = make_tuning("run", "lora", **{"max-steps": 6})
    run.verb = ("finetune", str(own))
    assert run.finish() == 0, run.messages()
    weights = load_file(own / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, own / "model.safetensors", {"format": "pt"})
    assert run.finish() == 3
    assert "another model" in run.messages().splitlines()[-1]


def test_the_model_itself_is_not_written_over(make_tuning, base):
    before = (base / "model.safetensors").read_bytes()
    run = make_tuning("run", "full", out=base)
    assert run.finish() == 2
    assert "choose another directory" in run.messages().splitlines()[-1]
    assert (base / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "flags, code, words",
    [
        ({"targets": "qq_proj"}, 2, "q_proj"),
        ({"rank": 0}, 2, "rank is 0"),
        ({"dropout": 1.5}, 2, "dropout is 1.5"),
        ({"bottleneck": 0, "method": "houlsby"}, 2, "bottleneck is 0"),
        ({"context": 100_000}, 2, "context is 100000"),
        ({"method": "magic"}, 2, "full, lora, qlora, houlsby"),
        ({"heldout-share": 2}, 2, "held-out share is 2"),
    ],
)
def test_wrong_calls_are_one_line(make_tuning, flags, code, words):
    run = make_tuning("run", flags.pop("method", "lora"), **flags)
    assert run.finish() == code
    assert words in run.messages().splitlines()[-1]


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"messages": [{"role": "user", "content": "?"}]}', "no assistant turn"),
        ('{"messages": [{"role": "wizard", "content": "?"}]}', "wizard"),
        ('{"what": 1}', "expected"),
        ('{"messages": ', "line 3"),
    ],
)
def test_bad_data_names_its_line_and_can_be_skipped(make_tuning, chats, tmp_path, line, words):
    lines = chats.read_text(encoding="utf-8").splitlines()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n", encoding="utf-8")
    run = make_tuning("run", "lora", data=bad, **{"max-steps": 2})
    assert run.finish() == 3
    last = run.messages().splitlines()[-1]
    assert "line 3" in last and words in last
    assert run.finish(**{"skip-bad": True}) == 0
    assert "1 bad line" in run.messages()
