"""Llama 3's tiktoken files against the library, and the vocabularies of GGUF files, which are of the same kind."""

import base64
import contextlib
import json
from pydoc_data import topics

import pytest
import tiktoken
import tokenizers as runtime
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from lamoid.errors import DataError, UsageError
from lamoid.tokenizers import tiktoken as module
from lamoid.tokenizers.bpe import SPECIAL_TOKENS, merge_steps, train_bpe
from lamoid.tokenizers.byte_level import SPLITS, from_merges, split_into_words
from lamoid.tokenizers.char import train_char
from lamoid.tokenizers.load import load_tokenizer
from lamoid.tokenizers.tiktoken import (
    LLAMA_3_1_SPECIAL_TOKENS,
    LLAMA_3_SPECIAL_TOKENS,
    is_tiktoken,
    read_tiktoken,
    write_tiktoken,
)
from lamoid.tokenizers.tokenizer import runtime_errors

# Meta's, written out once more so that a slip in the product's is seen
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VIETNAMESE = "Trăm năm trong cõi người ta, chữ tài chữ mệnh khéo là ghét nhau."
CHINESE = "今天天气很好，我们去公园散步吧。语言模型可以理解文本！"
KOREAN = "안녕하세요 세계! 오늘은 날씨가 좋아서 공원에서 산책했습니다."
TEXTS = [*topics.topics.values(), *40 * [VIETNAMESE, CHINESE, KOREAN]]

STRESS = [
    "",
    "a",
    " ",
    "  two   three    four ",
    "0 12 123 1234 12345678 ٣٤٥٦ Ⅷ ½ ²³¹ 𝟘𝟙𝟚𝟛 ａ１２３４",
    "one\ntwo\r\nthree\n\n\n  four\n",
    "\ttab\t\t two\x85 \u3000\u00a0x\u2028\u2029 \u180e \x1c\x1d a",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # note\n\n\nclass A(B): ...\n",
    "I'LL don't WE'VE he'd 'S 's ''t 'ſ it'ſ İ'S K's",
    "👨‍👩‍👧‍👦 👍🏽 🏳️‍🌈 1️⃣",
    "e\u0301 o\u0302\u0323 Z\u0351\u036b\u0343",
    VIETNAMESE,
    "Tie\u0302\u0301ng Vie\u0323\u0302t",
    CHINESE,
    KOREAN,
    "مرحبا بالعالم، اللُّغَةُ नमस्ते दुनिया ภาษาไทย",
    "a\0b\x01\x7f\ufeff\ufffd\U0010ffff\uffff",
    "<|begin_of_text|>user<|eot_id|><|reserved_special_token_0|>",
    "<s>hello</s> <0x41> ▁",
    "aaaaaaaaaaaaaaaaaaa ==========----------======= \\\\\\\\\\\\",
]


@pytest.fixture(scope="module")
def trained():
    return train_bpe(TEXTS, 4000)


@pytest.fixture(scope="module")
def file(trained):
    return write_tiktoken(trained)


@pytest.fixture(scope="module")
def loaded(file):
    return read_tiktoken(file)


@pytest.fixture(scope="module")
def library(file):
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in file.splitlines())}
    return tiktoken.Encoding("llama", pat_str=LLAMA_3, mergeable_ranks=ranks, special_tokens={})


# Ids and texts


def test_ids_and_texts_are_those_of_the_library(loaded, library):
    for text in [*STRESS, *(text[:3000] for text in list(topics.topics.values())[::9])]:
        ids = library.encode_ordinary(text)
        assert loaded.encode(text) == [library.n_vocab, *ids], text
        assert loaded.decode(ids) == text


ALPHABET = st.one_of(
    st.characters(exclude_categories=["Cs"]), st.sampled_from("  \n\r\t019aths'SſT'lLđế今한\u0302\u0301=")
)


@settings(max_examples=500, deadline=None)
@given(text=st.text(ALPHABET, max_size=80))
def test_any_text_has_the_ids_of_the_library_and_comes_back(loaded, library, trained, text):
    ids = library.encode_ordinary(text)
    assert loaded.encode(text, add_special_tokens=False) == ids
    assert loaded.decode(ids) == text
    assert trained.encode(text, add_special_tokens=False) == ids


