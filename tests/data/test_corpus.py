"""The held-out text must be new to the model: nothing of it stands in the training text."""

import json
import random
from itertools import pairwise

import pytest

from lamoid.data.corpus import MAX_HELDOUT_BYTES, PARAGRAPH_CHARS, survey
from lamoid.data.sources import find_sources
from lamoid.errors import DataError

LETTERS = {"latin": "abcdefghaij", "chinese": "".join(map(chr, range(0x4E00, 0x4E40)))}


def paragraph(draw, n_chars=200, letters="latin"):
    text = "".join(draw.choices(LETTERS[letters], k=n_chars))
    return text if letters == "chinese" else text.replace("a", " ").strip().ljust(n_chars, "b")


def paragraphs(n, seed=0, **settings):
    draw = random.Random(seed)
    return [paragraph(draw, **settings) for _ in range(n)]


def corpus_of(tmp_path, text, name="a.txt", **settings):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return survey(find_sources([str(tmp_path / name)]), **settings)


def corpus_of_documents(tmp_path, texts, name="a.jsonl", **settings):
    return corpus_of(tmp_path, "".join(json.dumps({"text": t}) + "\n" for t in texts), name, **settings)


def training(corpus):
    return [passage.text for passage in corpus.training()]


def heldout(corpus):
    return [passage.text for passage in corpus.heldout]


def folded(text):
    return " ".join(text.split())


def test_text_without_repeats_is_divided_without_loss(tmp_path):
    texts = paragraphs(600)
    corpus = corpus_of(tmp_path, "\n\n".join(texts))
    pieces = [p for text in training(corpus) + heldout(corpus) for p in text.split("\n\n") if p]
    assert sorted(pieces) == sorted(texts)
    assert corpus.n_repeated_bytes == 0
    assert corpus.n_bytes == sum(len(text.encode()) for text in training(corpus))


@pytest.mark.parametrize("letters", ["latin", "chinese"])
def test_text_in_one_paragraph_is_divided_without_loss(tmp_path, letters):
    text = paragraph(random.Random(0), 120_000, letters)
    corpus = corpus_of(tmp_path, text)
    both = "".join(training(corpus) + heldout(corpus))
    assert len(both) == len(text)
    assert sorted(both) == sorted(text)
    assert heldout(corpus)


def test_documents_of_one_paragraph_are_divided_without_loss(tmp_path):
    texts = paragraphs(600)
    corpus = corpus_of_documents(tmp_path, texts)
    assert sorted(training(corpus) + heldout(corpus)) == sorted(texts)


def test_the_share_is_about_what_was_asked_for(tmp_path):
    texts = paragraphs(4000)
    corpus = corpus_of_documents(tmp_path, texts, heldout_share=0.1)
    assert 320 < len(heldout(corpus)) < 480  # 400 expected, four standard deviations of 19


def test_the_bytes_of_text_count_not_those_of_the_file(tmp_path):
    """10 MB of text in a file of one: the share is the text's, and repeats are counted in it."""
    import lzma

    texts = paragraphs(60, n_chars=20_000)
    file = tmp_path / "a.jsonl.xz"
    file.write_bytes(lzma.compress("".join(json.dumps({"text": t * 8}) + "\n" for t in texts).encode()))
    corpus = survey(find_sources([str(file)]), heldout_share=0.9)
    all_bytes = sum(len(t.encode()) * 8 for t in texts)
    n_heldout = sum(len(t.encode()) for t in heldout(corpus))
    assert corpus.n_bytes + n_heldout + corpus.n_repeated_bytes == all_bytes > file.stat().st_size * 4
    assert n_heldout <= MAX_HELDOUT_BYTES * 1.5


def test_repeated_paragraphs_are_left_out_before_anything_is_held_out(tmp_path):
    texts = paragraphs(300)
    repeated = texts[:100]
    corpus = corpus_of(tmp_path, "\n\n".join([*texts, *repeated, *repeated]))
    pieces = [p for text in training(corpus) + heldout(corpus) for p in text.split("\n\n") if p]
    assert sorted(pieces) == sorted(texts)
    assert corpus.n_repeated_bytes >= 2 * sum(map(len, repeated))


def test_repeated_documents_are_left_out_whole(tmp_path):
    texts = [f"{text}\n\nshort" for text in paragraphs(300)]
    corpus = corpus_of_documents(tmp_path, [*texts, *texts])
    assert sorted(training(corpus) + heldout(corpus)) == sorted(texts)


def test_short_documents_that_repeat_are_left_out(tmp_path):
    texts = [f"line {i}" for i in range(400)]
    corpus = corpus_of_documents(tmp_path, [*texts, *texts])
    assert sorted(training(corpus) + heldout(corpus)) == sorted(texts)


def test_white_space_does_not_make_a_text_new(tmp_path):
    texts = paragraphs(200)
    corpus = corpus_of_documents(tmp_path, [*texts, *("  " + t.replace(" ", "\n  ", 3) + " \n" for t in texts)])
    assert sorted(training(corpus) + heldout(corpus)) == sorted(texts)


