"""Fine-tuning encoders through the command line: classes, tags and spans, from a real model and from a small one."""

import csv
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

import lamoid
from lamoid.cli import main
from lamoid.data.padded import LabelledRows
from lamoid.models.heads import attach_head
from lamoid.recipes.label import Task, _evaluate
from lamoid.tokenizers.framing import Framed
from lamoid.training.encoder_objectives import class_loss, on_labels

GOOD = ["tốt", "good", "很好", "좋아요", "wonderful", "tuyệt vời"]
BAD = ["tệ", "bad", "很差", "싫어요", "terrible", "kinh khủng"]
THINGS = ["the film", "cuốn sách", "这家餐馆", "그 노래", "the soup", "bộ phim"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, run_class) -> Path:
    """A small BERT, pretrained for a moment on the words that follow."""
    generator, folder = random.Random(0), tmp_path_factory.mktemp("encoder")
    words = [word for text in (*GOOD, *BAD, *THINGS) for word in text.split()]
    corpus = folder / "text.txt"
    corpus.write_text("\n\n".join(" ".join(generator.choices(words, k=40)) for _ in range(100)), encoding="utf-8")
    flags = {"model": "bert-tiny", "vocab-size": 400, "context": 64, "max-steps": 5, "no-nsp": True}
    run = run_class(folder, corpus, **flags)
    assert run.finish() == 0, run.messages()
    return run.out


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    generator, file = random.Random(1), tmp_path / "reviews.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["review", "sentiment"])
        for number in range(120):
            label = ("negative", "positive")[number % 3 == 0]
            word = generator.choice(GOOD if label == "positive" else BAD)
            writer.writerow([f"{generator.choice(THINGS)} {word} {generator.choice(THINGS)}", label])
    return file


@pytest.fixture
def make_task(tmp_path: Path, encoder: Path, run_class):
    def make(name: str, task: str, data: Path, **flags: object):
        folder = tmp_path / name
        folder.mkdir()
        own = {"task": task, "context": 48, "max-steps": 60, "learning-rate": 0.003, "batch-rows": 8, "eval-every": 20}
        return run_class(folder, data, ("finetune", str(encoder)), **{**own, **flags})

    return make


def last(run) -> dict:
    return [record for record in run.records() if "heldout_loss" in record][-1]


