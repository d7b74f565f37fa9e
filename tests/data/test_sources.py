"""Reading raw text: every kind of file, every way in which one can be damaged, and memory that does not grow."""

import gzip
import json
import lzma
import random
import subprocess
import sys

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lamoid.data.sources import BLOCK_BYTES, Source, find_sources, first_texts, read_passages
from lamoid.errors import DataError
from lamoid.tokenizers.bpe import train_bpe

PACKERS = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
MIXED = "Việt Nam 你好 😀 e\u0301 العربية\r\nline\rend\u2028\u0085\x0c\0"


@pytest.fixture(params=PACKERS.items(), ids=lambda item: item[0] or "plain")
def packer(request):
    return request.param


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def documents(*data):
    return ["".join(blocks) for source in find_sources(data) for blocks in source.documents()]


def noise(n_bytes):
    """Letters that hardly compress, the same every time."""
    return np.random.default_rng(0).integers(97, 120, n_bytes, dtype=np.uint8).tobytes()


def test_a_file_is_read_as_it_is_whatever_its_name(tmp_path, packer):
    suffix, pack = packer
    file = write(tmp_path / f"book.weird{suffix}", pack(MIXED.encode()))
    assert documents(file) == [MIXED]


def test_a_folder_is_searched_for_text(tmp_path):
    for name in ("b.txt", "a.md", "deep/er/c.py", "d.txt.gz", "upper.TXT", "image.png", "model.safetensors", "noname"):
        packed = gzip.compress(name.encode()) if name.endswith(".gz") else name
        write(tmp_path / name, packed)
    write(tmp_path / "e.jsonl", '{"text": "e"}\n')
    assert documents(str(tmp_path)) == ["a.md", "b.txt", "d.txt.gz", "deep/er/c.py", "e", "upper.TXT"]


def test_globs_are_sorted_and_each_file_counts_once(tmp_path):
    for name in ("1.txt", "2.txt", "sub/3.txt", "x.log"):
        write(tmp_path / name, name)
    assert documents(f"{tmp_path}/*.txt") == ["1.txt", "2.txt"]
    assert documents(f"{tmp_path}/**/*.txt") == ["1.txt", "2.txt", "sub/3.txt"]
    assert documents(f"{tmp_path}/2.txt", str(tmp_path), f"{tmp_path}/*.txt") == [
        "2.txt",
        "1.txt",
        "sub/3.txt",
        "x.log",
    ]


def test_a_name_with_brackets_is_a_file_first(tmp_path):
    assert documents(write(tmp_path / "a[1].txt", "it"), write(tmp_path / "a1.txt", "other")) == ["it", "other"]


def test_what_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\*\.txt does not exist .*python-code.*python-docs"):
        find_sources([f"{tmp_path}/nothing*.txt"])
    with pytest.raises(DataError, match="pythondocs does not exist"):
        find_sources(["pythondocs"])
    with pytest.raises(DataError, match="no text in"):
        find_sources([])


def test_a_folder_without_text_is_named(tmp_path):
    write(tmp_path / "empty" / "picture.png", b"\x89PNG")
    with pytest.raises(DataError, match=r"empty holds no text file; looked for .*\.txt"):
        find_sources([str(tmp_path / "empty")])


def test_json_lines_are_a_document_each(tmp_path, packer):
    suffix, pack = packer
    lines = [MIXED, "", "b", "\U0010ffff"]
    content = "\n \n".join(json.dumps({"text": text, "id": 1}, ensure_ascii=len(text) < 2) for text in lines)
    for name in ("a.jsonl", "a.NDJSON"):
        assert documents(write(tmp_path / (name + suffix), pack(content.encode()))) == lines


def test_json_lines_need_no_last_line_end_and_may_be_longer_than_a_block(tmp_path):
    long = "x" * (BLOCK_BYTES + 10)
    file = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\r\n{{"text": "{long}"}}\n{{"text": "c"}}')
    assert documents(file) == ["a", long, "c"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path, packer, name):
    suffix, pack = packer
    content = '{"text": "\ufeffa"}' if name.endswith("l") else "\ufeffa"
    file = write(tmp_path / (name + suffix), pack(b"\xef\xbb\xbf" + content.encode()))
    assert documents(file) == ["\ufeffa"]  # the first of two is the mark


