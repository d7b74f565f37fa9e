"""Encoders beside what one would do without them (python -m benchmarks.encoders [PROOF …] --out docs/proofs).

classify   MiniLM learns the mood of film reviews; TF-IDF with logistic regression (scikit-learn) learns from the same texts
span       MiniLM answers questions about Python's documentation, held out by file; beside it, two guesses
bert       a bert-small from Python's documentation, with next sentences and without
roberta    a roberta-small from a fifth of that text, with dynamic and with static masking: where a text is read once, there is no
           difference between them
"""

import argparse
import csv
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.film_reviews import read_reviews
from benchmarks.pairs import write_proof
from benchmarks.python_questions import first_sentence, most_like, questions
from lamoid import load, load_tokenizer, models_path
from lamoid.cli import main as lamoid
from lamoid.data.masked import make_masking
from lamoid.data.sentences import NextSentencePairs, open_sentences
from lamoid.data.sources import find_sources
from lamoid.data.spans import read_questions
from lamoid.nn.losses import IGNORED
from lamoid.recipes.predictions import answers, classes
from lamoid.recipes.prepare import HELDOUT_FOLDER, prepare, store_path
from lamoid.training.scores import accuracy, answer_f1, exact_match, macro_f1

SEEDS = (0, 1, 2)
TRAINED, TESTED = 3000, 1500
PRETRAINING = ["--data", "python-docs", "--batch-rows", "16", "--context", "64"]
BERT = [*PRETRAINING, "--model", "bert-small", "--max-steps", "4000", "--learning-rate", "2e-4"]
MORE = [*PRETRAINING, "--max-steps", "3000", "--learning-rate", "2e-4"]
TEXT = {"vocab_size": 2048, "heldout_share": 0.05, "seed": 0, "kind": "wordpiece"}
DRAWS = 8
ROBERTA = [*PRETRAINING, "--model", "roberta-small", "--max-steps", "800", "--heldout-share", "0.8"]


def main() -> None:
    proofs = {"classify": classify, "span": span, "bert": bert, "roberta": roberta}
    parser = argparse.ArgumentParser(description="encoders, measured")
    parser.add_argument("proofs", nargs="*", default=[], help=f"some of {', '.join(proofs)} (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-steps", type=int, help="of each training, for a trial")
    parser.add_argument("--work", type=Path, help="keep the runs here, and go on with those that are there")
    parser.add_argument("--out", type=Path, help="also write the result as JSON into this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.proofs or proofs:
            work = (arguments.work or Path(temporary)) / name
            work.mkdir(parents=True, exist_ok=True)
            flags = ["--threads", str(arguments.threads), "--sample-every", "0"]
            flags += ["--max-steps", str(arguments.max_steps)] if arguments.max_steps else []
            result = proofs[name](work, flags)
            print(json.dumps(result, indent=2), flush=True)
            write_proof(f"encoders-{name}", result, arguments.out)


def classify(work: Path, flags: list[str]) -> dict[str, Any]:
    """Other texts to learn from and to be tested on with each seed, the same ones for both."""
    reviews, rows = read_reviews(work), []
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(reviews))
        train, test = ([reviews[i] for i in part] for part in (order[:TRAINED], order[-TESTED:]))
        true = np.array([label == "positive" for _, label in test])
        found = {"TF-IDF and logistic regression": bag_of_words(train, [text for text, _ in test])}
        data, out, texts = work / f"train-{seed}.csv", work / f"run-{seed}", work / f"test-{seed}.txt"
        with data.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *train])
        texts.write_text("".join(f"{text}\n" for text, _ in test), encoding="utf-8")
        settings = ["--task", "classify", "--data", str(data), "--out", str(out), "--seed", str(seed), "--epochs", "2"]
        assert lamoid(["finetune", str(models_path("minilm")), *settings, "--learning-rate", "1e-4", *flags]) == 0
        model, tokenizer = load(out)
        found["MiniLM"] = np.array([said["label"] == "positive" for said in classes(model, tokenizer, texts)])
        scores = {
            name: {"accuracy": accuracy(said, true), "macro F1": macro_f1(said, true)} for name, said in found.items()
        }
        rows.append(scores | {"the more frequent label": {"accuracy": float(max(true.mean(), 1 - true.mean()))}})
        print(seed, rows[-1], flush=True)
    means = {name: float(np.mean([row[name]["accuracy"] for row in rows])) for name in rows[0]}
    return {"mean accuracy": means, "seeds": rows, "learned from": TRAINED, "tested on": TESTED, "texts": len(reviews)}


