"""Grown tokenizers: the old ids come back from the new ones, old tokens stay, transformers opens what is written."""

import json

import pytest
import tokenizers as runtime
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizers.conftest import STRESS, TRAINING

from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.bpe import merge_steps, train_bpe
from lamoid.tokenizers.gguf_vocabulary import tokenizer_from_gguf, tokenizer_to_gguf
from lamoid.tokenizers.grow import grow, old_pieces, tokens_per_character
from lamoid.tokenizers.load import load_tokenizer
from lamoid.tokenizers.sentencepiece import read_sentencepiece, train_sentencepiece
from lamoid.tokenizers.tiktoken import read_tiktoken, write_tiktoken
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.tokenizers.vocabulary import NATIVE_FILE

ENGLISH = [text for text in TRAINING if text.isascii()]
NEW = {
    "Vietnamese": [
        "Mô hình ngôn ngữ đọc được tiếng Việt, từng từ một, và viết tiếp những gì người ta muốn đọc. " * 3,
        "Người Việt Nam nói tiếng Việt; trẻ em học chữ Quốc ngữ ở trường, và đọc được những gì họ viết." * 2,
    ],
    "Chinese": ["语言模型可以阅读中文，也可以书写中文。中文没有空格，所以语言模型要学会词语。" * 4],
    "Korean": ["언어 모델은 한국어를 읽고 한국어를 씁니다. 한국어 문장은 띄어쓰기가 있습니다." * 4],
}
NEW_TEXTS = [text for texts in NEW.values() for text in texts]


def a_llama_2() -> Tokenizer:
    """With the prefix and the normalizer of Llama 2's file, which `train_sentencepiece` leaves out."""
    from tests.tokenizers.test_sentencepiece import train_natively

    return read_sentencepiece(train_natively(vocab_size=1200, character_coverage=0.99))


MAKERS = {
    "ours": lambda: train_bpe(ENGLISH, 800),
    "Llama 3": lambda: read_tiktoken(write_tiktoken(train_bpe(ENGLISH, 900))),
    "Llama 2": a_llama_2,
    "our SentencePiece": lambda: train_sentencepiece(ENGLISH, 700),
}


@pytest.fixture(scope="module", params=MAKERS.values(), ids=MAKERS.keys())
def old_and_new(request):
    old = request.param()
    return old, grow(old, NEW_TEXTS, 120)


def expand(old: Tokenizer, new: Tokenizer, ids: list[int]) -> list[int]:
    pieces = dict(enumerate(old_pieces(old, new), old.vocab_size))
    return [piece for index in ids for piece in pieces.get(index, [index])]


def test_new_tokens_are_made_of_the_old_pieces(old_and_new):
    old, new = old_and_new
    for text in [*STRESS.values(), *NEW_TEXTS, *ENGLISH[:5]]:
        ids = new.encode(text)
        assert expand(old, new, ids) == old.encode(text)
        assert new.decode(ids) == old.decode(old.encode(text))


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.sampled_from(sorted({*"".join(NEW_TEXTS), *"the aeiou.\n ▁\x01𠮷<|s>"})), max_size=60))
def test_any_text_keeps_its_meaning(old_and_new, text):
    old, new = old_and_new
    assert expand(old, new, new.encode(text)) == old.encode(text)


def test_old_tokens_keep_their_ids_and_new_ones_follow(old_and_new):
    old, new = old_and_new
    before, after = (t.backend.get_vocab(with_added_tokens=True) for t in (old, new))
    assert before.items() <= after.items()
    assert sorted(set(after.values()) - set(before.values())) == list(range(old.vocab_size, old.vocab_size + 120))
    assert new.specials == old.specials and new.vocab_size == old.vocab_size + 120
    text = "<|begin_of_text|><|eot_id|></s><s>"
    assert new.encode(text) == old.encode(text), "special tokens that a user writes out stay text"


def test_each_language_takes_fewer_tokens_and_english_no_more(old_and_new):
    old, new = old_and_new
    for name, texts in NEW.items():
        assert tokens_per_character(new, texts) < 0.6 * tokens_per_character(old, texts), name
    assert tokens_per_character(new, ENGLISH) <= tokens_per_character(old, ENGLISH)


def test_transformers_opens_it_with_the_same_ids(old_and_new, write_files):
    _, new = old_and_new
    folder = write_files(new)
    assert not (folder / NATIVE_FILE).exists(), "the old file would give the old ids"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    again = load_tokenizer(folder)
    assert again.fingerprint() == new.fingerprint()
    for text in [*STRESS.values(), *NEW_TEXTS]:
        ids = new.encode(text)
        assert theirs(text, split_special_tokens=True)["input_ids"] == again.encode(text) == ids
    assert theirs.decode(new.encode(NEW_TEXTS[0]), skip_special_tokens=True) == NEW_TEXTS[0]


def test_it_can_be_written_as_gguf(old_and_new):
    """Padded by two rows, as a model may be; the ids are those of the grown tokenizer again."""
    _, new = old_and_new
    again = tokenizer_from_gguf(tokenizer_to_gguf(new, new.vocab_size + 2))
    assert again is not None
    for text in [*NEW_TEXTS, *ENGLISH[:3]]:
        assert again.encode(text) == new.encode(text)


