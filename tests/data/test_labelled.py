"""Labelled texts: columns, names of labels, imbalance, and a held-out part that is fair."""

import json
from collections import Counter

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from lamoid.data.labelled import (
    LabelledText,
    balanced_weights,
    count_labels,
    describe_labels,
    encode_labelled,
    hold_out,
    read_labelled,
)
from lamoid.data.padded import LabelledRows
from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.wordpiece import train_wordpiece

REVIEWS = "text,label\nrất hay,pos\n太差了,neg\n별로예요,neg\nit was fine,neutral\n"


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.csv"):
        file = tmp_path / name
        file.write_text(content, encoding="utf-8")
        return str(file)

    return write


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


# ---- reading


def test_texts_and_names_of_labels_are_kept(write):
    said = []
    found = read_labelled([write(REVIEWS)], notify=said.append)
    assert [(e.text, e.label) for e in found.examples] == [
        ("rất hay", "pos"),
        ("太差了", "neg"),
        ("별로예요", "neg"),
        ("it was fine", "neutral"),
    ]
    assert found.label_names == ("neg", "neutral", "pos")
    assert found.examples[1].source.endswith("a.csv line 3")
    assert "text in 'text', label in 'label', 4 examples" in said[0]
    assert said[1] == "3 labels: neg 2 (50%), neutral 1 (25%), pos 1 (25%)"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("Review,Sentiment", "text in 'Review', label in 'Sentiment'"),
        ("sentence,id,class", "text in 'sentence', label in 'class'"),
        ("premise,hypothesis,gold_label", "text in 'premise', paired with 'hypothesis', label in 'gold_label'"),
        ("label,sentence1,sentence2", "text in 'sentence1', paired with 'sentence2', label in 'label'"),
    ],
)
def test_columns_are_recognised_and_said(write, header, said):
    n = header.count(",") + 1
    heard = []
    read_labelled([write(f"{header}\n{','.join('abc'[:n])}\n{','.join('def'[:n])}\n")], notify=heard.append)
    assert said in heard[0]


def test_columns_may_be_given(write):
    file = write("văn bản,nhãn,text,label\nmột,x,no,0\nhai,y,no,0\n")
    found = read_labelled([file], text_column="văn bản", label_column="nhãn")
    assert [(e.text, e.pair, e.label) for e in found.examples] == [("một", None, "x"), ("hai", None, "y")]
    found = read_labelled([file], text_column="văn bản", label_column="nhãn", pair_column="text")
    assert found.examples[0].pair == "no"


def test_unknown_columns_are_listed(write):
    with pytest.raises(DataError, match="has the columns văn bản, nhãn; .* --text-column and --label-column"):
        read_labelled([write("văn bản,nhãn\nmột,x\n")])
    with pytest.raises(DataError, match=r"has no column 'txt' \(--text-column\); it has text, label"):
        read_labelled([write(REVIEWS)], text_column="txt")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 2, 10], ("2", "9", "10")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([True, False], ("false", "true")),
        ([1.0, 0.0], ("0", "1")),
        (["b", "10", "a"], ("10", "a", "b")),
        ([" tốt ", "tốt", "差"], ("tốt", "差")),
    ],
)
def test_labels_are_numbered_in_order(write, values, names):
    content = lines(*({"text": f"t{i}", "label": value} for i, value in enumerate(values)))
    assert read_labelled([write(content, "a.jsonl")]).label_names == names


def test_labels_may_be_given_in_an_order_of_their_own(write):
    found = read_labelled([write(REVIEWS)], label_names=("pos", "neutral", "neg", "other"))
    assert found.label_names == ("pos", "neutral", "neg", "other")
    with pytest.raises(DataError, match="line 5: label 'neutral' is unknown; known are pos, neg"):
        read_labelled([write(REVIEWS)], label_names=("pos", "neg"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "label must be one label"),
        ({"text": "a", "label": None}, "label must be one label"),
        ({"text": "a", "label": ["x", "y"]}, "label must be one label"),
        ({"text": "a", "label": 1.5}, "label must be one label"),
        ({"text": "a", "label": " "}, "label must be one label"),
        ({"text": "a", "label": "\ud800"}, r"label has a lone surrogate U\+D800"),
        ({"text": "", "label": "x"}, "text must be a text that is not empty"),
        ({"text": " \n", "label": "x"}, "text must be a text that is not empty"),
        ({"text": 3, "label": "x"}, "text must be a text that is not empty, got '3'"),
        ({"text": "a\ud800", "label": "x"}, "lone surrogate at character 1 of text"),
    ],
)
def test_bad_lines_are_named_or_skipped(write, record, message):
    good = [{"text": "một", "label": "x"}, {"text": "hai", "label": "y"}]
    file = write("".join(json.dumps(r) + "\n" for r in (good[0], record, good[1])), "a.jsonl")
    with pytest.raises(DataError, match=rf"a\.jsonl line 2: {message}.*--skip-bad"):
        read_labelled([file])
    said = []
    found = read_labelled([file], skip_bad=True, notify=said.append)
    assert len(found.examples) == 2 and len(found.bad) == 1
    assert "2 examples, 1 bad lines left out, the first: " in said[0]


def test_texts_and_pairs_do_not_mix(write):
    pairs = write("sentence1,sentence2,label\na,b,x\n", "b.csv")
    with pytest.raises(DataError, match="give texts or pairs, not both"):
        read_labelled([write(REVIEWS), pairs])


@pytest.mark.parametrize("content", ["text,label\n", "text,label\na,x\nb,x\n"])
def test_fewer_than_two_labels_are_refused(write, content):
    with pytest.raises(DataError, match="at least two labels are needed"):
        read_labelled([write(content)])


# ---- imbalance


