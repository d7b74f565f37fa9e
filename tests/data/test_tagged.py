"""Tags of words against transformers' alignment of words and tokens, in several scripts."""

import json

import pytest
import transformers

from lamoid.data.padded import LabelledRows
from lamoid.data.tagged import TaggedText, encode_tagged, first_tokens, frame_words, read_tagged
from lamoid.errors import DataError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.gpt2 import train_roberta
from lamoid.tokenizers.load import load_tokenizer

TEXTS = [
    ["Nguyễn", "Ái", "Quốc", "sống", "ở", "Paris", "."],
    ["李", "白", "在", "长安", "。"],
    ["김소월은", "정주에서", "태어났다", "."],
    ["unbelievableness", "U.S.A.", "3.14", "e\u0301te\u0301", "😀👍🏽", "ภาษาไทย"],
    ["a"],
    ["(", "a-b", ")", "don't", "##x", "[MASK]"],
    ["x"] * 300,
]


@pytest.fixture
def write(tmp_path):
    def write(content, name):
        file = tmp_path / name
        file.write_text(content, encoding="utf-8")
        return str(file)

    return write


@pytest.fixture(scope="module")
def bert(minilm):
    return load_tokenizer(minilm), transformers.AutoTokenizer.from_pretrained(minilm)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    ours, folder = train_roberta([" ".join(words) for words in TEXTS] * 2, 400), tmp_path_factory.mktemp("roberta")
    for name, content in ours.files().items():
        (folder / name).write_bytes(content)
    return ours, transformers.RobertaTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), add_prefix_space=True
    )


@pytest.mark.parametrize("max_tokens", [4, 9, 12, 512])
def test_first_tokens_are_those_of_transformers(bert, max_tokens):
    ours, twin = bert
    options = {"is_split_into_words": True, "truncation": True, "max_length": max_tokens, "split_special_tokens": True}
    for words, row in zip(TEXTS, frame_words(ours, TEXTS, max_tokens), strict=True):
        expected = twin(words, **options)
        assert row.ids.tolist() == expected["input_ids"]
        owners = expected.word_ids()
        assert first_tokens(row, words) == [owners.index(i) if i in owners else None for i in range(len(words))]


def test_first_tokens_of_byte_level_bpe_are_those_of_transformers(roberta):
    """transformers puts a space in front of the first word; here a text has none there."""
    ours, twin = roberta
    for words, row in zip(TEXTS, frame_words(ours, TEXTS, 512), strict=True):
        expected = twin(["x", *words], is_split_into_words=True, split_special_tokens=True)
        owners = expected.word_ids()
        (row,) = frame_words(ours, [["x", *words]], 512)
        assert row.ids.tolist()[2:] == expected["input_ids"][-len(row) + 2 :]
        shift = len(expected["input_ids"]) - len(row)
        assert first_tokens(row, ["x", *words])[1:] == [owners.index(i + 1) - shift for i in range(len(words))]


def test_a_label_stands_at_the_first_token_alone(bert):
    ours, _ = bert
    example = TaggedText(("unbelievableness", "李", "白"), ("B", "I", "O"), "")
    ((row,), (labels,)) = encode_tagged(ours, [example], ("O", "B", "I"), 20)
    n_first = len(ours.encode("unbelievableness", add_special_tokens=False))
    assert n_first > 1
    assert labels == [IGNORED, 1, *[IGNORED] * (n_first - 1), 2, 0, IGNORED]
    assert len(row) == len(labels)


def test_words_that_leave_no_token_and_words_that_are_cut_have_no_place(bert):
    ours, _ = bert
    words = ["\u200b", "a", "\ufe0f\u200d", "b", "c"]
    (row,) = frame_words(ours, [words], 4)
    places = first_tokens(row, words)
    assert places[0] is None and places[1] == 1 and places[-1] is None
    ((_,), (labels,)) = encode_tagged(ours, [TaggedText(tuple(words), tuple("OBOOO"), "")], ("O", "B"), 4)
    assert labels[1] == 1


