"""GPT-2's and RoBERTa's byte-level BPE against transformers and tokenizers, which read the same two files."""

import json

import pytest
import tokenizers as runtime
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizers.conftest import STRESS, TRAINING

from lamoid.cli import main
from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.bpe import merge_steps
from lamoid.tokenizers.gpt2 import GPT2_SPECIALS, ROBERTA_SPECIALS, read_gpt2, train_gpt2, train_roberta
from lamoid.tokenizers.load import load_tokenizer

TEXTS = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def roberta():
    return train_roberta(TRAINING, 1201)


@pytest.fixture(scope="module")
def gpt2():
    return train_gpt2(TRAINING, 1100)


@pytest.fixture(scope="module")
def files(roberta, gpt2, tmp_path_factory):
    """The two native files of each, alone in a folder."""
    folders = {}
    for name, tokenizer in (("roberta", roberta), ("gpt2", gpt2)):
        folders[name] = tmp_path_factory.mktemp(name)
        for file in ("vocab.json", "merges.txt"):
            (folders[name] / file).write_bytes(tokenizer.files()[file])
    return folders


@pytest.fixture(scope="module")
def twins(files):
    def paths(name):
        return {"vocab": str(files[name] / "vocab.json"), "merges": str(files[name] / "merges.txt")}

    return {
        "roberta": transformers.RobertaTokenizer(**paths("roberta")),
        "gpt2": transformers.GPT2Tokenizer(**paths("gpt2")),
    }


@pytest.fixture(scope="module", params=["roberta", "gpt2"])
def both(request, twins):
    return request.getfixturevalue(request.param), twins[request.param]


def twin_ids(twin, text, pair=None):
    return twin(text, pair, split_special_tokens=True)["input_ids"]


def test_ids_equal_transformers(both, stress):
    ours, twin = both
    assert ours.encode(stress) == twin_ids(twin, stress)
    assert ours.encode(stress, "và 中文") == twin_ids(twin, stress, "và 中文")
    assert ours.decode(ours.encode(stress)) == stress


@TEXTS
@given(text=st.text(), pair=st.text(min_size=1, max_size=10))
def test_ids_equal_transformers_on_any_text(both, text, pair):
    ours, twin = both
    assert ours.encode(text, pair) == twin_ids(twin, text, pair)


def test_ids_equal_the_runtimes_own_byte_level_bpe(files, roberta, stress):
    peer = runtime.ByteLevelBPETokenizer(str(files["roberta"] / "vocab.json"), str(files["roberta"] / "merges.txt"))
    assert roberta.encode(stress, add_special_tokens=False) == peer.encode(stress).ids


def test_robertas_frame(roberta):
    a, b = roberta.encode("một", add_special_tokens=False), roberta.encode("hai", add_special_tokens=False)
    assert roberta.encode("một") == [0, *a, 2]
    assert roberta.encode("một", "hai") == [0, *a, 2, 2, *b, 2]
    assert not roberta.encode_batch(["một"], ["hai"]).segments.any()
    ids = {role: roberta.special_id(role) for role in ROBERTA_SPECIALS}
    assert ids == {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "cls": 0, "sep": 2, "mask": 1200}


def test_gpt2_puts_nothing_around_a_text(gpt2):
    assert gpt2.encode("a") == gpt2.encode("a", add_special_tokens=False)
    assert {gpt2.special_id(role) for role in GPT2_SPECIALS} == {1099}


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_native_files_give_the_same_tokenizer(request, files, name, stress):
    ours = request.getfixturevalue(name)
    for path in (files[name], files[name] / "vocab.json"):
        loaded = load_tokenizer(path)
        assert loaded.specials == ours.specials
        assert loaded.encode(stress, "b") == ours.encode(stress, "b")
        assert loaded.files() == ours.files()


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_the_written_directory_opens_in_transformers(request, name, write_files):
    ours = request.getfixturevalue(name)
    directory = write_files(ours)
    classes = [transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast]
    for kind in [*classes, transformers.RobertaTokenizer if name == "roberta" else transformers.GPT2Tokenizer]:
        twin = kind.from_pretrained(directory)
        for text in STRESS.values():
            assert twin_ids(twin, text, "pair") == ours.encode(text, "pair"), kind
    twin = transformers.AutoTokenizer.from_pretrained(directory)
    assert {role: getattr(twin, f"{role}_token") for role in ours.specials} == ours.specials
    if name == "roberta":
        assert isinstance(twin, transformers.RobertaTokenizer)
        assert twin("a <mask> b")["input_ids"].count(ours.special_id("mask")) == 1  # unlike here, by default
    assert load_tokenizer(directory).files() == ours.files()


