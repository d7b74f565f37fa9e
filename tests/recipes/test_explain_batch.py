"""`lamoid explain-batch`: the batches of real runs, of data before a run, in the terminal, as JSON, as a page."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from lamoid.cli import main
from lamoid.data.packed import PackedRows
from lamoid.recipes.prepare import open_store
from lamoid.tokenizers.load import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("LAMOID_") or name == "NO_COLOR"]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, corpus, run_class):
    """Six steps of two micro-batches each; its model has a chat template."""
    run = run_class(tmp_path_factory.mktemp("pretrained"), corpus, **{"max-steps": 6, "context": 192, "accumulate": 2})
    assert run.finish() == 0, run.messages()
    (run.out / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    records = [
        {
            "messages": [
                {"role": r, "content": f"{c} {n}"} for r, c in (("user", "con mèo?"), ("assistant", "猫坐在垫子上"))
            ]
        }
        for n in range(30)
    ]
    records[7]["messages"][1]["content"] = "<script>alert('x')</script> 👋"
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, pretrained, chats, run_class):
    verb, flags = ("finetune", str(pretrained.out)), {"method": "lora", "context": 192, "rank": 2, "max-steps": 5}
    run = run_class(tmp_path_factory.mktemp("tuned"), chats, verb, **flags)
    assert run.finish() == 0, run.messages()
    return run


@pytest.fixture
def call(capsys, monkeypatch, corpus):
    monkeypatch.setenv("XDG_CACHE_HOME", str(corpus.parent / "cache"))  # where the runs keep their tokenized text

    def explain(*words):
        capsys.readouterr()
        code = main(["explain-batch", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return explain


def ids_of(found: dict) -> list[list[int]]:
    return [[token["id"] for token in row] for row in found["rows"]]


# ---- runs


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_pretraining_runs_batches(pretrained, call, step):
    """Those that the run says it took, from the tokens that it used."""
    code, out, _ = call(pretrained.out, "--step", step, "--json")
    assert code == 0
    found = json.loads(out)
    state = json.loads((pretrained.out / "checkpoints/step-6/training/state.json").read_text(encoding="utf-8"))
    settings = yaml.safe_load((pretrained.out / "recipe.yaml").read_text(encoding="utf-8"))
    tokens = open_store(state["identity"]["data"], load_tokenizer(pretrained.out)).tokens
    position = next(tuple(r["position"]) for r in pretrained.records() if r.get("step") == step and "position" in r)
    assert (found["epoch"], found["row_of_epoch"]) == position
    batch, _ = PackedRows(tokens, settings["context"], settings["batch_rows"], settings["seed"])(position)
    assert [row[:-1] for row in ids_of(found)] == batch.input_ids.tolist()
    assert [row[1:] for row in ids_of(found)] == batch.labels.tolist()
    assert found["trained"] == settings["context"] * settings["batch_rows"] and found["padding"] == 0
    assert found["documents_see_each_other"] and found["warnings"] == []


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_fine_tuning_runs_batches(tuned, chats, call, step):
    code, out, err = call(tuned.out, "--step", step, "--json")
    assert code == 0 and "warning" not in err
    found = json.loads(out)
    position = next(tuple(r["position"]) for r in tuned.records() if r.get("step") == step and "position" in r)
    assert (found["epoch"], found["row_of_epoch"]) == position
    assert found["trained"] == next(r["tokens"] for r in tuned.records() if r.get("step") == step and "tokens" in r)
    lines = chats.read_text(encoding="utf-8").splitlines()
    for document in found["documents"]:
        number = int(re.fullmatch(rf"{re.escape(str(chats))} line (\d+)", document["source"])[1])
        tokens = found["rows"][document["row"]][document["start"] : document["end"]]
        question, answer = (m["content"] for m in json.loads(lines[number - 1])["messages"])
        end = "<|end_of_text|>"
        assert "".join(t["text"] for t in tokens) == f"user: {question}{end}\nassistant: {answer}{end}\n"
        assert "".join(t["text"] for t in tokens if t["state"] == "trained").strip() == answer + end


def test_a_step_that_was_not_made(pretrained, call):
    code, _, err = call(pretrained.out, "--step", 7)
    assert (code, err) == (2, "lamoid: step is 7; the run's last one is 6\n")
    code, _, err = call(pretrained.out, "--step", 0)
    assert (code, err) == (2, "lamoid: step is 0; steps are counted from 1\n")


def test_data_that_changed_are_said(tuned, chats, call):
    before = chats.read_text(encoding="utf-8")
    try:
        chats.write_text(before.replace("con mèo? 3", "con chó? 3"), encoding="utf-8")
        code, _, err = call(tuned.out)
    finally:
        chats.write_text(before, encoding="utf-8")
    assert code == 0 and "the data have changed since the run began" in err


def test_micro_batches_are_said(pretrained, call):
    assert call(pretrained.out)[1].startswith("Step 1, micro-batch 1 of 2: 2 rows, 386 tokens: 384 trained")


@pytest.mark.parametrize(
    "recipe, expected",
    [
        (None, "is no run: it has no recipe.yaml"),
        ("seed: x", "seed is 'x'; it must be a whole number"),
        ("method: lora\nmodle: x", "modle is no setting"),
        ("- 1", "holds no settings"),
        ("context: 8\nbatch_rows: 2", "has no checkpoint yet"),
    ],
)
def test_what_is_no_run(tmp_path, call, recipe, expected):
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    code, out, err = call(tmp_path)
    assert code in (2, 3) and not out
    assert err.startswith("lamoid: ") and expected in err and err.count("\n") == 1


def test_a_cache_that_is_gone(pretrained, call, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, _, err = call(pretrained.out)
    assert code == 3 and "by the same command that began the run" in err


def test_an_encoders_run_is_refused(pretrained, call, monkeypatch, corpus, tmp_path):
    """Its rows are made in other ways from a store that says so."""
    shutil.copytree(corpus.parent / "cache", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in (tmp_path / "cache").rglob("manifest.json"):
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"layout": "sentences"}))
    code, _, err = call(pretrained.out)
    assert code == 3 and "is the run of an encoder" in err


# ---- data before a run


def test_data_before_a_run_are_what_the_run_gets(tuned, pretrained, chats, call):
    _, of_run, _ = call(tuned.out, "--json", "--step", 3)
    settings = ("--context", 192, "--batch-rows", tuned.flags["batch-rows"])
    code, before, err = call("--data", chats, "--model", pretrained.out, *settings, "--json", "--step", 3)
    assert code == 0 and json.loads(before) == json.loads(of_run)
    assert f"{chats}: messages, 30 records" in err and "held out" in err


@pytest.mark.parametrize(
    "words", [[], ["--data", "x.jsonl"], ["--model", "m"], ["runs/x", "--data", "x.jsonl", "--model", "m"]]
)
def test_wrong_calls(call, words):
    code, _, err = call(*words)
    assert code == 2 and "give a run, such as" in err


def test_a_model_that_is_none(call, chats, tmp_path):
    code, _, err = call("--data", chats, "--model", tmp_path)
    assert code == 3 and "has no tokenizer" in err


def test_warnings_are_printed(pretrained, call, tmp_path):
    template = tmp_path / "bad.jinja"
    template.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": f"q {n}", "completion": f"a {n}"}) + "\n" for n in range(5))
    )
    code, out, err = call("--data", tmp_path / "a.jsonl", "--model", pretrained.out, "--template", template)
    assert code == 0 and "⟦" in out
    assert "warning: no end-of-turn token is trained behind an answer" in err


# ---- how it is shown


def test_the_page_is_written_whole(tuned, call, tmp_path):
    file = tmp_path / "batch.html"
    code, out, err = call(tuned.out, "--html", file)
    assert code == 0 and not out and f"written to {file}" in err
    content = file.read_text(encoding="utf-8")
    assert "<script" not in content and "猫" in content and content.endswith("</html>\n")
    assert [p.name for p in tmp_path.iterdir()] == ["batch.html"]


def test_a_script_in_the_data_is_text(pretrained, chats, call, tmp_path):
    only = tmp_path / "only.jsonl"
    only.write_text("\n".join(chats.read_text(encoding="utf-8").splitlines()[7:9]), encoding="utf-8")
    file = tmp_path / "batch.html"
    for seed in range(2):  # one of the two is held out
        code, _, _ = call(
            "--data", only, "--model", pretrained.out, "--html", file, "--heldout-share", 0, "--seed", seed
        )
        content = file.read_text(encoding="utf-8")
        assert code == 0 and "<script" not in content
        text = re.sub(r"<[^>]*>", "", content)
        assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; 👋" in text


@pytest.mark.parametrize("settings, coloured", [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_colours_in_a_terminal(tuned, settings, coloured):
    """NO_COLOR as on no-color.org: any text but an empty one turns colours off."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lamoid.cli", "explain-batch", str(tuned.out)]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=os.environ | settings)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:  # the other side has gone
        pass
    assert process.wait(60) == 0
    assert (b"\x1b[1;32m" in shown) == coloured
    assert ("⟦".encode() in shown) != coloured
    os.close(ours)