def said(capsys, *words: object) -> list[dict]:
    assert main(["predict", *map(str, words), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_classes_are_learned_and_transformers_says_the_same(make_task, reviews, tmp_path, capsys):
    run = make_task("run", "classify", reviews, **{"heldout-share": 0.2, "balance": True, "max-steps": 120})
    assert run.finish() == 0, run.messages()
    assert last(run)["accuracy"] > 0.9 and last(run)["macro_f1"] > 0.9
    assert "'sentiment'" in run.messages() and "negative 80" in run.messages()
    assert re.search(r"step 120/120 · loss [\d.]+ · [\d,.]+ rows/s", run.messages()), "rows are trained, not tokens"
    texts = tmp_path / "texts.txt"
    texts.write_text("the film 很好 cuốn sách\nbộ phim terrible\n", encoding="utf-8")
    predictions = said(capsys, run.out, texts)
    assert [p["label"] for p in predictions] == ["positive", "negative"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    check_probabilities(model, run.out, texts, predictions)


def test_tags_are_learned(make_task, tmp_path, capsys):
    generator, data = random.Random(2), tmp_path / "tags.conll"
    with data.open("w", encoding="utf-8") as out:
        for _ in range(80):
            for _ in range(generator.randint(2, 6)):
                words, tag = generator.choice([(GOOD, "GOOD"), (BAD, "BAD"), (THINGS, "O")])
                out.write(f"{generator.choice(generator.choice(words).split())} {tag}\n")
            out.write("\n")
    run = make_task("run", "tokens", data, **{"max-steps": 120, "heldout-share": 0.2})
    assert run.finish() == 0, run.messages()
    assert last(run)["accuracy"] > 0.95
    texts = tmp_path / "texts.txt"
    texts.write_text("很好 terrible soup\n", encoding="utf-8")
    assert said(capsys, run.out, texts)[0]["tags"] == ["GOOD", "BAD", "O"]


def test_spans_are_learned_in_windows(make_task, tmp_path, capsys):
    generator, data = random.Random(3), tmp_path / "questions.jsonl"
    with data.open("w", encoding="utf-8") as out:
        for _ in range(150):
            answer = generator.choice(GOOD)
            before, after = (" ".join(generator.choices(THINGS, k=generator.randint(1, 8))) for _ in range(2))
            context = f"{before} {answer} {after}"
            answers = [{"text": answer, "answer_start": len(before) + 1}]
            out.write(json.dumps({"question": "good?", "context": context, "answers": answers}) + "\n")
    run = make_task("run", "span", data, **{"max-steps": 150, "context": 32})
    assert run.finish() == 0, run.messages()
    assert last(run)["f1"] > 0.8 and last(run)["exact_match"] > 0.7
    asked = tmp_path / "asked.jsonl"
    context = "the soup the film " * 3 + "좋아요" + " bộ phim the soup" * 6
    asked.write_text(json.dumps({"question": "good?", "context": context}) + "\n", encoding="utf-8")
    [answer] = said(capsys, run.out, asked)
    assert context[answer["start"] :].startswith(answer["answer"])


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_killed_task_goes_on_exactly(make_task, reviews, method):
    reference, run = (make_task(name, "classify", reviews, method=method) for name in ("reference", "killed"))
    assert reference.finish() == 0, reference.messages()
    for goal in (5, 25, 45):
        process = run.start()
        while process.exitcode is None and len(run.records()) < goal:
            time.sleep(0.0005)
        assert process.exitcode is None, run.messages()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert run.finish() == 0, run.messages()
    assert run.numbers() == reference.numbers() and run.weights() == reference.weights()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft calls transformers so
@pytest.mark.parametrize("method", ["lora", "qlora", "houlsby"])
def test_what_every_method_leaves_is_used_and_merged(make_task, encoder, reviews, tmp_path, capsys, method):
    run = make_task("run", "classify", reviews, **{"method": method, "max-steps": 20})
    assert run.finish() == 0, run.messages()
    assert "are trained" in run.messages() and not (run.out / "model.safetensors").exists()
    texts, merged = tmp_path / "texts.txt", tmp_path / "merged"
    texts.write_text("the film 很好 cuốn sách\nbộ phim terrible\n", encoding="utf-8")
    predictions = said(capsys, run.out, texts)
    if method == "lora":
        base = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
        check_probabilities(PeftModel.from_pretrained(base, run.out), run.out, texts, predictions)
    assert main(["merge", str(run.out), "--out", str(merged)]) == (2 if method == "houlsby" else 0)
    if method == "houlsby":
        assert "cannot be merged" in capsys.readouterr().err
        return
    assert "mean KL divergence" in capsys.readouterr().out
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(merged)
    assert whole.config.id2label == {0: "negative", 1: "positive"}
    check_probabilities(whole, merged, texts, predictions)
    assert [p["label"] for p in said(capsys, merged, texts)] == [p["label"] for p in predictions]
    drift = json.loads((merged / "certificate.json").read_text(encoding="utf-8"))["drift"]
    assert drift["mean_kl_nats"] < 1e-6 and drift["same_most_likely"] == 1
    assert main(["merge", str(run.out), "--out", str(merged)]) == 2
    assert main(["merge", str(run.out), "--out", str(tmp_path / "m"), "--quantize", "q8_0"]) == 2
    assert "holds Llamas alone" in capsys.readouterr().err
    again = make_task("again", "classify", reviews)
    again.verb = ("finetune", str(run.out))
    assert again.finish() == 3 and "lamoid merge" in again.messages().splitlines()[-1]


def check_probabilities(model, directory: Path, texts: Path, predictions: list[dict]) -> None:
    """Those of transformers' model (labels in the order negative, positive) are ours."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    encoded = tokenizer(texts.read_text(encoding="utf-8").splitlines(), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**encoded).logits.softmax(-1)
    own = torch.tensor([[p["probabilities"][label] for label in ("negative", "positive")] for p in predictions])
    torch.testing.assert_close(own, found, rtol=1e-4, atol=1e-5)


def test_an_evaluation_runs_the_encoder_once(encoder):
    """Loss and figures come from the same logits, here one batch of three rows."""
    model = attach_head(lamoid.load(encoder)[0], "token", 0, ("a", "b"))
    rows = [np.array(row) for row in ([2, 7, 3], [2, 3], [2, 8, 9, 3])]
    framed = [Framed(row, row * 0, row * 0, np.zeros((len(row), 2), int)) for row in rows]
    table = LabelledRows(framed, [[i % 2 for i in range(len(row))] for row in rows], 3, 0, 0)
    task = Task(table, table, ("a", "b"), class_loss, lambda logits: {"rows": len(logits[0])})
    runs = []
    model.encoder.register_forward_hook(lambda *_: runs.append(1))
    result = _evaluate(model, task)(lambda: False)
    assert runs == [1] and result.figures == {"rows": 3}
    loss, n = on_labels(class_loss)(model.eval(), next(iter(table.in_order())))
    assert result.loss == pytest.approx(float(loss.detach()) / n)


@pytest.mark.parametrize(
    "task, flags, code, words",
    [
        ("classify", {"label-column": "nothing"}, 3, "nothing"),
        ("classify", {"heldout-share": 0}, 2, "held-out share"),
        ("span", {}, 3, "reviews.csv"),
        ("tokens", {}, 3, "reviews.csv"),
        ("classify", {"context": 4000}, 2, "context"),
    ],
)
def test_wrong_calls_are_one_line(make_task, reviews, task, flags, code, words):
    run = make_task("run", task, reviews, **flags)
    assert run.finish() == code
    assert words in run.messages().splitlines()[-1]


def test_a_decoder_learns_no_classes(make_task, reviews, make_run, tmp_path):
    llama = make_run("llama", **{"max-steps": 2})
    assert llama.finish() == 0
    run = make_task("run", "classify", reviews)
    run.verb = ("finetune", str(llama.out))
    assert run.finish() == 2
    assert "encoder" in run.messages().splitlines()[-1]


def test_a_model_without_a_head_predicts_nothing(encoder, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("很好\n", encoding="utf-8")
    assert main(["predict", str(encoder), str(texts)]) == 2
    assert "lamoid finetune --task" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "houlsby"])
def test_minilm_learns_a_class(minilm, reviews, tmp_path, method):
    out = tmp_path / "run"
    flags = [
        "--task",
        "classify",
        "--max-steps",
        "10",
        "--batch-rows",
        "4",
        "--context",
        "32",
        "--learning-rate",
        "2e-3",
    ]
    flags += ["--method", method, "--heldout-share", "0.2", "--eval-every", "2", "--threads", "1"]
    assert main(["finetune", str(minilm), "--data", str(reviews), "--out", str(out), *flags]) == 0
    assert lamoid.load(out)[0].head.labels == ("negative", "positive")
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [record["heldout_loss"] for record in records if "heldout_loss" in record]
    assert min(losses) < 0.95 * losses[0], losses