def test_a_word_that_is_a_token_stays_whole_where_no_merge_makes_it(library):
    """As in Llama 3's own vocabulary, where some tokens are out of reach of the merges."""
    extra = [b"zqxj", b"qx", b" zqxjv"]
    ranks = {**library._mergeable_ranks, **{token: library.n_vocab + i for i, token in enumerate(extra)}}
    data = b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    theirs = tiktoken.Encoding("more", pat_str=LLAMA_3, mergeable_ranks=ranks, special_tokens={})
    ours = read_tiktoken(data)
    for text in ["zqxj", "zqxj zqxjv zqxjw qx zqx", " zqxjv"]:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode_ordinary(text)
        assert _last_symbols(ours, text) == theirs.encode_ordinary(text)
    assert ours.encode("zqxj", add_special_tokens=False) == [library.n_vocab]


def _last_symbols(tokenizer, text):
    words = ((merges[-1].symbols if merges else start) for start, merges in merge_steps(tokenizer, text))
    return [tokenizer.backend.token_to_id(symbol) for word in words for symbol in word]


@pytest.mark.parametrize("text", STRESS)
def test_merge_steps_end_in_the_tokens(loaded, text):
    assert _last_symbols(loaded, text) == loaded.encode(text, add_special_tokens=False)


# Special tokens


def test_the_special_tokens_are_metas(loaded):
    first = loaded.vocab_size - 256
    assert len(set(LLAMA_3_SPECIAL_TOKENS)) == len(set(LLAMA_3_1_SPECIAL_TOKENS)) == 256
    known = {0: "begin_of_text", 1: "end_of_text", 2: "reserved_special_token_0", 5: "reserved_special_token_3"}
    known |= {6: "start_header_id", 7: "end_header_id", 8: "reserved_special_token_4", 9: "eot_id"}
    known |= {10: "reserved_special_token_5", 255: "reserved_special_token_250"}
    for place, name in known.items():
        assert loaded.backend.token_to_id(f"<|{name}|>") == first + place
    newer = {4: "finetune_right_pad_id", 5: "step_id", 8: "eom_id", 9: "eot_id", 10: "python_tag"}
    newer |= {11: "reserved_special_token_2", 255: "reserved_special_token_246"}
    assert all(LLAMA_3_1_SPECIAL_TOKENS[place] == f"<|{name}|>" for place, name in newer.items())
    assert (loaded.special_id("bos"), loaded.special_id("eos"), loaded.special_id("pad")) == (first, first + 1, None)


def test_user_text_cannot_reach_the_special_tokens(loaded):
    text = "".join(LLAMA_3_SPECIAL_TOKENS)
    ids = loaded.encode(text, add_special_tokens=False)
    assert max(ids) < loaded.vocab_size - 256
    assert loaded.decode(ids) == text


def test_other_special_tokens_and_places(file):
    tokenizer = read_tiktoken(file, special_tokens=LLAMA_3_1_SPECIAL_TOKENS, add_bos=False, add_eos=True)
    assert tokenizer.special_id("pad") == tokenizer.vocab_size - 252
    assert tokenizer.encode("")[-1] == tokenizer.special_id("eos")
    with pytest.raises(DataError, match="to get a bos token"):
        read_tiktoken(file, special_tokens=["<|x|>"])
    with pytest.raises(DataError, match="are both"):
        read_tiktoken(file, special_tokens=["<|begin_of_text|>", "a"])


# Files


def write(directory, files):
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def test_what_was_trained_goes_round(trained, file):
    again = read_tiktoken(file, special_tokens=SPECIAL_TOKENS)
    assert again.specials == trained.specials
    assert again.vocab_size == trained.vocab_size
    for text in STRESS:
        assert again.encode(text) == trained.encode(text)
    assert write_tiktoken(again) == file


def test_a_directory_goes_round_unchanged(file, tmp_path):
    first = load_tokenizer(write(tmp_path, {"tokenizer.model": file}))
    assert first.files()["tokenizer.model"] == file
    again = load_tokenizer(write(tmp_path, first.files()))
    assert again.files() == first.files()
    assert write_tiktoken(again) == file
    assert [again.encode(text) for text in STRESS] == [first.encode(text) for text in STRESS]


