"""Fine-tuning encoders through the command line: classes, tags and spans, from a real model and from a small one."""

import csv
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import transformers

import lamoid
from lamoid.cli import main

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
    texts = tmp_path / "texts.txt"
    texts.write_text("the film 很好 cuốn sách\nbộ phim terrible\n", encoding="utf-8")
    predictions = said(capsys, run.out, texts)
    assert [p["label"] for p in predictions] == ["positive", "negative"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.out)
    with torch.no_grad():
        logits = model(**tokenizer(texts.read_text(encoding="utf-8").splitlines(), padding=True, return_tensors="pt"))[
            0
        ]
    own = torch.tensor([[p["probabilities"][model.config.id2label[i]] for i in range(2)] for p in predictions])
    torch.testing.assert_close(own, logits.softmax(-1), rtol=1e-4, atol=1e-5)


def test_tags_are_learned(make_task, tmp_path, capsys):
    generator, data = random.Random(2), tmp_path / "tags.conll"
    with data.open("w", encoding="utf-8") as out:
        for _ in range(80):
            for _ in range(generator.randint(2, 6)):
                words, tag = generator.choice([(GOOD, "GOOD"), (BAD, "BAD"), (THINGS, "O")])
                out.write(f"{generator.choice(generator.choice(words).split())} {tag}\n")
            out.write("\n")
    run = make_task("run", "tokens", data)
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


def test_a_killed_task_goes_on_exactly(make_task, reviews):
    reference, run = make_task("reference", "classify", reviews), make_task("killed", "classify", reviews)
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


def test_minilm_learns_a_class(minilm, reviews, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--task", "classify", "--max-steps", "4", "--batch-rows", "4", "--context", "32"]
    assert main(["finetune", str(minilm), "--data", str(reviews), "--out", str(out), *flags]) == 0
    assert isinstance(lamoid.load(out)[0].head.labels, tuple)
