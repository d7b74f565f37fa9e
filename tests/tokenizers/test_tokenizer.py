"""Loading a tokenizer from files that may be anything, and what is written for others to load."""

import json

import pytest
import tokenizers as runtime
import transformers
from tokenizers import pre_tokenizers

from lamoid.errors import DataError
from lamoid.tokenizers import tokenizer as module
from lamoid.tokenizers.load import load_tokenizer
from lamoid.tokenizers.tokenizer import Tokenizer


def changed(tokenizer, tmp_path, change):
    """Write a tokenizer.json that differs from a good one by a change, and load it."""
    content = json.loads(tokenizer.backend.to_str())
    change(content)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return load_tokenizer(file)


def split_by(pattern):
    def change(content):
        content["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }

    return change


def test_a_directory_and_its_file_give_the_same_tokenizer(bpe, write_files, stress):
    directory = write_files(bpe)
    for path in (directory, str(directory), directory / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert loaded.fingerprint() == bpe.fingerprint()
        assert loaded.specials == bpe.specials
        assert loaded.vocab_size == bpe.vocab_size
        assert loaded.encode(stress) == bpe.encode(stress)


def test_what_is_loaded_writes_the_same_files(char, write_files):
    assert load_tokenizer(write_files(char)).files() == char.files()


def test_special_tokens_written_as_objects_are_read(bpe, write_files):
    directory = write_files(bpe)
    config = {"bos_token": {"content": "<|begin_of_text|>", "lstrip": False}, "eos_token": None, "pad_token": "<|pad|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(directory).specials == {"bos": "<|begin_of_text|>", "pad": "<|pad|>"}


def test_without_a_configuration_there_are_no_roles(bpe, write_files):
    directory = write_files(bpe)
    (directory / "tokenizer_config.json").unlink()
    loaded = load_tokenizer(directory)
    assert loaded.specials == {}
    assert loaded.special_id("bos") is None


def test_padding_and_truncation_of_the_file_do_not_apply(bpe, tmp_path):
    def change(content):
        content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        }

    text = "a text of more than nine tokens, and none of them may be cut or added"
    assert changed(bpe, tmp_path, change).encode(text) == bpe.encode(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none/tokenizer\.json does not exist|none does not exist"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(DataError, match=r"tokenizer\.json does not exist"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"model": {"type": "Magic"}}',
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\x00" * 100,
    ],
    ids=repr,
)
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer: "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(bpe, tmp_path, share):
    content = bpe.files()["tokenizer.json"]
    (tmp_path / "tokenizer.json").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer: "):
        load_tokenizer(tmp_path)


def test_an_oversized_file_is_refused_unread(tmp_path):
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as out:
        out.truncate(module.MAX_TOKENIZER_BYTES + 1)  # sparse: takes no space
    with pytest.raises(DataError, match=f"has {module.MAX_TOKENIZER_BYTES + 1} bytes; .* at most"):
        load_tokenizer(file)


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"bos_token"', "[" * 100_000])
def test_a_bad_configuration_is_named(bpe, write_files, content):
    directory = write_files(bpe)
    (directory / "tokenizer_config.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer_config\.json"):
        load_tokenizer(directory)


def test_a_special_token_that_is_not_in_the_vocabulary_is_named(bpe):
    with pytest.raises(DataError, match=r"\['<s>'\] are not in the vocabulary"):
        Tokenizer(bpe.backend, {"bos": "<s>", "eos": "<|end_of_text|>"})


def test_a_panic_of_the_runtime_while_loading_is_a_clean_error(bpe, tmp_path):
    def change(content):
        content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}

    with pytest.raises(DataError, match="is no tokenizer"):
        changed(bpe, tmp_path, change)


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
def test_a_catastrophic_pattern_is_refused_wherever_it_is(bpe, tmp_path, part):
    def change(content):
        replace = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
        rule = (
            replace if part != "pre_tokenizer" else replace | {"type": "Split", "behavior": "Isolated", "invert": False}
        )
        lists = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
        content[part] = {"type": "Sequence", lists[part]: [rule]}

    with pytest.raises(DataError, match=r"is no tokenizer: the pattern '\(a\+\)\+\$' could match"):
        changed(bpe, tmp_path, change)


@pytest.mark.parametrize("part, lists", [("normalizer", "normalizers"), ("decoder", "decoders")])
def test_replacements_that_blow_a_text_up_are_refused(bpe, tmp_path, part, lists):
    """32 rules of a few bytes would make four billion characters of one."""

    def rule(content, **pattern):
        return {"type": "Replace", "pattern": pattern, "content": content}

    for rules in ([rule("aa", String="a")] * 32, [rule("a" * 100, String="a")], [rule("a" * 100, Regex="b")]):
        with pytest.raises(DataError, match=r"is no tokenizer: the rules make a text .* times as long; at most 64"):
            changed(bpe, tmp_path, lambda content, r=rules: content.update({part: {"type": "Sequence", lists: r}}))
    harmless = [rule("▁", String=" "), rule('"', String="``"), rule(" ", Regex=" {2,}"), rule("", Regex="^ ")]
    tokenizer = changed(bpe, tmp_path, lambda content: content.update({part: {"type": "Sequence", lists: harmless}}))
    assert tokenizer.encode("a b")


def test_a_role_that_is_no_text_is_refused(bpe, write_files):
    directory = write_files(bpe)
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<\\ud800>"}')
    with pytest.raises(DataError, match="the bos_token has a lone surrogate U\\+D800 at position 1"):
        load_tokenizer(directory)