def test_merge_steps_end_in_the_tokens(roberta, gpt2, stress):
    for tokenizer in (roberta, gpt2):
        words = merge_steps(tokenizer, stress)
        symbols = [s for start, merges in words for s in (merges[-1].symbols if merges else start)]
        assert [tokenizer.backend.token_to_id(s) for s in symbols] == tokenizer.encode(stress, add_special_tokens=False)


def test_vocabularies_too_small_are_refused():
    assert train_roberta(TRAINING[-20:], 261).vocab_size == 261
    with pytest.raises(UsageError, match="vocab_size is 260; .* need 261"):
        train_roberta(TRAINING, 260)
    with pytest.raises(UsageError, match="vocab_size is 256; .* need 257"):
        train_gpt2(TRAINING, 256)


SMALL = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ("{", "", "vocab.json is not JSON"),
        ("[" * 100_000, "", "vocab.json is not JSON"),
        ("[]", "", "one JSON object"),
        ({"a": "0"}, "", "one JSON object"),
        ({"a": True, "b": 0}, "", "one JSON object"),
        ({**SMALL, "c": 9}, "", "ids must be 0 to 4"),
        ({**SMALL, "c": 2}, "", "ids must be 0 to 4"),
        ({**SMALL, "": 4}, "", "length 0"),
        ({"a": 0, "b": 1}, "", r"lacks the special tokens <\|endoftext\|>"),
        ({"a": 0, "<mask>": 1}, "", "lacks the special tokens </s>, <pad>, <s>, <unk>"),
        (SMALL, "a c", "merge 0 is 'a c'"),
        (SMALL, "#version: 0.2\na b\na b", "merges 0 and 1"),
        (SMALL, "#version: 0.2\nab", "merge 0 is 'ab'"),
        (SMALL, "a <|endoftext|>", "merge 0"),
        (SMALL, b"\xff", "merges.txt is not UTF-8 at offset 0"),
    ],
)
def test_bad_files_are_named(tmp_path, vocab, merges, message):
    (tmp_path / "vocab.json").write_text(vocab if isinstance(vocab, str) else json.dumps(vocab))
    (tmp_path / "merges.txt").write_bytes(merges if isinstance(merges, bytes) else merges.encode())
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_missing_merges_are_named(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(SMALL))
    with pytest.raises(DataError, match=r"merges\.txt does not exist"):
        load_tokenizer(tmp_path)


def test_merges_with_and_without_a_first_line_are_read():
    vocab = json.dumps(SMALL).encode()
    for merges in (b"a b", b"#version: 0.2\na b\n", b"\xef\xbb\xbf#version: 0.2\r\na b\r\n\r\n"):
        assert read_gpt2(vocab, merges).encode("abab") == [2, 2]


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
def test_the_command_line_trains(tmp_path, capsys, kind):
    (tmp_path / "text.txt").write_text("Tiếng Việt, 中文, 한국어. " * 20, encoding="utf-8")
    out = tmp_path / "made"
    words = ["tokenizer", "train", "--data", str(tmp_path / "text.txt"), "--out", str(out), "--kind", kind]
    assert main([*words, "--vocab-size", "300"]) == 0
    names = {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in out.iterdir()} == names
    assert load_tokenizer(out).vocab_size <= 300
    assert main(["tokenizer", "show", str(out), "Việt"]) == 0
    assert "word      V | i | " in capsys.readouterr().out