def test_a_byte_order_mark_cut_in_two_is_no_text_either(tmp_path):
    frames = (zstandard.compress(part) for part in (b"\xef", b"\xbb\xbf", b"a"))
    assert documents(write(tmp_path / "a.txt.zst", b"".join(frames))) == ["a"]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_files_packed_in_parts_are_read_to_their_end(tmp_path, pack):
    suffix = {gzip.compress: ".gz", lzma.compress: ".xz", zstandard.compress: ".zst"}[pack]
    file = write(tmp_path / f"a.txt{suffix}", pack(b"one ") + pack(noise(BLOCK_BYTES + 5)) + pack(b" two"))
    assert documents(file) == ["one " + noise(BLOCK_BYTES + 5).decode() + " two"]


BAD = {"lone continuation": b"\x80", "overlong": b"\xc0\xaf", "surrogate": b"\xed\xa0\x80", "latin-1": b"\xe9t\xe9"}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("offset", [0, 1, 1000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 7])
def test_what_is_not_utf_8_is_named_with_its_offset(tmp_path, bad, offset):
    file = write(tmp_path / "a.txt", b"x" * offset + bad + b"y" * 10)
    with pytest.raises(DataError, match=rf"a\.txt is not UTF-8: byte 0x{bad[0]:02X} at offset {offset};"):
        documents(file)


@pytest.mark.parametrize("back", [1, 2, 3])
def test_a_bad_character_that_begins_before_a_block_is_named_with_its_own_offset(tmp_path, packer, back):
    """The first bytes of 😀 end one block; the next block does not go on with it."""
    suffix, pack = packer
    offset = BLOCK_BYTES - back
    file = write(tmp_path / f"a.txt{suffix}", pack(b"x" * offset + "😀".encode()[:back] + b"yyy"))
    with pytest.raises(DataError, match=rf"is not UTF-8: byte 0xF0 at offset {offset};"):
        documents(file)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("offset", [0, 5, BLOCK_BYTES - 2, BLOCK_BYTES, BLOCK_BYTES + 9])
def test_a_text_that_ends_inside_a_character_is_refused(tmp_path, packer, offset, length):
    suffix, pack = packer
    file = write(tmp_path / f"a.txt{suffix}", pack(b"x" * offset + "😀".encode()[:length]))
    with pytest.raises(DataError, match=rf"is not UTF-8: byte 0xF0 at offset {offset};"):
        documents(file)


@pytest.mark.parametrize("shift", range(4))
def test_characters_across_blocks_are_whole(tmp_path, packer, shift):
    suffix, pack = packer
    text = "x" * shift + "😀" * (BLOCK_BYTES // 4 + 100)
    assert documents(write(tmp_path / f"a.txt{suffix}", pack(text.encode()))) == [text]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_truncated_compressed_file_is_an_error_not_a_shorter_text(tmp_path, suffix, share, name):
    content = b"".join(b'{"text": "%s"}\n' % noise(120_000) for _ in range(10))
    packed = PACKERS[suffix](noise(1_200_000) if name == "a.txt" else content)
    file = write(tmp_path / (name + suffix), packed[: int(len(packed) * share)])
    with pytest.raises(DataError, match=rf"{name}{suffix} cannot be read: .*[Cc]ompressed file ended"):
        documents(file)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("at", [0, 0.01, 0.3, 0.6, 0.99])
def test_a_corrupt_compressed_file_is_an_error(tmp_path, suffix, at):
    packed = bytearray(PACKERS[suffix](noise(300_000)))
    if suffix == ".zst":  # the only one that has no checksum unless asked for
        packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(noise(300_000)))
    for i in range(8):
        packed[int(at * (len(packed) - 12)) + i] ^= 0xA5
    with pytest.raises(DataError, match=rf"a\.txt{suffix} cannot be read: "):
        documents(write(tmp_path / f"a.txt{suffix}", bytes(packed)))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_name_that_promises_compression_is_believed(tmp_path, suffix):
    with pytest.raises(DataError, match=rf"a\.txt{suffix} cannot be read: "):
        documents(write(tmp_path / f"a.txt{suffix}", "plain text"))


