"""SentencePiece BPE against the library: ids, texts, files, and what is wrong with them."""

import contextlib
import io
import struct
import sys
from pydoc_data import topics

import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lamoid.errors import DataError, MissingExtra, UsageError
from lamoid.tokenizers import vocabulary
from lamoid.tokenizers.bpe import merge_steps
from lamoid.tokenizers.load import load_tokenizer
from lamoid.tokenizers.sentencepiece import from_pieces, read_sentencepiece, train_sentencepiece
from lamoid.tokenizers.tokenizer import Tokenizer

VIETNAMESE = "Trăm năm trong cõi người ta, chữ tài chữ mệnh khéo là ghét nhau. Đường phố Hà Nội bán phở và bánh mì."
VIETNAMESE_NFD = "Tie\u0302\u0301ng Vie\u0323\u0302t có nhiều da\u0302\u0301u thanh."
CHINESE = "今天天气很好，我们去公园散步吧。语言模型可以理解文本，也可以生成文本！"
KOREAN = "안녕하세요 세계! 오늘은 날씨가 좋아서 공원에서 산책했습니다."
TEXTS = [*topics.topics.values(), *40 * [VIETNAMESE, VIETNAMESE_NFD, CHINESE, KOREAN]]

STRESS = [
    "",
    "a",
    " ",
    "  ",
    " leading",
    "trailing ",
    "  two   three    four          ten",
    "0 12 123 1234567890 3.14 ٣٤٥ Ⅷ ½",
    "one\ntwo\r\nthree\n\n\n  four\n",
    "\n",
    "\ttab\t\t two",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # note\n\n\nclass A(B): ...\n",
    "👨‍👩‍👧‍👦 👍🏽 🏳️‍🌈 1️⃣",
    "e\u0301 o\u0302\u0323 Z\u0351\u036b\u0343",
    VIETNAMESE,
    VIETNAMESE_NFD,
    CHINESE,
    KOREAN,
    "مرحبا بالعالم، اللُّغَةُ",
    "𠮷野家 ภาษาไทย हिन्दी",
    "\0",
    "a\0b\x01\x7f",
    "<s>hello</s> <unk> <pad>",
    "<s>",
    "<0x41><0x0A>",
    "▁",
    "a▁b ▁ ▁▁c▁",
    "\ufffd \ufeff\u2028\u00a0\u3000",
    "\U0010ffff\uffff",
    "▅",
]


def train_natively(**settings):
    """A file made by the library itself, with Llama 2's settings unless told otherwise."""
    llama_2 = {
        "vocab_size": 2000,
        "character_coverage": 0.99995,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "byte_fallback": True,
    }
    file = io.BytesIO()
    lines = iter([line for text in TEXTS for line in text.split("\n")])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=file,
        **{"model_type": "bpe", "minloglevel": 2, "num_threads": 1, **llama_2, **settings},
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def llama_2():
    return train_natively()


@pytest.fixture(scope="module")
def trained():
    return train_sentencepiece(TEXTS, 2000)


def library(data):
    return sentencepiece.SentencePieceProcessor(model_proto=data)


# Reading: the same ids and texts as the library


KINDS = {
    "Llama 2": {},
    "no prefix": {"add_dummy_prefix": False},
    "spaces removed": {"remove_extra_whitespaces": True},
    "spaces removed, no prefix": {"remove_extra_whitespaces": True, "add_dummy_prefix": False},
    "pieces across words": {"split_by_whitespace": False, "split_by_unicode_script": False, "vocab_size": 6000},
    "no bytes": {"byte_fallback": False, "character_coverage": 0.999},
    "user-defined": {"user_defined_symbols": ["<sep>", "x=", "th", "한국"], "pad_id": 3},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_ids_and_texts_are_those_of_the_library(settings):
    data = train_natively(**settings)
    ours, theirs = read_sentencepiece(data), library(data)
    assert ours.vocab_size == theirs.vocab_size()
    documents = [text[:3000] for text in list(topics.topics.values())[::9]]
    for text in [*STRESS, *documents, "a<sep>b <sep> x=1 the x=", "<sep> first", "한국어"]:
        ids = theirs.encode(text, add_bos=True)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
    assert ours.encode("a", add_special_tokens=False) == theirs.encode("a")


ALPHABET = st.one_of(
    st.characters(exclude_categories=["Cs"]), st.sampled_from("  ▁\n\t01ath<s>/=-_đế今한\u0302\u0301\u200d")
)


@settings(max_examples=400, deadline=None)
@given(text=st.text(ALPHABET, max_size=60))
def test_any_text_has_the_ids_of_the_library(llama_2, text):
    ours, theirs = _once(llama_2)
    ids = theirs.encode(text)
    assert ours.encode(text) == [1, *ids]
    assert ours.decode(ids) == theirs.decode(ids)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(1, 1999), st.integers(3, 258)), max_size=12))