def test_short_paragraphs_may_repeat(tmp_path):
    heading = "A heading"
    assert len(heading) < PARAGRAPH_CHARS
    texts = paragraphs(200)
    corpus = corpus_of(tmp_path, "\n\n".join(f"{heading}\n\n{text}" for text in texts))
    assert "".join(training(corpus) + heldout(corpus)).count(heading) == 200


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("letters", ["latin", "chinese"])
def test_nothing_held_out_stands_in_the_training_text(tmp_path, seed, letters):
    """Text made of repeats of every kind: of documents, paragraphs, lines, with other white space."""
    draw = random.Random(seed)
    lines = [paragraph(draw, draw.randint(20, 90), letters) for _ in range(300)]
    pool = ["\n".join(draw.choices(lines, k=draw.randint(1, 4))) for _ in range(400)]
    pool += paragraphs(300, seed, n_chars=150, letters=letters)
    texts = [
        draw.choice(["\n\n", "\n \n\n", "\r\n\r\n"]).join(draw.choices(pool, k=draw.randint(1, 5))) for _ in range(300)
    ]
    texts += draw.choices(texts, k=50)
    corpus = corpus_of_documents(tmp_path, texts, seed=seed, heldout_share=0.2)
    train, held = training(corpus), heldout(corpus)
    assert train
    assert held

    def long_paragraphs(texts):
        pieces = (folded(p) for text in texts for p in text.replace("\r", "").replace("\n \n", "\n\n").split("\n\n"))
        return {p for p in pieces if len(p) >= PARAGRAPH_CHARS}

    def long_lines(texts):
        return {folded(line) for text in texts for line in text.split("\n") if len(folded(line)) >= PARAGRAPH_CHARS}

    assert not {folded(t) for t in train} & {folded(t) for t in held}
    assert not long_paragraphs(train) & long_paragraphs(held)
    assert not long_lines(train) & long_lines(held)
    assert len(long_paragraphs(train)) > 100


def test_a_line_that_training_has_is_removed_from_what_is_held_out(tmp_path):
    shared = "this line of more than sixty-four characters stands in every single document"
    corpus = corpus_of_documents(tmp_path, [f"{shared}\n{text}" for text in paragraphs(400)])
    assert not any(shared in text for text in heldout(corpus))
    assert all(shared in text for text in training(corpus))


def test_the_choice_survives_added_documents(tmp_path):
    texts, added = paragraphs(2000), paragraphs(500, seed=1)
    before = corpus_of_documents(tmp_path, texts)
    after = corpus_of_documents(tmp_path, [*added[:250], *texts, *added[250:]], "b.jsonl")
    assert len(heldout(before)) > 20
    assert set(heldout(before)) <= set(heldout(after))
    assert not set(training(before)) & set(heldout(after))


def test_the_choice_survives_added_files_beside_a_large_one(tmp_path):
    before = corpus_of(tmp_path, "\n\n".join(paragraphs(20_000)))
    (tmp_path / "b.txt").write_text("\n\n".join(paragraphs(3000, seed=1)))
    after = survey(find_sources([str(tmp_path / "b.txt"), str(tmp_path / "a.txt")]))
    assert len(heldout(before)) >= 2
    assert set(heldout(before)) <= set(heldout(after))


def test_the_choice_is_deterministic_and_the_seeds(tmp_path):
    texts = paragraphs(1000)
    first, again, other = (corpus_of_documents(tmp_path, texts, seed=seed) for seed in (1, 1, 2))
    assert heldout(first) == heldout(again)
    assert training(first) == training(again) == training(first)
    assert set(heldout(first)) != set(heldout(other))


def test_at_most_two_megabytes_are_held_out(tmp_path):
    corpus = corpus_of(tmp_path, "\n\n".join(paragraphs(1000, n_chars=4000)), heldout_share=0.9)
    assert 1_000_000 < sum(len(t.encode()) for t in heldout(corpus)) < 3_000_000


@pytest.mark.parametrize("text", ["", "\n"], ids=repr)
def test_nothing_to_train_on_names_the_file(tmp_path, text):
    with pytest.raises(DataError, match=r"a\.txt: (empty|too little text)"):
        corpus_of(tmp_path, text)


@pytest.mark.parametrize("text", ["one", "too short " * 100], ids=len)
def test_too_little_text_to_hold_some_out_names_the_file(tmp_path, text):
    with pytest.raises(DataError, match=r"a\.txt: too little text .* at least 4 KB"):
        corpus_of(tmp_path, text)


def test_four_kilobytes_are_enough(tmp_path):
    corpus = corpus_of(tmp_path, "\n\n".join(paragraphs(1, n_chars=4500)))
    assert training(corpus)
    assert heldout(corpus)


def test_the_sample_is_even(tmp_path):
    texts = [f"{i} {text}" for i, text in enumerate(paragraphs(2000))]
    corpus = corpus_of_documents(tmp_path, texts)
    numbers = [int(text.split()[0]) for text in corpus.sample(corpus.n_bytes // 10)]
    assert 180 <= len(numbers) <= 200
    gaps = [b - a for a, b in pairwise(numbers)]
    assert max(gaps) < 25  # ten, and what is held out between
    assert numbers[0] < 25
    assert numbers[-1] > 1975


@pytest.mark.parametrize("n_bytes", [1, 5000, 50_000, 200_000])
def test_the_sample_is_bounded_and_never_empty(tmp_path, n_bytes):
    corpus = corpus_of(tmp_path, "\n\n".join(paragraphs(2000)))
    sample = list(corpus.sample(n_bytes))
    longest = max(len(text) for text in training(corpus))
    assert sample
    assert abs(sum(len(text) for text in sample) - n_bytes) <= longest + n_bytes * 0.05


def test_a_sample_larger_than_the_text_is_the_text(tmp_path):
    corpus = corpus_of(tmp_path, "\n\n".join(paragraphs(500)))
    assert list(corpus.sample(10**9)) == training(corpus)


def test_progress_counts_every_byte(tmp_path):
    seen = []
    text = "\n\n".join(paragraphs(500, letters="chinese"))
    corpus_of(tmp_path, text, on_bytes=seen.append)
    assert sum(seen) == len(text.encode())