BAD_LINES = {
    "no JSON": b"{text: 1}",
    "half": b'{"text": "a',
    "array": b'["text"]',
    "string": b'"text"',
    "null": b"null",
    "no text": b'{"texts": "a"}',
    "text is a number": b'{"text": 3}',
    "text is a list": b'{"text": ["a"]}',
    "lone surrogate": rb'{"text": "a\ud800b"}',
    "lone low surrogate": rb'{"text": "\udc00"}',
    "not UTF-8": b'{"text": "\xff"}',
    "surrogate as bytes": b'{"text": "\xed\xa0\x80"}',
    "deep": b"[" * 100_000,
    "long number": b'{"text": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES.keys())
@pytest.mark.parametrize("number", [1, 4])
def test_a_bad_json_line_is_named_with_its_number(tmp_path, packer, bad, number):
    suffix, pack = packer
    good = [b'{"text": "a"}', b"", b'{"text": "c"}']  # empty lines count
    lines = [*good[: number - 1], bad, b'{"text": "z"}']
    file = write(tmp_path / f"a.jsonl{suffix}", pack(b"\n".join(lines)))
    with pytest.raises(DataError, match=rf"a\.jsonl{suffix} line {number}\b") as caught:
        documents(file)
    assert len(str(caught.value)) < 400


def test_a_surrogate_pair_is_a_character(tmp_path):
    assert documents(write(tmp_path / "a.jsonl", rb'{"text": "\ud83d\ude00"}')) == ["😀"]


def test_a_lone_surrogate_is_named_with_its_position(tmp_path):
    with pytest.raises(DataError, match="lone surrogate at character 2 of the text"):
        documents(write(tmp_path / "a.jsonl", rb'{"text": "ab\ud800"}'))


def one_source(*texts):
    return Source("a", sum(len(t.encode()) for t in texts), lambda: iter([iter(texts)]), lambda: "")


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    blocks=st.lists(st.text(st.sampled_from("ab \n。.你😀\r"), max_size=60), max_size=5),
    passage_bytes=st.integers(1, 40),
)
def test_the_passages_of_a_document_joined_are_the_document(blocks, passage_bytes):
    passages = list(read_passages(one_source(*blocks), passage_bytes))
    text = "".join(blocks)
    assert "".join(p.text for p in passages) == text
    assert all(0 < len(p.text) <= passage_bytes for p in passages)
    assert [p.starts for p in passages] == [True] * bool(text) + [False] * (len(passages) - 1)
    assert [p.ends for p in passages] == [False] * (len(passages) - 1) + [True] * bool(text)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(text=st.text(min_size=1), passage_bytes=st.integers(1, 20))
def test_the_passages_of_any_text_joined_are_the_text(text, passage_bytes):
    assert "".join(p.text for p in read_passages(one_source(text), passage_bytes)) == text


@pytest.mark.parametrize("separator", ["\n\n", "\n", "。", ". ", " "])
def test_passages_end_where_a_paragraph_line_or_sentence_does(separator):
    text = separator.join("x" * 7 for _ in range(20))
    passages = [p.text for p in read_passages(one_source(text), 20)]
    assert all(p.endswith(separator) for p in passages[:-1])
    assert len(passages) > 5


def test_documents_of_one_file_are_cut_apart(tmp_path):
    file = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in ("one", "", "two three")))
    passages = [(p.text, p.starts, p.ends) for p in read_passages(find_sources([file])[0], 5)]
    assert passages == [("one", True, True), ("two ", True, False), ("three", False, True)]


