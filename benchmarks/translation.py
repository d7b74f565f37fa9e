"""The Debian Administrator's Handbook in two languages: does a small Transformer translate it better than copying it?

    python -m benchmarks.translation --out docs/proofs

The package debian-handbook (hundreds of pages in 26 languages) is fetched by apt-get, unpacked and not installed. Two
languages of a page have the same structure, so that a paragraph is the other's translation where it stands in the same
place. One `lamoid pretrain` learns from 95 % of the paragraphs; the others are translated greedily and with four beams. chrF
tells how close that is to the book's own translation, beside three answers that took no training on the source: the source
itself, the translation of another paragraph drawn at random, and the translation of the training paragraph whose source
shares the most runs of three letters with it (a translation memory).
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lxml.html
import torch

from benchmarks.pairs import write_proof
from lamoid import load
from lamoid.data.pairs import TextPair, encode_pairs, read_pairs, split_pairs
from lamoid.recipes.translate import decode_sources
from lamoid.training.scores import chrf

PACKAGE, BOOK = "debian-handbook", "usr/share/doc/debian-handbook/html"
UNITS = "//*[contains(' para title term ', concat(' ', @class, ' ')) or self::p or self::td or self::th or self::dt]"
BATCH, SEED, SHARE = 32, 0, 0.05
FLAGS = ["vocab-size=4096", "batch-rows=16", "context=96", "eval-every=500", "sample-every=0"]


def main() -> None:
    parser = argparse.ArgumentParser(description="a Transformer against copying the source, on a book in two languages")
    parser.add_argument("--source", default="en-US")
    parser.add_argument("--target", default="ru-RU")
    parser.add_argument("--model", default="transformer-tiny")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--flags", nargs="*", default=FLAGS, help="more settings of lamoid pretrain")
    parser.add_argument("--out", type=Path, help="write the result as JSON into this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "pairs.tsv", Path(folder) / "run"
        book = fetch(Path(folder))
        pairs = align(book / arguments.source, book / arguments.target)
        data.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
        seconds, steps = train(data, run, arguments)
        scores, facts = measure(data, run)
    for name, value in scores.items():
        print(f"{name:45s} chrF {value:.2f}")
    facts |= {
        "source": arguments.source,
        "target": arguments.target,
        "model": arguments.model,
        "flags": arguments.flags,
    }
    facts |= {"minutes of training": round(seconds / 60, 2), "steps": steps, "threads": 1}
    write_proof("translation", {"chrF": scores, "facts": facts}, arguments.out)


def fetch(folder: Path) -> Path:
    """The folder of the book's languages."""
    subprocess.run(["apt-get", "download", "-q", PACKAGE], cwd=folder, check=True, capture_output=True)
    subprocess.run(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), str(folder / "deb")], check=True)
    return folder / "deb" / BOOK


def align(first: Path, second: Path) -> list[tuple[str, str]]:
    """Texts at the same place of the same page, where both have one and the second is no copy of the first."""
    pairs = []
    for page in sorted(first.glob("*.html")):
        if (second / page.name).is_file() and page.name != "ix01.html":  # the index, sorted by each language's alphabet
            others = units(second / page.name)
            pairs += [(text, others[place]) for place, text in units(page).items() if place in others]
    return [(a, b) for a, b in pairs if a != b and any(c.isalpha() for c in a)]


def units(page: Path) -> dict[str, str]:
    """Paragraphs, titles, terms and cells of a page that have no other inside, by their place in its tree."""
    tree = lxml.html.parse(str(page))
    found = {}
    for unit in tree.xpath(UNITS):
        text = " ".join(unit.text_content().split())
        if text and not unit.xpath("." + UNITS):
            found[tree.getpath(unit)] = text
    return found


def train(data: Path, run: Path, arguments: argparse.Namespace) -> tuple[float, int]:
    """`lamoid pretrain`; returns seconds and steps."""
    command = [sys.executable, "-m", "lamoid.cli", "pretrain", "--data", str(data), "--out", str(run), "--threads", "1"]
    command += ["--model", arguments.model, "--max-steps", str(arguments.steps), "--seed", str(SEED)]
    command += ["--heldout-share", str(SHARE), *(f"--{flag}" for flag in arguments.flags)]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return seconds, max(json.loads(line)["step"] for line in lines)


def measure(data: Path, run: Path) -> tuple[dict[str, float], dict[str, object]]:
    """chrF on all held-out pairs that fit the model's context, and what they are."""
    model, tokenizer = load(run)
    pairs, n_bytes = read_pairs([str(data)])
    training, rest = split_pairs(pairs, SHARE, SEED)
    heldout, n_long = encode_pairs(rest, tokenizer, model.config.max_seq_len)
    texts, targets = [pair.texts for pair in heldout], [pair.texts.target for pair in heldout]
    generator = random.Random(SEED)
    scores = {
        "Transformer, greedy": chrf(translate_all(model, tokenizer, heldout, 1), targets),
        "Transformer, 4 beams": chrf(translate_all(model, tokenizer, heldout, 4), targets),
        "copy of the source": chrf([pair.source for pair in texts], targets),
        "another translation, drawn at random": chrf([generator.choice(training).target for _ in texts], targets),
        "translation of the most similar source": chrf([most_similar(pair, training) for pair in texts], targets),
    }
    facts = {"pairs": len(pairs), "bytes": n_bytes, "held out": len(heldout), "held out but too long": n_long}
    return {name: round(value, 2) for name, value in scores.items()}, facts


def translate_all(model, tokenizer, pairs, n_beams: int) -> list[str]:
    groups = (pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH))
    found = (decode_sources(model.eval(), [pair.source for pair in group], n_beams) for group in groups)
    return [tokenizer.decode(done.ids) for group in found for done in group]


def most_similar(pair: TextPair, training: list[TextPair]) -> str:
    """The target of the training pair whose source is likest by the letters in threes that both have (Dice)."""
    own = trigrams(pair.source)
    return max(
        training, key=lambda other: 2 * len(own & (t := trigrams(other.source))) / (len(own) + len(t) or 1)
    ).target


_trigrams: dict[str, frozenset[str]] = {}


def trigrams(text: str) -> frozenset[str]:
    if text not in _trigrams:
        _trigrams[text] = frozenset(text[i : i + 3] for i in range(len(text) - 2))
    return _trigrams[text]


if __name__ == "__main__":
    main()