def test_the_last_merge_step_is_the_tokens(old_and_new):
    _, new = old_and_new
    for word, steps in merge_steps(new, NEW["Korean"][0][:60]):
        last = steps[-1].symbols if steps else word
        assert all(new.backend.token_to_id(symbol) is not None for symbol in last)


def test_the_same_text_gives_the_same_tokenizer():
    old = MAKERS["ours"]()
    assert grow(old, NEW_TEXTS, 50).fingerprint() == grow(old, iter(NEW_TEXTS), 50).fingerprint()


def test_it_can_grow_again():
    old = MAKERS["Llama 3"]()
    once = grow(old, NEW["Korean"], 30)
    twice = grow(once, NEW["Chinese"], 30)
    for text in NEW_TEXTS:
        assert expand(old, once, expand(once, twice, twice.encode(text))) == old.encode(text)


def test_a_user_defined_token_is_no_part_of_a_new_one():
    backend = runtime.Tokenizer.from_str(MAKERS["ours"]().backend.to_str())
    backend.add_tokens([runtime.AddedToken("việc", normalized=False)])
    old = Tokenizer(backend, {})
    new = grow(old, ["làm việc tốt, việclàm việc " * 20], 30)
    assert not any("việc" in new.decode([i]) for i in range(old.vocab_size, new.vocab_size))
    assert expand(old, new, new.encode("việc tốt việclàm")) == old.encode("việc tốt việclàm")


def test_progress_is_told():
    n_bytes, n_tokens = [], []
    grow(MAKERS["ours"](), NEW_TEXTS, 25, on_bytes=n_bytes.append, on_tokens=n_tokens.append)
    assert sum(n_bytes) == sum(len(text.encode()) for text in NEW_TEXTS) and sum(n_tokens) == 25


def test_a_short_text_yields_fewer():
    old = MAKERS["ours"]()
    new = grow(old, ["xin chào, xin chào"], 500)
    assert 0 < new.vocab_size - old.vocab_size < 20
    assert new.encode(" chào", add_special_tokens=False) == [new.backend.token_to_id("ĠchÃło")]


def test_what_cannot_grow_is_refused(char):
    with pytest.raises(UsageError, match="each of its tokens is one character"):
        grow(char, NEW_TEXTS, 10)
    with pytest.raises(UsageError, match="is a WordPiece"):
        grow(Tokenizer(runtime.Tokenizer(runtime.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")), {}), ["a"], 1)
    plain = json.loads(MAKERS["ours"]().backend.to_str())
    plain["model"] |= {"end_of_word_suffix": "</w>"}
    with pytest.raises(UsageError, match="marks its pieces"):
        grow(Tokenizer(runtime.Tokenizer.from_str(json.dumps(plain)), {}), ["a"], 1)
    plain["model"] |= {"end_of_word_suffix": None}
    with pytest.raises(UsageError, match="neither works on bytes"):
        grow(Tokenizer(runtime.Tokenizer.from_str(json.dumps(plain | {"pre_tokenizer": None})), {}), ["a"], 1)


@pytest.mark.parametrize("n", [0, -1, 2**20])
def test_a_number_out_of_range_is_refused(n):
    with pytest.raises(UsageError, match=f"{n} tokens are to be added; it must be 1 to"):
        grow(MAKERS["ours"](), NEW_TEXTS, n)


def test_a_text_without_repetition_is_refused():
    with pytest.raises(DataError, match="give more of it"):
        grow(MAKERS["ours"](), ["ạ"], 10)


def test_a_special_token_that_would_swallow_a_word_is_refused():
    """Llama 3's way keeps words whole that are tokens; `zzz` is one as soon as it stands in the vocabulary itself."""
    backend = runtime.Tokenizer.from_str(MAKERS["Llama 3"]().backend.to_str())
    backend.add_special_tokens(["zzz"])
    with pytest.raises(DataError, match="cannot be grown"):
        grow(Tokenizer(backend, {}), NEW_TEXTS, 10)


def test_smollm2_grows(smollm2, write_files):
    """The real one, whose special tokens stand at its beginning: transformers gives the new ids, and by their pieces the old."""
    old = load_tokenizer(smollm2)
    new = grow(old, NEW_TEXTS, 100)
    theirs = transformers.AutoTokenizer.from_pretrained(write_files(new))
    before = transformers.AutoTokenizer.from_pretrained(smollm2)
    for text in [*NEW_TEXTS, *STRESS.values()]:
        ids = theirs(text, split_special_tokens=True)["input_ids"]
        assert ids == new.encode(text)
        assert expand(old, new, ids) == before(text, split_special_tokens=True)["input_ids"]
    chat = [{"role": "user", "content": NEW["Korean"][0]}]
    assert (
        expand(old, new, theirs.apply_chat_template(chat)["input_ids"]) == before.apply_chat_template(chat)["input_ids"]
    )