def test_batches_pad_labels_with_ignored(bert):
    ours, _ = bert
    examples = [TaggedText(tuple(words), ("O",) * len(words), "") for words in TEXTS[:4]]
    rows, labels = encode_tagged(ours, examples, ("O",), 64)
    batch, _ = LabelledRows(rows, labels, 4, 0, ours.special_id("pad"))((0, 0))
    assert batch.labels.shape == batch.input_ids.shape
    assert (batch.labels[batch.attention_mask == 0] == IGNORED).all()
    assert int((batch.labels == 0).sum()) == sum(map(len, TEXTS[:4]))


COLUMNS = "-DOCSTART- -X- O O\n\nNguyễn NNP B-PER\nDu NNP I-PER\n\n李\tB-PER\n白\tI-PER\n。\tO\n\n\nend . O"


def test_columns_and_json_lines_are_read(write):
    said = []
    found = read_tagged([write(COLUMNS, "a.conll")], notify=said.append)
    assert [(e.words, e.tags) for e in found.examples] == [
        (("Nguyễn", "Du"), ("B-PER", "I-PER")),
        (("李", "白", "。"), ("B-PER", "I-PER", "O")),
        (("end",), ("O",)),
    ]
    assert found.tag_names == ("O", "B-PER", "I-PER")
    assert found.examples[1].source.endswith("a.conll line 6")
    assert "words and tags in columns, 3 examples" in said[0]
    records = [{"tokens": e.words, "ner_tags": e.tags} for e in found.examples]
    same = read_tagged([write("".join(json.dumps(r) + "\n" for r in records), "a.jsonl")])
    assert [(e.words, e.tags) for e in same.examples] == [(e.words, e.tags) for e in found.examples]


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(write):
    same = read_tagged([write("\ufeff" + COLUMNS.replace("\n", "\r\n"), "a.txt")])
    assert [e.words for e in same.examples] == [("Nguyễn", "Du"), ("李", "白", "。"), ("end",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "a O\nb\n\nc B\nd O\n", r"a\.conll line 2: expected a word and its tag, got 'b'"),
        ("a.conll", "\n\na O\nb\t\n\nc B\nd O\n", r"a\.conll line 4: expected a word and its tag"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}\n', r"line 1 has 1 tokens but 2 tags"),
        ("a.jsonl", '{"words": ["a"]}\n', r'line 1: expected lists "tokens" and "tags", it has words'),
        ("a.jsonl", '{"tokens": [], "tags": []}\n', r"line 1: expected lists"),
        ("a.jsonl", '{"tokens": ["a", " "], "tags": [1, 2]}\n', r"line 1: a token is empty"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [null]}\n', r"line 1: a tag must be one label"),
        ("a.jsonl", '{"tokens": ["\\ud800"], "tags": ["O"]}\n', r"line 1: a token has a lone surrogate"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["\\ud800"]}\n', r"line 1: a tag has a lone surrogate"),
        ("a.jsonl", "{\n", r"line 1 is not JSON"),
    ],
)
def test_bad_texts_are_named_or_skipped(write, name, content, message):
    if name.endswith("jsonl"):
        content += '{"tokens": ["c", "d"], "tags": ["B", "O"]}\n'
    file = write(content, name)
    with pytest.raises(DataError, match=message + ".*--skip-bad"):
        read_tagged([file])
    found = read_tagged([file], skip_bad=True)
    assert [e.words for e in found.examples] == [("c", "d")] and len(found.bad) == 1


def test_files_without_tags_are_refused(write):
    with pytest.raises(DataError, match=r"0 texts with the tags \[\]"):
        read_tagged([write("\n\n", "a.txt")])
    with pytest.raises(DataError, match=r"1 texts with the tags \['O'\]"):
        read_tagged([write("a O\n", "a.txt")])