def test_transformers_gives_the_same_ids(loaded, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(write(tmp_path, loaded.files()))
    for text in STRESS:
        ids = loaded.encode(text)
        if "<|" not in text:  # which transformers reads as special
            assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_only_what_comes_out_the_same_is_written(trained):
    for other in (train_bpe(TEXTS[:9], 400, split_digits=True), train_char(TEXTS[:9], 400)):
        with pytest.raises(UsageError, match="splits a text into words as Llama 3 does"):
            write_tiktoken(other)

    def changed(change):
        content = json.loads(trained.backend.to_str())
        change(content)
        return type(trained)(runtime.Tokenizer.from_str(json.dumps(content)), trained.specials)

    assert write_tiktoken(changed(lambda content: None)) == write_tiktoken(trained)
    changes = [
        lambda content: content["model"]["merges"].pop(),  # the last token is out of reach
        lambda content: content["model"]["merges"].reverse(),
        lambda content: content["model"]["merges"].append(["t", "he"]),  # two ways to one token
        lambda content: content["model"].update(ignore_merges=True),
        lambda content: content["added_tokens"][-1].update(special=False),
    ]
    for change in changes:
        with pytest.raises(UsageError, match="would give other ids"):
            write_tiktoken(changed(change))


# What is wrong with a file


BYTES = [b"%s %d" % (base64.b64encode(bytes([byte])), byte) for byte in range(256)]

FAULTS = {
    "empty": ([], "0 tokens"),
    "a rank twice": ([*BYTES, b"YWI= 255"], "line 257 gives rank 255 a second time"),
    "a token twice": ([*BYTES, b"YQ== 256"], "tokens 97 and 256 are both b'a'"),
    "a gap": ([*BYTES, b"YWI= 300"], "rank 300 is out of range; 257 tokens have the ranks 0 to 256"),
    "a huge rank": ([*BYTES, b"YWI= 99999999999999999999"], "line 257"),
    "a negative rank": ([*BYTES, b"YWI= -1"], "line 257"),
    "no rank": ([*BYTES, b"YWI="], "line 257"),
    "three words": ([*BYTES, b"YWI= 256 1"], "line 257"),
    "an empty line": ([BYTES[0], b"", *BYTES[1:]], "line 2"),
    "not base64": ([*BYTES, b"YW?= 256"], "line 257"),
    "half base64": ([*BYTES, b"YWI 256"], "not base64"),
    "no token": ([*BYTES, b"= 256"], "line 257"),
    "a byte is missing": ([*BYTES[:255], b"YWI= 255"], "1 of the 256 bytes are no token, the first being 255"),
    "a long token": ([*BYTES, base64.b64encode(b"a" * 1025) + b" 256"], "token 256 has length 1025"),
    "binary": ([b"\xff\x00" * 50], "line 1"),
}


@pytest.mark.parametrize(("lines", "reason"), FAULTS.values(), ids=FAULTS.keys())
def test_a_bad_file_is_refused(lines, reason):
    with pytest.raises(DataError, match=reason) as caught:
        read_tiktoken(b"\n".join(lines))
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), place=st.integers(0, 2000))
def test_noise_is_refused(data, place):
    good = b"\n".join(BYTES)
    with contextlib.suppress(DataError):
        assert read_tiktoken(good[:place] + data + good[place:]).vocab_size >= 512


def test_files_that_are_too_large_are_refused(monkeypatch, file):
    with pytest.raises(DataError, match="1048577 lines"):
        read_tiktoken(b"\n" * (2**20 + 1))
    runs = [base64.b64encode(b"a" * n) + b" %d" % (n + 254) for n in range(2, 700)]
    with pytest.raises(DataError, match="the tokens repeat each other"):
        read_tiktoken(b"\n".join([*BYTES, *runs]))
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="at most 100"):
        read_tiktoken(file)


def test_files_are_told_apart_by_their_content(file):
    assert is_tiktoken(file)
    assert is_tiktoken(file.replace(b"\n", b"\r\n"))
    assert not is_tiktoken(b"")
    assert not is_tiktoken(b"\n\x0e\n\x05<unk>")
    assert read_tiktoken(file.replace(b"\n", b"\r\n")).encode("one") == read_tiktoken(file).encode("one")


def test_a_panic_is_a_clean_error():
    class Panic(BaseException):
        pass

    with (
        pytest.raises(DataError, match="the file makes no tokenizer: boom"),
        runtime_errors("the file makes no tokenizer"),
    ):
        raise Panic("boom")
    with pytest.raises(KeyboardInterrupt), runtime_errors("the file makes no tokenizer"):
        raise KeyboardInterrupt


# GGUF files of kind gpt2


def lists(tokenizer):
    """Tokens, merges and types as a GGUF file has them."""
    vocabulary = tokenizer.backend.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.backend.to_str())["model"]["merges"]]
    return tokens, merges, [3 if token in SPECIAL_TOKENS else 1 for token in tokens]


@pytest.fixture(scope="module")
def gguf(trained):
    ids = {role: trained.special_id(role) for role in ("bos", "eos", "pad")}
    return lambda split="llama-bpe", **options: from_merges(*lists(trained), split=split, special_ids=ids, **options)


