"""Catalogues of messages are read as gettext reads them, and damaged ones give nothing."""

import gettext
import io
import struct

import pytest

from lamoid.recipes.lab.messages import messages, read_catalogue

SAID = {
    "cannot open file %s for writing": "không mở được tập tin %s để ghi",
    "no such file or directory": "没有那个文件或目录",
    "the disk is nearly full now": "디스크가 거의 찼습니다",
}


def catalogue(pairs, order="<"):
    """A .mo file, written from the manual's description."""
    pairs = dict(sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **pairs}.items()))
    texts = [[key.encode() for key in pairs], [value.encode() for value in pairs.values()]]
    tables, body, start = b"", b"", 28 + 16 * len(pairs)
    for column in texts:
        for text in column:
            tables += struct.pack(f"{order}2I", len(text), start + len(body))
            body += text + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + tables + body


@pytest.mark.parametrize("order", ["<", ">"])
def test_read_as_gettext_reads_it(order):
    raw = catalogue(SAID, order)
    theirs = gettext.GNUTranslations(io.BytesIO(raw))
    read = read_catalogue(raw)
    assert read == {key: theirs.gettext(key) for key in SAID} == SAID


def test_plurals_and_contexts_are_left_out():
    assert read_catalogue(catalogue({"file\0files": "tập tin", "menu\x04open": "mở", **SAID})) == SAID


@pytest.mark.parametrize("damage", [b"", b"\xde\x12\x04\x95", b"PK\x03\x04" + bytes(100)])
def test_damaged_files_give_nothing(damage):
    assert read_catalogue(damage) == {}


def test_no_length_is_believed():
    raw = bytearray(catalogue(SAID))
    for place in range(4, len(raw) - 4, 4):
        damaged = raw[:place] + b"\xff\xff\xff\xff" + raw[place + 4 :]
        assert isinstance(read_catalogue(bytes(damaged)), dict)
    assert all(isinstance(read_catalogue(bytes(raw[:n])), dict) for n in range(len(raw)))


def test_only_what_all_languages_have_counts(tmp_path):
    said = {"vi": dict(SAID), "zh_CN": dict(SAID), "ko": dict(list(SAID.items())[:2])}
    for folder, pairs in said.items():
        (tmp_path / folder / "LC_MESSAGES").mkdir(parents=True)
        (tmp_path / folder / "LC_MESSAGES" / "program.mo").write_bytes(catalogue(pairs | {"short name": "x"}))
    found = messages((tmp_path,))
    assert found["English"] == sorted(list(SAID)[:2]) and found["Korean"] == [SAID[text] for text in found["English"]]
    assert set(map(len, found.values())) == {2} and list(found) == ["English", "Vietnamese", "Chinese", "Korean"]
    assert messages((tmp_path / "nowhere",)) == {name: [] for name in found}
