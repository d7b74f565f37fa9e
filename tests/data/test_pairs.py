"""Pairs of source and target: what files may look like, what is held out, and batches that can be resumed."""

import gzip
import json

import pytest
import torch

from lamoid.data.pairs import PairRows, encode_pairs, read_pairs, split_pairs
from lamoid.errors import DataError, UsageError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.bpe import train_bpe

TEXTS = [("con mèo", "the cat"), ("猫坐在垫子上", "the cat sat on a mat"), ("고양이가 앉았다", 'it "sat"')]


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.tsv"):
        file = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode()
        file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(file)

    return write


def as_tsv(pairs):
    return "".join(f"{source}\t{target}\n" for source, target in pairs)


def texts(found):
    return [(pair.source, pair.target) for pair in found[0]]


JSONL = [{"translation": {"vi": s, "en": t}} for s, t in TEXTS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", as_tsv(TEXTS)),
        ("a.tsv", "\ufeff" + as_tsv(TEXTS).replace("\n", "\r\n")),
        ("a.tsv", "target\tid\tsource\n" + "".join(f"{t}\t7\t{s}\n" for s, t in TEXTS)),
        ("a.tsv.gz", as_tsv(TEXTS)),
        ("a.csv", "vi,en\ncon mèo,the cat\n猫坐在垫子上,the cat sat on a mat\n고양이가 앉았다,\"it \"\"sat\"\"\"\n"),
        ("a.csv", "n,Target,Source\n1,the cat,con mèo\n2,the cat sat on a mat,猫坐在垫子上\n3,it \"sat\",고양이가 앉았다\n"),
        ("a.jsonl", "".join(json.dumps({"target": t, "source": s}) + "\n" for s, t in TEXTS)),
        ("a.jsonl", "".join(json.dumps(record) + "\n" for record in JSONL)),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_pairs(write, name, content):
    if name == "a.csv" and 'it "sat"' in content:
        content = content.replace('it "sat"', '"it ""sat"""')
    found = read_pairs([write(content, name)])
    assert texts(found) == TEXTS
    assert found[1] == sum(len((s + t).encode()) for s, t in TEXTS)


def test_white_space_is_trimmed_and_copies_are_left_out(write):
    said = []
    file = write(as_tsv([*TEXTS, (" con mèo ", "the cat"), ("con mèo", "a cat")]))
    assert texts(read_pairs([file, file], notify=said.append)) == [*TEXTS, ("con mèo", "a cat")]
    assert said[-1] == "1 of 5 pairs left out because they stand elsewhere too"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tsv", "a\tb\nonly one\n", "a.tsv line 2 has 1 column; expected 2: source, target, with a tab"),
        ("a.tsv", "a\tb\nc\td\te\n", "a.tsv line 2 has 3 columns; expected 2"),
        ("a.tsv", "a\tb\n\t d\n", "a.tsv line 2: source must be a text that is not empty"),
        ("a.tsv", b"a\tb\nc\t\xff\n", "a.tsv line 2 is not UTF-8: byte 0xFF at its offset 2"),
        ("a.csv", "a,b,c\n1,2,3\n", "a.csv line 2 has a, b, c; expected source and target"),
        ("a.csv", "source,b\n1,2\n", "a.csv line 2 has source, b; expected source and target"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a"', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", '{"source": "a", "target": 3}\n', "a.jsonl line 1: target must be a text"),
        ("a.jsonl", '{"translation": "a"}\n', "a.jsonl line 1: translation must be an object"),
        ("a.jsonl", '{"source": "\\ud800", "target": "a"}\n', "a.jsonl line 1: lone surrogate"),
        ("a.jsonl", '{"translation": {}}\n', "a.jsonl line 1 has nothing; expected source and target"),
        ("a.txt", "a\tb\n", "a.txt is of no known kind"),
        ("a.tsv", "\n", "no pair of source and target"),
        ("a.tsv", "source\ttarget\n", "no pair of source and target"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write, name, content, words):
    with pytest.raises(DataError) as caught:
        read_pairs([write(content, name)])
    assert words in str(caught.value)


def test_bad_lines_are_counted_and_left_out(write):
    said = []
    file = write(as_tsv(TEXTS[:1]) + "bad\n" + as_tsv(TEXTS[1:]) + "\tbad\n")
    assert texts(read_pairs([file], skip_bad=True, notify=said.append)) == TEXTS
    assert "3 examples, 2 bad lines left out, the first: " in said[0] and "line 2" in said[0]


def many(n, first=0):
    return [(f"câu {i}", f"句 {i % 97}") for i in range(first, first + n)]


def test_the_held_out_sources_stay_held_out_when_data_are_added(write):
    few, more = (read_pairs([write(as_tsv(many(n)))])[0] for n in (1000, 2000))
    training, heldout = split_pairs(few, 0.1, seed=3)
    assert 60 < len(heldout) < 140 and len(training) + len(heldout) == 1000
    assert {p.source for p in heldout} == {p.source for p in split_pairs(more, 0.1, seed=3)[1]} & {
        p.source for p in few
    }
    assert {p.source for p in heldout} != {p.source for p in split_pairs(few, 0.1, seed=4)[1]}


def test_all_targets_of_a_source_go_the_same_way(write):
    pairs = read_pairs([write(as_tsv([(s, f"{t} {k}") for s, t in many(300) for k in range(3)]))])[0]
    training, heldout = split_pairs(pairs, 0.2, seed=0)
    assert len(heldout) % 3 == 0 and not {p.source for p in training} & {p.source for p in heldout}


def test_at_least_one_source_is_held_out_and_one_is_left(write):
    pairs = read_pairs([write(as_tsv(TEXTS))])[0]
    assert len(split_pairs(pairs, 1e-9, seed=0)[1]) == 1
    with pytest.raises(DataError, match="too few"):
        split_pairs(pairs[:1], 0.1, seed=0)
    with pytest.raises(UsageError, match="share is 1"):
        split_pairs(pairs, 1, seed=0)


@pytest.fixture
def rows(write):
    tokenizer = train_bpe([text for pair in many(50) for text in pair], 280)
    pairs, n_long = encode_pairs(read_pairs([write(as_tsv([*many(107), ("long " * 9, "x")]))])[0], tokenizer, 20)
    assert n_long == 1 and len(pairs) == 107
    return PairRows(pairs, 4, 5, *(tokenizer.special_id(role) for role in ("bos", "eos", "pad")))


def positions(rows, start, n):
    found = []
    for _ in range(n):
        batch, start = rows(start)
        found.append((batch, start))
    return found


def test_the_batch_at_a_position_depends_on_nothing_else(rows):
    walk = positions(rows, (0, 0), 60)
    fresh = PairRows(rows.pairs, 4, 5, rows.bos_id, rows.eos_id, rows.pad_id)
    for place in (55, 3, 30, 27, 26):
        position = tuple(json.loads(json.dumps(walk[place - 1][1])))
        batch, after = fresh(position)
        assert after == walk[place][1]
        for name, tensor in vars(batch).items():
            assert torch.equal(tensor, getattr(walk[place][0], name))


def test_an_epoch_has_each_pair_once_in_an_order_of_its_own(rows):
    walk = positions(rows, (0, 0), 54)
    assert [after for _, after in walk].index((1, 0)) == 26 and walk[-1][1] == (2, 0)  # ⌈107 / 4⌉ batches
    sources = [[tuple(row[row != rows.pad_id].tolist()) for row in batch.source_ids] for batch, _ in walk]
    first, second = ([row for batch in epoch for row in batch] for epoch in (sources[:27], sources[27:]))
    assert sorted(first) == sorted(second) == sorted(tuple(pair.source) for pair in rows.pairs)
    assert first != second


def test_rows_of_a_batch_have_like_lengths(rows):
    walk = positions(rows, (0, 0), 27)
    padding = sum(int((batch.source_mask == 0).sum()) for batch, _ in walk)
    assert padding < 0.05 * sum(batch.source_mask.numel() for batch, _ in walk)


def test_a_batch_is_sources_with_their_end_and_targets_shifted_by_one(rows):
    batch = next(iter(rows.in_order()))
    for row, pair in enumerate(rows.pairs[:4]):
        n_source, n_target = len(pair.source), len(pair.target) + 1
        assert batch.source_ids[row, :n_source].tolist() == pair.source and pair.source[-1] == rows.eos_id
        assert batch.source_mask[row].tolist() == [1] * n_source + [0] * (batch.source_ids.shape[1] - n_source)
        assert batch.target_ids[row, :n_target].tolist() == [rows.bos_id, *pair.target]
        assert batch.labels[row, :n_target].tolist() == [*pair.target, rows.eos_id]
        assert (batch.labels[row, n_target:] == IGNORED).all()
        assert (batch.source_ids[row, n_source:] == rows.pad_id).all()
    assert sum(len(batch.labels) for batch in rows.in_order()) == 107


def test_without_pairs_there_are_no_batches():
    with pytest.raises(DataError, match="no pairs"):
        PairRows([], 4, 0, 1, 2, 0)