def made(counts, texts=lambda label, i: f"{label} {i}"):
    return [LabelledText(texts(label, i), None, label, "") for label, n in counts.items() for i in range(n)]


def test_weights_are_scikit_learns():
    for counts in ({"a": 90, "b": 9, "c": 1}, {"x": 5, "y": 5}, {"p": 1, "q": 1000}):
        examples = made(counts)
        ours = balanced_weights(count_labels(examples, tuple(counts)))
        labels = np.array([e.label for e in examples])
        assert ours == pytest.approx(compute_class_weight("balanced", classes=np.array(list(counts)), y=labels))
        assert sum(ours[i] * n for i, n in enumerate(counts.values())) == pytest.approx(len(examples))


def test_a_label_without_examples_weighs_nothing():
    assert balanced_weights(np.array([4, 0, 4])).tolist() == [1.0, 0.0, 1.0]


def test_imbalance_is_said():
    text = describe_labels(made({"rare": 2, "usual": 97}), ("rare", "usual"))
    assert text == "2 labels: usual 97 (98%), rare 2 (2%); the most frequent is 48 times as frequent as the rarest"
    assert "and 4 more" in describe_labels(made({str(i): 1 for i in range(12)}), tuple(map(str, range(12))))


# ---- held out


def split(examples, share, seed):
    return hold_out(examples, share, seed, lambda e: (e.text, e.pair or ""), lambda e: e.label)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_every_label_is_held_out_in_proportion(share):
    counts = {"many": 400, "some": 40, "few": 4, "two": 2, "one": 1}
    training, heldout = split(made(counts), share, seed=0)
    held = Counter(e.label for e in heldout)
    assert held == {label: max(round(share * n), 1) for label, n in counts.items() if n > 1}
    assert len(training) + len(heldout) == sum(counts.values())


def test_the_choice_depends_on_text_and_seed_alone():
    examples = made({"a": 50, "b": 30})
    texts = {e.text for e in split(examples, 0.2, seed=1)[1]}
    assert texts == {e.text for e in split(examples[::-1], 0.2, seed=1)[1]}
    assert texts != {e.text for e in split(examples, 0.2, seed=2)[1]}


def test_equal_texts_go_the_same_way():
    examples = made({"a": 200, "b": 200}, texts=lambda label, i: f"văn bản {i % 40}")
    training, heldout = split(examples, 0.2, seed=0)
    assert not {e.text for e in training} & {e.text for e in heldout}
    assert training and heldout


def test_nothing_to_hold_out_is_an_error():
    with pytest.raises(DataError, match="none can be held out"):
        split(made({"a": 1, "b": 1}), 0.5, seed=0)
    for share in (0, 1, -1, 2):
        with pytest.raises(UsageError, match="held-out share"):
            split(made({"a": 5, "b": 5}), share, seed=0)


# ---- rows


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(["rất hay 太差了 별로예요 it was fine một hai ba"] * 3, 200)


def test_rows_hold_texts_cut_to_the_limit_and_their_labels(tokenizer):
    examples = [LabelledText("một hai ba " * 9, None, "y", ""), LabelledText("太差了", None, "x", "")]
    rows, labels = encode_labelled(tokenizer, examples, ("x", "y"), 8)
    assert labels == [[1], [0]]
    assert [len(row) for row in rows] == [8, 5]
    assert rows[0].n_cut == len(tokenizer.encode(examples[0].text)) - 8 and rows[1].n_cut == 0
    assert rows[1].ids.tolist() == tokenizer.encode("太差了")


def test_pairs_have_two_segments(tokenizer):
    rows, _ = encode_labelled(tokenizer, [LabelledText("một", "太差了", "x", "")], ("x", "y"), 20)
    assert rows[0].ids.tolist() == tokenizer.encode("một", "太差了")
    assert rows[0].segments.tolist() == tokenizer.encode_batch(["một"], ["太差了"]).segments[0].tolist()


def test_batches_are_padded_and_depend_on_their_position_alone(tokenizer):
    texts = ["một", "một hai ba", "太差了", "it was fine", "별로예요"]
    examples = [LabelledText(text, None, "xy"[i % 2], "") for i, text in enumerate(texts)]
    rows, labels = encode_labelled(tokenizer, examples, ("x", "y"), 20)
    batches = LabelledRows(rows, labels, batch_rows=2, seed=0, pad_id=tokenizer.special_id("pad"))
    position, seen = (0, 0), []
    for _ in range(5):
        batch, following = batches(position)
        again, _ = batches(position)
        assert all(
            (a is b is None) or a.equal(b) for a, b in zip(vars(batch).values(), vars(again).values(), strict=True)
        )
        for ids, mask, label in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
            text_ids = ids[mask == 1].tolist()
            example = next(e for e, row in zip(examples, rows, strict=True) if row.ids.tolist() == text_ids)
            assert label.tolist() == ["xy".index(example.label)]
            assert (ids[mask == 0] == tokenizer.special_id("pad")).all()
            seen.append(example.text)
        position = following
    assert position == (2, 0)
    assert sorted(seen[:5]) == sorted(seen[5:]) == sorted(texts)
    assert seen[:5] != seen[5:]


def test_rows_in_order_are_all_rows_once(tokenizer):
    examples = [LabelledText("một " * n, None, "x", "") for n in range(1, 6)]
    rows, labels = encode_labelled(tokenizer, examples, ("x", "y"), 20)
    batches = list(LabelledRows(rows, labels, batch_rows=2, seed=0, pad_id=0).in_order())
    assert [len(batch.labels) for batch in batches] == [2, 2, 1]
    assert [int(n) for batch in batches for n in batch.attention_mask.sum(1)] == [len(row) for row in rows]
    with pytest.raises(DataError, match="no rows"):
        LabelledRows([], [], 2, 0, 0)