@pytest.mark.parametrize(("n_files", "expected"), [(1, 64), (3, 63), (64, 64), (100, 64)])
def test_the_first_texts_come_from_all_sources_alike(tmp_path, n_files, expected):
    for number in range(n_files):
        write(tmp_path / f"{number:03}.txt", f"{number:03} " + "x" * 32_768 * (64 // n_files + 1))
    texts = list(first_texts(find_sources([str(tmp_path)])))
    assert len(texts) == expected
    assert sum(text.startswith("0") for text in texts) == min(n_files, 64)


def test_the_digest_is_that_of_the_file(tmp_path):
    a, b, c = (find_sources([write(tmp_path / n, t)])[0] for n, t in (("a", "same"), ("b", "same"), ("c", "other")))
    assert a.digest() == b.digest() != c.digest()
    assert (a.n_bytes, a.name) == (4, str(tmp_path / "a"))


@pytest.mark.parametrize(("name", "words"), [("python-docs", "lists"), ("python-code", "def ")])
def test_the_text_that_comes_with_python(name, words):
    sources = find_sources([name])
    texts = documents(name)
    assert sum(len(text.encode()) for text in texts) == sum(source.n_bytes for source in sources) > 1_000_000
    assert sum(words in text for text in texts) > 20
    assert all(text for text in texts[:100])
    assert [source.digest() for source in sources] == [source.digest() for source in find_sources([name])]


MEMORY = """
import sys
from pathlib import Path

def peak_mib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

from lamoid.data.corpus import survey
from lamoid.data.packed import write_tokens
from lamoid.data.sources import find_sources
from lamoid.tokenizers.load import load_tokenizer

def measure(file):
    corpus = survey(find_sources([file]))
    n_tokens = write_tokens(Path(sys.argv[4]), corpus.training(), tokenizer)
    assert Path(sys.argv[4]).stat().st_size == 2 * n_tokens
    n_heldout = sum(len(p.text.encode()) for p in corpus.heldout)
    assert 0 < n_heldout < 4_000_000
    assert corpus.n_bytes + n_heldout + corpus.n_repeated_bytes == Path(file).stat().st_size
    assert corpus.n_repeated_bytes == 0
    return peak_mib()

tokenizer = load_tokenizer(sys.argv[3])
before = peak_mib()
small = measure(sys.argv[1])
print(small - before, measure(sys.argv[2]) - small)
"""


def big_text(path, kind, n_bytes):
    """Lines of English-like words, or Chinese that never ends a line; nothing of it repeats."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(5000)]
    n_written = number = 0
    with path.open("w", encoding="utf-8") as out:
        while n_written < n_bytes:
            number += 1
            if kind == "english":
                line = " ".join(draw.choices(words, k=60))
                text = f"{number} {line}" + ("\n\n" if number % 3 == 0 else "\n")
            else:
                text = f"第{number}" + "".join(map(chr, draw.choices(range(0x4E00, 0x5A00), k=120))) + "。"
            out.write(text)
            n_written += len(text.encode())


@pytest.mark.parametrize(
    ("kind", "n_bytes", "most_mib"),
    [("english", 25_000_000, 16), ("chinese without a line end", 20_000_000, 8)],  # kept as str: 19 and 9.5 MiB
)
def test_a_large_file_needs_little_memory(tmp_path, kind, n_bytes, most_mib):
    """Surveyed and tokenized: 5 MB within 120 MiB above the imports, and 25 MB within 16 MiB above that.

    What grows with the text: 8 bytes for each passage of about 32 K characters and for each paragraph of 64
    characters or more, times about four while `np.unique` sorts them: 1 GB in paragraphs of 1 KB takes 32 MB,
    in paragraphs of 66 bytes (the worst case) 480 MB. All else has a bound: blocks of 1 MB, groups of
    1 MB for the tokenizer, 2 MB held out and their lines.
    """
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    big_text(small, kind, 5_000_000)
    big_text(large, kind, n_bytes)
    with small.open(encoding="utf-8") as file:
        tokenizer = train_bpe([file.read(100_000)], 1000)
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", MEMORY, small, large, tmp_path, tmp_path / "tokens.bin"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    small_mib, growth_mib = map(float, output.split())
    assert small_mib < 120
    assert growth_mib < most_mib
