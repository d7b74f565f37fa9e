"""WordPiece against transformers and tokenizers, on BERT's real vocabulary (MiniLM's) and on ones trained here."""

import json
import subprocess
import sys

import pytest
import tokenizers as runtime
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizers.conftest import STRESS, TRAINING

from lamoid.cli import main
from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.load import has_tokenizer, load_tokenizer
from lamoid.tokenizers.wordpiece import SPECIALS, match_steps, read_wordpiece, train_wordpiece

TEXTS = settings(max_examples=200, deadline=None, derandomize=True, database=None)
WORDS = [*SPECIALS.values(), "un", "##aff", "##able", "aff", "able", "a", "##b", "中", "文", "viet", "##s"]
VOCABULARY = "\n".join(WORDS).encode()


@pytest.fixture(scope="module")
def uncased():
    return train_wordpiece(TRAINING, 1500)


@pytest.fixture(scope="module")
def cased():
    return train_wordpiece(TRAINING, 1501, cased=True)


@pytest.fixture(scope="module")
def real(minilm):
    """MiniLM's tokenizer, read from its vocab.txt alone, and transformers'."""
    ours = read_wordpiece((minilm / "vocab.txt").read_bytes())
    return ours, transformers.AutoTokenizer.from_pretrained(minilm)


def twin_ids(twin, text, pair=None):
    return twin(text, pair, split_special_tokens=True)["input_ids"]


# ---- the real vocabulary