def test_gguf_lists_make_the_same_tokenizer(gguf, trained):
    ours = gguf()
    assert ours.specials == trained.specials
    for text in STRESS:
        assert ours.encode(text) == trained.encode(text)
        assert ours.decode(ours.encode(text)) == text
        assert _last_symbols(ours, text) == ours.encode(text)[1:]


def test_begin_and_end_of_text_are_as_the_file_says(gguf, trained):
    bos, eos = trained.special_id("bos"), trained.special_id("eos")
    assert gguf().encode("") == [bos]
    assert gguf("smollm").encode("") == []
    assert gguf("smollm", add_bos=True, add_eos=True).encode("") == [bos, eos]
    assert gguf(add_bos=False).encode("") == []


REFERENCES = {
    "llama-bpe": LLAMA_3,
    "smaug-bpe": LLAMA_3,
    "qwen2": LLAMA_3.replace("{1,3}", ""),
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


@pytest.mark.parametrize("split", REFERENCES)
def test_words_are_split_as_in_the_library(gguf, trained, library, split):
    """Whole words aside, tiktoken with the pattern gives the ids."""
    ranks = library._mergeable_ranks
    theirs = tiktoken.Encoding(split, pat_str=REFERENCES[split], mergeable_ranks=ranks, special_tokens={})
    ours = gguf(split)
    for text in STRESS:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode_ordinary(text), text


def test_smollm_splits_as_its_tokenizer_json():
    theirs = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in [*STRESS, *topics.topics.values()]:
        assert split_into_words("smollm").pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_keeps_the_text(gguf, split):
    for text in STRESS:
        ours = gguf(split)
        assert ours.decode(ours.encode(text)) == text


def test_tekken_and_default_split_words():
    words = [word for word, _ in split_into_words("tekken").pre_tokenize_str("HelloWorld 12 abc")]
    assert words == ["Hello", "World", "Ġ", "1", "2", "Ġabc"]
    words = [word for word, _ in split_into_words("default").pre_tokenize_str("a.b 12345")]
    assert words == ["a", ".", "b", "Ġ", "123", "45"]


def test_user_defined_tokens_are_found_and_control_tokens_are_not(trained):
    tokens, merges, types = lists(trained)
    tokens, types = [*tokens, "<tool>", "<hidden>", "<end>"], [*types, 4, 3, 4]
    ours = from_merges(tokens, merges, types, split="gpt-2", special_ids={"eos": len(tokens) - 1})
    ids = ours.encode("a<tool>b<hidden><end>")
    assert len(trained.backend.get_vocab()) in ids
    assert max(ids) == len(tokens) - 3
    assert ours.decode([len(tokens) - 3, len(tokens) - 2, len(tokens) - 1]) == "<tool>"


def test_a_normal_token_in_a_role_stays_text(trained):
    tokens, merges, types = lists(trained)
    ours = from_merges(tokens, merges, types, split="gpt-2", special_ids={"unk": tokens.index("!")})
    assert ours.decode(ours.encode("hey!")) == "hey!"
    assert ours.special_id("unk") == tokens.index("!")


def test_a_byte_without_a_token_has_no_id(trained):
    tokens, merges, types = lists(trained)
    tokens[tokens.index("Ā")] = "<|nul|>"  # NUL's stand-in
    ours = from_merges(tokens, merges, types, split="smollm", special_ids={})
    assert ours.decode(ours.encode("a\0b")) == "ab"


def test_lists_that_contradict_each_other_are_refused(trained):
    tokens, merges, types = lists(trained)

    def make(tokens=tokens, merges=merges, types=types, split="llama-bpe", **options):
        return from_merges(tokens, merges, types, split=split, special_ids=options)

    with pytest.raises(DataError, match=r"unknown way 'magic' .* known are llama-bpe, .*smollm, .*default"):
        make(split="magic")
    with pytest.raises(DataError, match="are both"):
        make([*tokens[:-1], tokens[0]])
    with pytest.raises(DataError, match="token types"):
        make(types=types[:-1])
    with pytest.raises(DataError, match="has type 0"):
        make(types=[0, *types[1:]])
    with pytest.raises(DataError, match="the bos token has id -1"):
        make(bos=-1)
    for merge in ("zz qq", "t", "", " t", "t ", "<|pad|> a", "t h e"):
        with pytest.raises(DataError, match=f"merge 0 is {merge!r}; it must be two tokens, and together a third"):
            make(merges=[merge, *merges])
    with pytest.raises(DataError, match=r"merges 0 and .* are both"):
        make(merges=[*merges, merges[0]])