def test_any_ids_have_the_text_of_the_library(llama_2, ids):
    """Stray bytes included. One difference: a space spelled <0x20> at the very start, which no encoder writes, goes."""
    ours, theirs = _once(llama_2)
    ids = [i for i in ids if i != theirs.piece_to_id("<0x20>")]
    assert ours.decode(ids) == theirs.decode(ids)


_CACHE = {}


def _once(data):
    if data not in _CACHE:
        _CACHE[data] = read_sentencepiece(data), library(data)
    return _CACHE[data]


def test_stray_bytes_leave_the_characters_beside_them(llama_2):
    ours, theirs = _once(llama_2)
    ids = [theirs.piece_to_id(f"<0x{byte:02X}>") for byte in "🦙".encode() + b"\xff\xf0\x9f" + "é".encode()]
    assert ours.decode(ids) == theirs.decode(ids) == "🦙\ufffd\ufffd\ufffdé"


def test_special_tokens_have_their_places_and_user_text_cannot_reach_them(llama_2):
    ours = read_sentencepiece(llama_2)
    assert ours.specials == {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
    assert [ours.special_id(role) for role in ("unk", "bos", "eos", "pad")] == [0, 1, 2, None]
    assert not {0, 1, 2} & set(ours.encode("<s></s><unk> </s> <s>", add_special_tokens=False))
    assert ours.encode("a", "b") == [1, *library(llama_2).encode("a"), 1, *library(llama_2).encode("b")]
    assert read_sentencepiece(llama_2, add_bos=False, add_eos=True).encode("a")[-1] == 2


@pytest.mark.parametrize("text", STRESS)
def test_merge_steps_end_in_the_tokens(llama_2, trained, text):
    for tokenizer in (_once(llama_2)[0], trained):
        last = [
            symbol
            for start, merges in merge_steps(tokenizer, text)
            for symbol in (merges[-1].symbols if merges else start)
        ]
        assert [tokenizer.backend.token_to_id(symbol) for symbol in last] == tokenizer.encode(text)[1:]


# Training: every text comes back


def test_training_gives_the_vocabulary_of_llama(trained):
    theirs = library(trained.native["tokenizer.model"])
    assert trained.vocab_size == theirs.vocab_size() == 2000
    assert [theirs.id_to_piece(i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert all(
        len(theirs.id_to_piece(i)) == 1 for i in range(259, 2000) if any(map(str.isdigit, theirs.id_to_piece(i)))
    )
    padded = train_sentencepiece(TEXTS[:20], 600, pad=True)
    assert padded.special_id("pad") == 3
    assert padded.encode_batch(["a", "a b c d"]).ids[0, -1] == 3


@pytest.mark.parametrize("text", STRESS)
def test_stress_comes_back(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert library(trained.native["tokenizer.model"]).decode(ids) == text


_TRAINED = {}


@settings(max_examples=400, deadline=None)
@given(text=st.text(ALPHABET, max_size=80))
def test_any_text_comes_back(trained, text):
    theirs = _TRAINED.setdefault("library", library(trained.native["tokenizer.model"]))
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    if "▁" not in text:  # which the library takes for a space
        assert ids == [1, *theirs.encode(text)]


def test_training_twice_gives_the_same(trained):
    again = train_sentencepiece(iter(TEXTS), 2000)
    assert again.files() == trained.files()
    assert again.fingerprint() == trained.fingerprint()
    assert (
        train_sentencepiece(TEXTS, 1000, max_lines=500).files()
        == train_sentencepiece(TEXTS, 1000, max_lines=500).files()
    )
    assert (
        train_sentencepiece(TEXTS, 1000, max_lines=500).files()
        != train_sentencepiece(TEXTS, 1000, max_lines=400).files()
    )


def test_long_lines_are_learned_from():
    """The library would leave out a line of more than 4192 bytes."""
    assert train_sentencepiece([" ".join(TEXTS[:30]).replace("\n", " ")], 800).vocab_size == 800


def test_sizes_that_cannot_be_learned_are_refused():
    with pytest.raises(UsageError, match=r"vocab_size 100000 .* Vocabulary size too high"):
        train_sentencepiece(TEXTS[:5], 100_000)
    with pytest.raises(UsageError, match=r"vocab_size 100 .* Vocabulary size is smaller"):
        train_sentencepiece(TEXTS[:5], 100)
    with pytest.raises(UsageError, match="no line to learn from"):
        train_sentencepiece([], 1000)
    with pytest.raises(UsageError, match="max_lines is 0"):
        train_sentencepiece(TEXTS, 1000, max_lines=0)


def test_without_the_library_training_names_the_extra_and_reading_works(monkeypatch, llama_2):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lamoid\[sentencepiece\]'"):
        train_sentencepiece(TEXTS, 1000)
    assert read_sentencepiece(llama_2).decode([1]) == ""


# Files


def write(directory, files):
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def test_the_native_file_goes_round_unchanged(llama_2, tmp_path):
    native = write(tmp_path, {"tokenizer.model": llama_2})
    first = load_tokenizer(native)
    assert first.files()["tokenizer.model"] == llama_2
    assert load_tokenizer(native / "tokenizer.model").files() == first.files()
    again = load_tokenizer(write(tmp_path, first.files()))  # with tokenizer.json beside it now
    assert again.files() == first.files()
    assert again.fingerprint() == first.fingerprint()
    for text in STRESS:
        assert again.encode(text) == first.encode(text)
        assert again.decode(again.encode(text)) == first.decode(first.encode(text))


def test_the_configuration_beside_it_counts(llama_2, tmp_path):
    config = b'{"add_bos_token": false, "add_eos_token": true, "pad_token": {"content": "</s>"}}'
    tokenizer = load_tokenizer(write(tmp_path, {"tokenizer.model": llama_2, "tokenizer_config.json": config}))
    assert tokenizer.encode("a") == [*library(llama_2).encode("a"), 2]
    assert tokenizer.special_id("pad") == 2


@pytest.mark.parametrize("kind", ["loaded", "trained"])
def test_transformers_gives_the_same_ids(kind, llama_2, trained, tmp_path):
    ours = read_sentencepiece(llama_2) if kind == "loaded" else trained
    theirs = transformers.AutoTokenizer.from_pretrained(write(tmp_path, ours.files()))
    for text in STRESS:
        ids = ours.encode(text)
        if not any(token in text for token in ours.specials.values()):  # which transformers reads as special
            assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == ours.decode(ids)


def test_gguf_lists_make_the_same_tokenizer(llama_2):
    theirs = library(llama_2)
    every = range(theirs.vocab_size())
    kinds = [(theirs.is_unknown, 2), (theirs.is_control, 3), (theirs.is_unused, 5), (theirs.is_byte, 6)]
    ours = from_pieces(
        [theirs.id_to_piece(i) for i in every],
        [theirs.get_score(i) for i in every],
        [next((number for is_it, number in kinds if is_it(i)), 1) for i in every],
        special_ids={"unk": 0, "bos": 1, "eos": 2},
    )
    assert ours.fingerprint() == read_sentencepiece(llama_2).fingerprint()
    assert list(ours.files()) == ["tokenizer.json", "tokenizer_config.json"]


# What is wrong with a file


def varint(value):
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field, value):
    return varint(field << 3) + varint(value)


def piece(token, score=0.0, kind=1):
    return message(1, message(1, token) + b"\x15" + struct.pack("<f", score) + number(3, kind))


BPE = message(2, number(3, 2))
START = piece(b"<unk>", kind=2) + piece(b"<s>", kind=3) + piece(b"</s>", kind=3)

FAULTS = {
    "empty": (b"", "type 'Unigram'"),
    "no pieces": (BPE, "0 tokens"),
    "Unigram": (START + message(2, number(3, 1)), "type 'Unigram'; only BPE"),
    "words": (START + message(2, number(3, 3)), "type 'word'"),
    "other type": (START + message(2, number(3, 77)), "type 77"),
    "type as text": (START + message(2, message(3, b"bpe")), "only BPE"),
    "normalization": (START + BPE + message(3, message(1, b"nmt_nfkc") + message(2, b"\x01")), "nmt_nfkc"),
    "spaces behind": (START + message(2, number(3, 2) + number(24, 1)), "spaces"),
    "spaces as they are": (START + BPE + message(3, number(5, 0)), "spaces"),
    "twice": (START + piece(b"a") + piece(b"a") + BPE, "tokens 3 and 4 are both 'a'"),
    "empty piece": (START + piece(b"") + BPE, "token 3 has length 0"),
    "long piece": (START + piece(b"a" * 1025) + BPE, "token 3 has length 1025"),
    "not UTF-8": (START + piece(b"\xff") + BPE, "where a text belongs"),
    "a number for a piece": (START + number(1, 7) + BPE, "where a message belongs"),
    "a number for a name": (START + message(1, number(1, 7)) + BPE, "where a text belongs"),
    "not a number": (START + piece(b"a", float("nan")) + BPE, "scores"),
    "unknown kind": (START + piece(b"a", kind=9) + BPE, "token 3 has type 9"),
    "kind beyond 64 bits": (START + piece(b"a", kind=2**69) + BPE, "token 3 has type"),
    "score of 8 bytes": (START + message(1, message(1, b"a") + b"\x11" + bytes(8)) + BPE, "piece 3 .* malformed"),
    "some bytes": (START + piece(b"<0x41>", kind=6) + BPE, "1 byte pieces"),
    "nothing for unknowns": (piece(b"a") + BPE, "neither byte pieces nor an unknown piece"),
    "special letter": (START + piece(b"a", kind=3) + BPE, "single character"),
    "group": (START + b"\x0b" + BPE, "wire type 3"),
    "endless number": (START + b"\xff" * 11, "more than 64 bits"),
    "long field": (START + b"\x0a\xff\xff\xff\x7f", "ends early"),
    "text": (b"this is no tokenizer at all", "."),
}


@pytest.mark.parametrize(("data", "reason"), FAULTS.values(), ids=FAULTS.keys())
def test_a_bad_file_is_refused(data, reason):
    with pytest.raises(DataError, match=reason) as caught:
        read_sentencepiece(data)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_small_good_file_is_read():
    data = START + piece("▁".encode()) + piece(b"a") + piece("▁a".encode(), -1) + BPE + number(99, 5)
    assert read_sentencepiece(data).encode("aa") == [1, 5, 4] == library(data).encode("aa", add_bos=True)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_noise_is_refused(data):
    for content in (data, START + data, START + data + BPE):
        with contextlib.suppress(DataError):
            assert isinstance(read_sentencepiece(content), Tokenizer)


def test_a_truncated_file_is_refused(llama_2):
    for size in [*range(0, 200), *range(200, len(llama_2) - 100, 997)]:
        with pytest.raises(DataError):
            read_sentencepiece(llama_2[:size])


def test_files_that_are_too_large_are_refused(monkeypatch, llama_2, tmp_path):
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(vocabulary.MAX_FILE_BYTES + 1)  # sparse: takes no space
    with pytest.raises(DataError, match="has 33554433 bytes"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="more than 1048576 pieces"):
        read_sentencepiece(b"\x0a\x00" * (2**20 + 1))


def test_lists_that_contradict_each_other_are_refused():
    tokens, scores, types = ["<unk>", "<s>", "a"], [0.0, 0.0, 0.0], [2, 3, 1]
    with pytest.raises(DataError, match="3 tokens but 2 token types"):
        from_pieces(tokens, scores, types[:2], special_ids={})
    with pytest.raises(DataError, match="2 scores for 3 pieces"):
        from_pieces(tokens, scores[:2], types, special_ids={})
    with pytest.raises(DataError, match="the bos token has id 3; the ids run from 0 to 2"):
        from_pieces(tokens, scores, types, special_ids={"bos": 3})
    with pytest.raises(DataError, match="unknown role 'start'"):
        from_pieces(tokens, scores, types, special_ids={"start": 1})
    with pytest.raises(DataError, match="to get a bos token"):
        from_pieces(tokens, scores, types, special_ids={})
    assert from_pieces(tokens, scores, types, special_ids={}, add_bos=False).encode("a") == [0, 2]