def test_real_ids_equal_transformers(real, stress):
    ours, twin = real
    assert ours.encode(stress) == twin_ids(twin, stress)
    assert ours.encode(stress, "and a pair") == twin_ids(twin, stress, "and a pair")
    assert ours.decode(ours.encode(stress)) == twin.decode(
        twin_ids(twin, stress), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@TEXTS
@given(text=st.text(), pair=st.text(min_size=1, max_size=10))
def test_real_ids_equal_transformers_on_any_text(real, text, pair):
    ours, twin = real
    assert ours.encode(text, pair) == twin_ids(twin, text, pair)


def test_the_fetched_directory_gives_the_same_ids_as_its_vocabulary(real, minilm, tmp_path):
    ours, _ = real
    (tmp_path / "vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes())
    for path in (minilm, minilm / "vocab.txt", tmp_path, "minilm"):
        from lamoid.recipes.load import load_named_tokenizer

        loaded = load_named_tokenizer(str(path))
        assert loaded.specials == SPECIALS
        for text in STRESS.values():
            assert loaded.encode(text, "x") == ours.encode(text, "x")
    assert has_tokenizer(tmp_path)


def test_known_ids_of_bert_base_uncased(real):
    """The ids of the published vocabulary, as its documentation shows them."""
    ours, _ = real
    assert ours.vocab_size == 30_522
    assert [ours.special_id(role) for role in ("pad", "unk", "cls", "sep", "mask")] == [0, 100, 101, 102, 103]
    assert ours.encode("Hello, World!") == [101, 7592, 1010, 2088, 999, 102]


def test_accents_and_case_go_and_chinese_characters_stand_apart(real):
    ours, _ = real
    assert ours.encode("RÉSUMÉ") == ours.encode("re\u0301sume\u0301") == ours.encode("resume")
    assert ours.encode("Tiếng Việt") == ours.encode("tieng viet")
    assert ours.encode("中文") == ours.encode("中 文")
    assert ours.encode("한국") == ours.encode("\u1112\u1161\u11ab\u1100\u116e\u11a8")


def test_a_special_token_in_a_text_stays_text(real):
    ours, _ = real
    special = {ours.special_id(role) for role in ("pad", "cls", "sep", "mask")}
    assert not special & set(ours.encode("a [MASK] [SEP] [PAD] [CLS]", add_special_tokens=False))


def test_a_batch_of_pairs_has_segments(real):
    ours, twin = real
    first, second = ["một", "a longer first text 中文"], ["hai ba", ""]
    batch, expected = ours.encode_batch(first, second), twin(first, second, padding=True)
    assert batch.ids.tolist() == expected["input_ids"]
    assert batch.mask.tolist() == expected["attention_mask"]
    assert batch.segments.tolist() == expected["token_type_ids"]


# ---- training


@pytest.mark.parametrize(
    "kind", [transformers.AutoTokenizer, transformers.BertTokenizer, transformers.BertTokenizerFast]
)
@pytest.mark.parametrize("which", ["uncased", "cased"])
def test_the_written_directory_opens_in_transformers(request, which, kind, write_files):
    ours = request.getfixturevalue(which)
    directory = write_files(ours)
    twin = kind.from_pretrained(directory)
    assert isinstance(twin, transformers.BertTokenizer)
    for text in STRESS.values():
        assert twin_ids(twin, text, "pair") == ours.encode(text, "pair")
    assert {role: getattr(twin, f"{role}_token") for role in SPECIALS} == SPECIALS
    assert len(twin) == ours.vocab_size
    assert load_tokenizer(directory).files() == ours.files()


@pytest.mark.parametrize("which", ["uncased", "cased"])
def test_vocab_txt_alone_opens_in_transformers_and_here(request, which, write_files, tmp_path):
    ours = request.getfixturevalue(which)
    file = tmp_path / "vocab.txt"
    file.write_bytes(ours.files()["vocab.txt"])
    twin = transformers.BertTokenizer(vocab=str(file), do_lower_case=which == "uncased")
    loaded = load_tokenizer(file)  # cased or not follows from the tokens
    for text in STRESS.values():
        assert twin_ids(twin, text) == ours.encode(text) == loaded.encode(text)


@pytest.mark.parametrize("which", ["uncased", "cased"])
def test_ids_equal_the_runtimes_own_bert(request, which, stress, tmp_path):
    ours = request.getfixturevalue(which)
    file = tmp_path / "vocab.txt"
    file.write_bytes(ours.files()["vocab.txt"])
    peer = runtime.BertWordPieceTokenizer(str(file), lowercase=which == "uncased")
    peer.encode_special_tokens = True
    pair = peer._tokenizer
    pair.encode_special_tokens = True
    encoding = pair.encode(stress, "b")
    assert ours.encode(stress, "b") == encoding.ids
    assert ours.encode_batch([stress], ["b"]).segments[0].tolist() == encoding.type_ids


def test_the_vocabulary_is_special_tokens_then_characters_then_what_was_joined(cased):
    tokens = cased.files()["vocab.txt"].decode().splitlines()
    assert cased.vocab_size == len(tokens) == 1501
    assert tokens[:5] == list(SPECIALS.values())
    single = [t for t in tokens[5:] if len(t.removeprefix("##")) == 1]
    assert single == tokens[5 : 5 + len(single)]
    assert all(len(t.removeprefix("##")) > 1 for t in tokens[5 + len(single) :])
    assert {"T", "V", "ệ", "한", "语"} <= set(single)


def test_uncased_tokens_have_neither_capitals_nor_accents(uncased):
    tokens = uncased.files()["vocab.txt"].decode().splitlines()[5:]
    assert all(token == token.lower() for token in tokens)
    assert "ế" not in "".join(tokens)


def test_a_trained_vocabulary_leaves_few_unknown(uncased):
    text = " ".join(TRAINING[:40])
    ids = uncased.encode(text, add_special_tokens=False)
    assert ids.count(uncased.special_id("unk")) < len(ids) / 1000


TWICE = """
from pydoc_data import topics
from lamoid.tokenizers.wordpiece import train_wordpiece
texts = [*topics.topics.values()][:20] + ["Tiếng Việt 大型语言模型 한국어"]
print([train_wordpiece(texts, size, cased=True).fingerprint() for size in (60, 301, 1000)])
"""


def test_training_is_deterministic_across_processes():
    """The runtime numbers the ##characters by the order of a hash table, another in each process."""
    runs = [subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout


@pytest.mark.parametrize("vocab_size", [7, 8, 20, 101, 400])
def test_the_vocabulary_is_no_larger_than_asked_for(vocab_size):
    tokenizer = train_wordpiece(TRAINING[-40:], vocab_size, cased=True)
    assert 5 < tokenizer.vocab_size <= vocab_size
    assert tokenizer.encode("nothing unheard of") == tokenizer.encode("nothing unheard of")


def test_the_most_frequent_characters_are_kept():
    tokenizer = train_wordpiece(["aaa bbb ccc aa b 中中中中 中"], 5 + 2 * 2)
    tokens = tokenizer.files()["vocab.txt"].decode().splitlines()
    assert tokens[5:7] == ["a", "中"]
    assert tokens[7] == "##a" and "##中" not in tokens  # Chinese characters stand alone


def test_a_vocabulary_too_small_is_refused():
    with pytest.raises(UsageError, match="vocab_size is 6; .* need 7"):
        train_wordpiece(["a"], 6)


def test_no_text_leaves_the_special_tokens():
    assert train_wordpiece([], 100).vocab_size == 5


# ---- files


def test_windows_line_ends_and_a_missing_last_one_change_nothing():
    plain = read_wordpiece(VOCABULARY)
    for content in (VOCABULARY + b"\n", VOCABULARY.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + VOCABULARY):
        assert read_wordpiece(content).encode("unaffable 中文") == plain.encode("unaffable 中文")
        assert read_wordpiece(content).files()["vocab.txt"] == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "length 0"),
        (VOCABULARY.replace(b"[SEP]", b"sep"), r"special tokens \[SEP\] are missing"),
        (VOCABULARY + b"\nable", "tokens 9 and 16 are both 'able'"),
        (VOCABULARY + b"\n\xff", f"not UTF-8 at offset {len(VOCABULARY) + 1}"),
        (VOCABULARY + b"\n\nx", "token 16 has length 0"),
        (b"x" * (32 * 2**20 + 1), "at most"),
    ],
)
def test_bad_vocabularies_are_named(tmp_path, content, message):
    file = tmp_path / "vocab.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_the_configuration_decides_case_and_accents(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\n".join([*WORDS, "é", "e", "É"]).encode())
    for config, id_of_capital in (({}, "É"), ({"do_lower_case": True}, "e"), ({"do_lower_case": "x"}, "É")):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.encode("É", add_special_tokens=False) == [tokenizer.backend.token_to_id(id_of_capital)]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "strip_accents": false}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("É", add_special_tokens=False) == [tokenizer.backend.token_to_id("é")]