def test_a_panic_of_the_runtime_while_encoding_is_a_clean_error(bpe):
    """Oniguruma gives up after ten million steps, and the runtime turns that into a panic, which is no Exception."""
    backend = runtime.Tokenizer.from_str(bpe.backend.to_str())
    backend.pre_tokenizer = pre_tokenizers.Split(runtime.Regex("(a+)+$"), behavior="isolated")
    tokenizer = Tokenizer(backend, {})
    text = "a" * 60 + "!"
    for call in (
        tokenizer.encode,
        lambda text: tokenizer.encode_many([text]),
        lambda text: tokenizer.encode_batch([text]),
    ):
        with pytest.raises(DataError, match=r"the tokenizer cannot encode this text: .*retry-limit-in-match"):
            call(text)
    assert tokenizer.decode(tokenizer.encode("fine")) == "fine"


def test_a_pattern_that_is_none_is_refused(bpe, tmp_path):
    with pytest.raises(DataError, match="is no tokenizer: Oniguruma"):
        changed(bpe, tmp_path, split_by("("))


def test_a_model_without_its_unknown_token_is_a_clean_error(bpe, tmp_path):
    def change(content):
        content["model"] = {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"a": 0},
        }
        content["added_tokens"], content["post_processor"] = [], None

    with pytest.raises(DataError, match=r"the tokenizer cannot encode this text: .*\[UNK\]"):
        changed(bpe, tmp_path, change).encode("b")


def test_a_panic_of_the_runtime_while_decoding_is_a_clean_error(bpe, tmp_path):
    def change(content):
        content["decoder"] = {"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40}

    tokenizer = changed(bpe, tmp_path, change)
    with pytest.raises(DataError, match="the tokenizer cannot decode these ids"):
        tokenizer.decode(tokenizer.encode("a b"))


def test_an_id_far_beyond_the_vocabulary_is_refused(bpe, tmp_path):
    """The runtime counts up to the largest when it writes a vocabulary: 2^31 would take 8 GB."""
    with pytest.raises(DataError, match="token 'zz' has id 2147483647; ids run up to 1048575"):
        changed(bpe, tmp_path, lambda content: content["model"]["vocab"].update(zz=2**31 - 1))


@pytest.mark.parametrize("index", [-1, 2**32, 10**12])
def test_ids_that_are_no_ids_are_refused(bpe, tmp_path, index):
    with pytest.raises(DataError, match="is no tokenizer"):
        changed(bpe, tmp_path, lambda content: content["model"]["vocab"].update(zz=index))


def test_two_tokens_with_one_id_are_refused(bpe, tmp_path):
    with pytest.raises(DataError, match="id 5 belongs to '&' and 'zz'"):
        changed(bpe, tmp_path, lambda content: content["model"]["vocab"].update(zz=5))


def test_a_merge_of_unknown_tokens_is_refused(bpe, tmp_path):
    with pytest.raises(DataError, match="is no tokenizer: Token `zzzz` out of vocabulary"):
        changed(bpe, tmp_path, lambda content: content["model"]["merges"].append(["a", "zzzz"]))


def test_cyclic_merges_end(bpe, tmp_path):
    """("", h) -> h makes what it takes; encoding ends all the same, and the text survives."""

    def change(content):
        content["model"]["vocab"][""] = 5000
        content["model"]["merges"][:0] = [["", "h"], ["h", ""]]

    tokenizer = changed(bpe, tmp_path, change)
    assert tokenizer.decode(tokenizer.encode("hhh hello")) == "hhh hello"


def _change_vocabulary(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["!"], vocabulary["?"] = vocabulary["?"], vocabulary["!"]


CHANGES = {
    "vocabulary": _change_vocabulary,
    "order of merges": lambda content: content["model"]["merges"].reverse(),
    "fewer merges": lambda content: content["model"]["merges"].pop(),
    "pattern": split_by(r"\s+"),
    "normalizer": lambda content: content.update(normalizer={"type": "NFC"}),
    "post-processor": lambda content: content.update(post_processor=None),
    "special token": lambda content: content["added_tokens"].pop(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_fingerprint_changes_with_all_that_decides_the_ids(bpe, tmp_path, change):
    same = changed(bpe, tmp_path, lambda content: None)
    assert same.fingerprint() != bpe.fingerprint()  # the roles of the special tokens lie in another file
    assert changed(bpe, tmp_path, change).fingerprint() != same.fingerprint()


def test_the_fingerprint_knows_roles(bpe):
    other = Tokenizer(bpe.backend, {**bpe.specials, "bos": "<|eot_id|>"})
    assert other.fingerprint() != bpe.fingerprint()
    assert Tokenizer(bpe.backend, dict(reversed(bpe.specials.items()))).fingerprint() == bpe.fingerprint()


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_transformers_finds_the_same_special_tokens(request, kind, write_files):
    tokenizer = request.getfixturevalue(kind)
    twin = transformers.AutoTokenizer.from_pretrained(write_files(tokenizer))
    for role, token in tokenizer.specials.items():
        assert getattr(twin, f"{role}_token") == token
        assert getattr(twin, f"{role}_token_id") == tokenizer.special_id(role)
    batch = twin(["a", "a longer text"], padding=True, padding_side="right")
    ours = tokenizer.encode_batch(["a", "a longer text"])
    assert batch["input_ids"] == ours.ids.tolist()
    assert batch["attention_mask"] == ours.mask.tolist()
