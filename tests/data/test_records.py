"""CSV, TSV and JSON lines as people have them, and what is said of bad ones."""

import gzip

import pytest

from lamoid.data.records import keep_good, read_records
from lamoid.errors import DataError


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.csv"):
        file = tmp_path / name
        raw = content if isinstance(content, bytes) else content.encode()
        file.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return file

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"một, ""hai""",x\n你好,y\n'),
        ("a.csv", '\ufefftext,label\r\n"một, ""hai""",x\r\n你好,y'),
        ("a.csv", '"text";"label"\n"một, ""hai""";x\n\n你好;y\n;\n'),
        ("a.tsv", 'text\tlabel\nmột, "hai"\tx\n你好\ty\n'),
        ("a.jsonl", '{"text": "một, \\"hai\\"", "label": "x"}\n\n{"text": "你好", "label": "y"}\n'),
        ("a.jsonl", '\ufeff{"text": "một, \\"hai\\"", "label": "x"}\n{"text": "你好", "label": "y"}'),
        ("a.csv.gz", 'text,label\n"một, ""hai""",x\n你好,y\n'),
    ],
)
def test_all_forms_give_the_same_records(write, name, content):
    records = [record for _, record in read_records(write(content, name))]
    assert records == [{"text": 'một, "hai"', "label": "x"}, {"text": "你好", "label": "y"}]


def test_a_record_over_several_lines_stands_where_it_begins(write):
    file = write('text,label\n"one\ntwo\n",x\nthree,y\n')
    assert [(where, record["text"]) for where, record in read_records(file)] == [
        (f"{file} line 2", "one\ntwo\n"),
        (f"{file} line 5", "three"),
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_texts_may_be_long(write, name):
    text = "dài " * 100_000
    ((_, record),) = read_records(write(f"text,label\n{text},x\n".replace(",", "\t" if name == "a.tsv" else ","), name))
    assert record == {"text": text, "label": "x"}


def test_quotes_in_a_tsv_are_characters(write):
    ((_, record),) = read_records(write('text\tlabel\n"unbalanced\tx\n', "a.tsv"))
    assert record == {"text": '"unbalanced', "label": "x"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,b,c\n", r"a\.csv line 2 has 3 columns, the first line 2: text, label"),
        ("a.csv", "text,label\na\n", r"line 2 has 1 columns"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl line 2 is not JSON"),
        ("a.jsonl", "[1]\n", r"line 1: expected a JSON object, got b'\[1\]"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"line 1 is not UTF-8: byte 0xFF at its offset 7"),
        ("a.jsonl", '{"a": 1}\n\ufeff{"a": 2}\n', r"line 2 begins with a byte-order mark"),
        ("a.jsonl", '{"a": "é"}'.encode("utf-16"), r"line 1 is not UTF-8: byte 0xFF at its offset 0"),
        ("a.jsonl", "[" * 100_000, r"line 1 is not JSON"),
    ],
)
def test_bad_records_are_given_in_their_place(write, name, content, message):
    errors = [record for _, record in read_records(write(content, name)) if isinstance(record, DataError)]
    assert len(errors) == 1
    with pytest.raises(DataError, match=message):
        raise errors[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,label\na,b\n"c,d\n', r"line 3 cannot be read as CSV: .*; is a quote missing"),
        ("a.csv", 'text,label\n"a"b,c\n', r"line 2 cannot be read as CSV"),
        ("a.csv", "", r"a\.csv is empty"),
        ("a.csv", "text,text\na,b\n", r"line 1: the columns are \['text', 'text'\]"),
        ("a.csv", "text,\na,b\n", r"each needs a name"),
        ("a.csv", b"text,label\n\xe9t\xe9,b\n", r"not UTF-8: byte 0xE9 at offset 11"),
        ("a.xlsx", "PK", r"a\.xlsx is of no known kind; expected one of \.csv"),
    ],
)
def test_unreadable_files_are_named(write, name, content, message):
    with pytest.raises(DataError, match=message):
        list(read_records(write(content, name)))


def test_bad_items_stop_or_are_kept_count_of():
    items = [1, DataError("f line 2 is bad"), 3, DataError("f line 4 is bad")]
    bad = []
    assert list(keep_good(items, bad, skip_bad=True)) == [1, 3]
    assert bad == ["f line 2 is bad", "f line 4 is bad"]
    with pytest.raises(DataError, match="f line 2 is bad; .* --skip-bad"):
        list(keep_good(items, [], skip_bad=False))