# ---- seeing it work


def test_match_steps_by_hand():
    tokenizer = read_wordpiece(VOCABULARY)
    ((word, matches),) = match_steps(tokenizer, "Unaffable")
    assert word == "unaffable"
    assert matches[0].tried == ("unaffable", "unaffabl", "unaffab", "unaffa", "unaff", "unaf", "una")
    assert [(m.token, m.rest) for m in matches] == [("un", "affable"), ("##aff", "able"), ("##able", "")]
    ((_, matches),) = match_steps(tokenizer, "affix")
    assert [m.token for m in matches] == ["aff", None]
    assert matches[1].tried == ("##ix", "##i")


def test_match_steps_end_in_the_tokens(real, uncased, cased, stress):
    for tokenizer in (real[0], uncased, cased):
        tokens = []
        for word, matches in match_steps(tokenizer, stress):
            known = [match.token for match in matches]
            tokens += ["[UNK]"] if None in known else known
            assert None in known or "".join(t.removeprefix("##") if i else t for i, t in enumerate(known)) == word
        ids = [tokenizer.backend.token_to_id(token) for token in tokens]
        assert ids == tokenizer.encode(stress, add_special_tokens=False)


def test_a_word_of_more_than_a_hundred_characters_is_unknown():
    tokenizer = read_wordpiece(VOCABULARY)
    for word in ("a" + "b" * 99, "a" + "b" * 100):
        ((_, matches),) = match_steps(tokenizer, word)
        ids = tokenizer.encode(word, add_special_tokens=False)
        assert (matches[-1].token is None) == (ids == [tokenizer.special_id("unk")]) == (len(word) > 100)


def test_other_kinds_have_no_matches(bpe):
    with pytest.raises(UsageError, match="is a BPE; only WordPiece"):
        list(match_steps(bpe, "a"))


def test_the_command_line_shows_each_match(tmp_path, capsys):
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY)
    assert main(["tokenizer", "show", str(tmp_path), "unaffable ab ax 中文"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["word      unaffable", "    no    unaffable"]
    assert [line.split()[-1] for line in lines if "yes" in line] == [
        "un",
        "##aff",
        "##able",
        "a",
        "##b",
        "a",
        "中",
        "文",
    ]
    assert "tokens    un | ##aff | ##able | a | ##b | [UNK] | 中 | 文" in lines
    assert main(["tokenizer", "show", str(tmp_path), "unaffable ax", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["tokens"] == ["un", "##aff", "##able", "[UNK]"]
    assert shown["ids"] == [5, 6, 7, 1]
    assert shown["words"][1]["matches"] == [
        {"tried": ["ax"], "token": "a", "rest": "x"},
        {"tried": ["##x"], "token": None, "rest": "x"},
    ]


@pytest.mark.parametrize(("flags", "accent"), [([], False), (["--cased"], True)])
def test_the_command_line_trains(tmp_path, capsys, flags, accent):
    (tmp_path / "text.txt").write_text("Tiếng Việt, 中文, 한국어. " * 20, encoding="utf-8")
    out = tmp_path / "made"
    words = ["tokenizer", "train", "--data", str(tmp_path / "text.txt"), "--out", str(out), "--kind", "wordpiece"]
    assert main([*words, "--vocab-size", "90", *flags]) == 0
    assert {file.name for file in out.iterdir()} == {"vocab.txt", "tokenizer.json", "tokenizer_config.json"}
    assert ("Tiếng" in (out / "vocab.txt").read_text(encoding="utf-8").split("\n")) == accent
    twin = transformers.AutoTokenizer.from_pretrained(out)
    assert twin("Tiếng Việt 中文")["input_ids"] == load_tokenizer(out).encode("Tiếng Việt 中文")
    capsys.readouterr()