def test_no_colours_in_a_pipe(tuned, call):
    code, out, _ = call(tuned.out)
    assert code == 0 and "\x1b" not in out and "⟦" in out


# ---- a real model


def test_smollm2(smollm2, capsys, tmp_path):
    """Its own template and 49,152 ids; the default system message that the template adds is shown, and not trained."""
    file = tmp_path / "chats.jsonl"
    records = [{"instruction": f"Thủ đô của nước số {n}?", "output": f"Hà Nội {n}, 河内, 하노이"} for n in range(6)]
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    code = main(["explain-batch", "--data", str(file), "--model", str(smollm2), "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert code == 0 and found["warnings"] == [] and ": Alpaca, 6 records" in said.err
    for document in found["documents"]:
        tokens = found["rows"][document["row"]][document["start"] : document["end"]]
        number = int(document["source"].rpartition(" ")[2]) - 1
        assert "".join(t["text"] for t in tokens) == (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            f"<|im_start|>user\n{records[number]['instruction']}<|im_end|>\n"
            f"<|im_start|>assistant\n{records[number]['output']}<|im_end|>\n"
        )
        trained = "".join(t["text"] for t in tokens if t["state"] == "trained")
        assert trained == records[number]["output"] + "<|im_end|>"
    assert np.isclose(found["share_trained"], found["trained"] / (found["trained"] + found["masked"]))