def bag_of_words(train: list[tuple[str, str]], test: list[str]) -> np.ndarray:
    """Words and pairs of words, weighed; the strength of regularisation by cross-validation on the training texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    steps = make_pipeline(words, LogisticRegression(max_iter=1000))
    search = GridSearchCV(steps, {"logisticregression__C": [0.3, 1, 3, 10, 30]}, cv=5)
    search.fit([text for text, _ in train], [label == "positive" for _, label in train])
    return search.predict(test)


def span(work: Path, flags: list[str]) -> dict[str, Any]:
    """Questions by rule; every fifth file of the standard library is held out, with all of its questions."""
    training, heldout = questions()
    files = {"train": work / "train.jsonl", "test": work / "test.jsonl"}
    for file, part in zip(files.values(), (training, heldout), strict=True):
        file.write_text("".join(json.dumps(question) + "\n" for question in part), encoding="utf-8")
    settings = ["--task", "span", "--data", str(files["train"]), "--out", str(work / "run"), "--context", "192"]
    settings += ["--epochs", "3", "--learning-rate", "3e-4"]
    assert lamoid(["finetune", str(models_path("minilm")), *settings, *flags]) == 0
    model, tokenizer = load(work / "run")
    asked = read_questions([str(files["test"])]).questions
    said = {
        "MiniLM": [answer["answer"] for answer in answers(model, tokenizer, files["test"])],
        "the sentence most like the question": [most_like(q.question, q.context) for q in asked],
        "the first sentence": [first_sentence(q.context) for q in asked],
    }
    true = [[text for text, _ in question.answers] for question in asked]
    scores = {
        name: {
            "exact match": float(np.mean([exact_match(a, b) for a, b in zip(found, true, strict=True)])),
            "F1": float(np.mean([answer_f1(a, b) for a, b in zip(found, true, strict=True)])),
        }
        for name, found in said.items()
    }
    examples = [{"question": q.question, "said": a, "true": q.answers[0][0]} for q, a in zip(asked, said["MiniLM"])][:5]  # noqa: B905
    return {"held-out questions": len(asked), "trained on": len(training), "scores": scores, "examples": examples}


def bert(work: Path, flags: list[str]) -> dict[str, Any]:
    """The same steps with NSP and without; a unigram guess of the hidden tokens is what any model has to beat.

    Next sentences are learned slowly, from 16 pairs a step: the model with them goes on for MORE steps.
    """
    runs = {
        "with NSP": BERT,
        "without NSP": [*BERT, "--no-nsp"],
        "with NSP, gone on": [*MORE, "--init", f"{work}/with NSP"],
    }
    found = {name: pretrained(work / name, [*settings, *flags]) for name, settings in runs.items()}
    for name in ("with NSP", "with NSP, gone on"):
        found[name]["next sentences"] = next_sentences(work / name)
    return {"runs": found, "settings": [" ".join([*settings, *flags]) for settings in (BERT, MORE)]}


def next_sentences(run: Path) -> dict[str, float]:
    """Share of held-out pairs judged right by the best model, each chunk of the held-out text cut and paired DRAWS times."""
    text = prepare(find_sources(["python-docs"]), tokenizer=None, notify=print, layout="sentences", **TEXT)
    model, tokenizer = load(run)
    assert not model.training
    store = open_sentences(store_path(text.key) / HELDOUT_FOLDER, text.tokenizer)
    masking = make_masking(tokenizer, seed=1)
    ids = [tokenizer.special_id(role) for role in ("cls", "sep", "pad")]
    pairs = NextSentencePairs(store, model.encoder.config.max_seq_len, 1, 1, masking, *ids)
    right = {"hidden": [], "whole": []}
    with torch.inference_mode():
        for number in range(DRAWS * pairs.rows_per_epoch):
            batch, _ = pairs(divmod(number, pairs.rows_per_epoch))
            whole = torch.where(batch.labels == IGNORED, batch.input_ids, batch.labels)
            for name, ids in {"hidden": batch.input_ids, "whole": whole}.items():
                said = model.head.nsp(model.encoder(ids, batch.attention_mask, batch.segment_ids)).argmax()
                right[name].append(bool(said == batch.next_sentence))
    shares = {f"right, {name}": float(np.mean(values)) for name, values in right.items()}
    return {"pairs": len(right["whole"]), "chunks": pairs.rows_per_epoch, **shares}


def roberta(work: Path, flags: list[str]) -> dict[str, Any]:
    """The same steps with new masks each epoch and with the same ones."""
    found = {
        masking: pretrained(work / masking, [*ROBERTA, "--masking", masking, *flags])
        for masking in ("dynamic", "static")
    }
    return {"runs": found, "settings": " ".join([*ROBERTA, *flags])}


def pretrained(out: Path, settings: list[str]) -> dict[str, Any]:
    """The best evaluation of a run, beside the loss of guessing tokens by how frequent they are."""
    assert lamoid(["pretrain", *settings, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluations = [line for line in lines if "heldout_loss" in line]
    best = min(evaluations, key=lambda line: line["heldout_loss"])
    kept = ("step", "heldout_loss", "masked_accuracy", "nsp_accuracy")
    return {name: best[name] for name in kept if name in best} | {"unigram loss": unigram_loss(out)}


def unigram_loss(run: Path) -> float:
    """Nats a hidden token costs that is guessed by how frequent it is in the training text (add-one smoothing).

    A hidden token is any token of the held-out text with the same chance, so all of them are counted.
    """
    tokenizer = load_tokenizer(run)
    counts = Counter[int]()
    nats = []
    for number, document in enumerate(documents()):
        ids = tokenizer.encode(document)
        if number % 10:
            counts.update(ids)
        else:
            nats.append(ids)
    total = counts.total() + tokenizer.vocab_size
    heldout = [token for ids in nats for token in ids]
    return float(np.mean([-math.log((counts[token] + 1) / total) for token in heldout]))


def documents() -> Iterator[str]:
    for source in find_sources(["python-docs"]):
        for document in source.documents():
            yield "\n".join(document)


if __name__ == "__main__":
    main()
