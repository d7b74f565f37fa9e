"""What is masked, how often, and that a mask depends on (seed, epoch, row) alone."""

import unicodedata
from pydoc_data import topics

import numpy as np
import pytest
import torch

from lamoid.data.masked import FullSentences, make_masking, word_beginnings
from lamoid.data.packed import write_tokens
from lamoid.data.sources import Passage
from lamoid.errors import DataError, UsageError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.gpt2 import train_roberta
from lamoid.tokenizers.wordpiece import train_wordpiece

SCRIPTS = [
    "Tiếng Việt được viết bằng chữ Quốc ngữ, với nhiều dấu thanh.",
    "大型语言模型可以理解和生成文本。它们由许多层组成！",
    "한국어 형태소 분석은 어렵습니다. ㅋㅋㅋ",
    "ラマは大きな動物です。 Unbelievably, 3.14 don't 😀👍🏽!",
    "Tie\u0302\u0301ng Vie\u0323\u0302t हिन्दी में ज्ञान ภาษาไทย",
]
TEXTS = [*[t for t in topics.topics.values() if len(t) > 2000][:10], *SCRIPTS * 10]


@pytest.fixture(scope="module")
def wordpiece():
    return train_wordpiece(TEXTS, 700)


@pytest.fixture(scope="module")
def roberta():
    return train_roberta(TEXTS, 700)


@pytest.fixture(scope="module", params=["wordpiece", "roberta"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def long_row(tokenizer, n_tokens=20_000):
    ids = [i for text in TEXTS for i in tokenizer.encode(text)]
    return np.array((ids * (n_tokens // len(ids) + 1))[:n_tokens])


def special_ids(tokenizer):
    return {tokenizer.special_id(role) for role in tokenizer.specials}


# ---- which tokens, and what they become


def test_fifteen_percent_are_chosen_and_the_rest_is_untouched(tokenizer):
    ids = long_row(tokenizer)
    hidden, labels = make_masking(tokenizer)(ids, 0, 0)
    chosen = labels != IGNORED
    eligible = ~np.isin(ids, list(special_ids(tokenizer)))
    assert chosen.sum() == round(0.15 * eligible.sum())
    assert not (chosen & ~eligible).any()
    assert (labels[chosen] == ids[chosen]).all()
    assert (hidden[~chosen] == ids[~chosen]).all()


def test_of_the_chosen_eighty_percent_are_masked_ten_replaced_ten_kept(tokenizer):
    """Within four standard deviations of the binomial distribution, on 3,000 tokens with a fixed seed."""
    ids, masking = long_row(tokenizer), make_masking(tokenizer, seed=1)
    masked = replaced = n = 0
    for row in range(10):
        hidden, labels = masking(ids, 0, row)
        chosen = labels != IGNORED
        masked += (hidden[chosen] == tokenizer.special_id("mask")).sum()
        replaced += ((hidden[chosen] != tokenizer.special_id("mask")) & (hidden[chosen] != ids[chosen])).sum()
        n += chosen.sum()
    n_ordinary = tokenizer.vocab_size - len(special_ids(tokenizer))
    for count, share in ((masked, 0.8), (replaced, 0.1 * (1 - 1 / n_ordinary))):
        assert abs(count - n * share) < 4 * (n * share * (1 - share)) ** 0.5


def test_random_tokens_are_spread_over_the_vocabulary_without_special_ones(tokenizer):
    ids, masking = long_row(tokenizer), make_masking(tokenizer)
    seen = set()
    for row in range(20):
        hidden, labels = masking(ids, 0, row)
        seen |= set(hidden[(labels != IGNORED) & (hidden != ids)].tolist())
    assert seen & special_ids(tokenizer) == {tokenizer.special_id("mask")}
    assert len(seen) > 0.95 * tokenizer.vocab_size


def test_every_place_is_chosen_equally_often(tokenizer):
    ids, masking = long_row(tokenizer, 60), make_masking(tokenizer)
    counts = sum((masking(ids, epoch, 0)[1] != IGNORED).astype(int) for epoch in range(2000))
    eligible = ~np.isin(ids, list(special_ids(tokenizer)))
    share = counts[eligible] / 2000
    expected = round(0.15 * eligible.sum()) / eligible.sum()
    assert abs(share - expected).max() < 4.5 * (expected * (1 - expected) / 2000) ** 0.5
    assert not counts[~eligible].any()


@pytest.mark.parametrize(("n_tokens", "n_chosen"), [(1, 1), (2, 1), (3, 1), (10, 2), (100, 15), (0, 0)])
def test_short_rows_have_at_least_one_chosen(wordpiece, n_tokens, n_chosen):
    ids = np.array([2, *[300] * n_tokens, 3])
    _, labels = make_masking(wordpiece)(ids, 0, 0)
    assert (labels != IGNORED).sum() == n_chosen
    assert labels[0] == labels[-1] == IGNORED


@pytest.mark.parametrize("rate", [0.01, 0.4, 0.99])
def test_the_rate_is_what_was_asked_for(tokenizer, rate):
    ids = long_row(tokenizer, 5000)
    eligible = (~np.isin(ids, list(special_ids(tokenizer)))).sum()
    assert (make_masking(tokenizer, rate=rate)(ids, 0, 0)[1] != IGNORED).sum() == round(rate * eligible)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_out_of_range_is_refused(tokenizer, rate):
    with pytest.raises(UsageError, match="rate"):
        make_masking(tokenizer, rate=rate)


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(DataError, match="no mask token; .* wordpiece"):
        make_masking(train_bpe(SCRIPTS, 300))


# ---- a function of (seed, epoch, row)


def test_dynamic_masks_change_with_epoch_row_and_seed_and_with_nothing_else(tokenizer):
    ids = long_row(tokenizer, 200)
    draws = [
        make_masking(tokenizer, seed=seed)(ids, epoch, row)[1].tolist()
        for seed, epoch, row in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2, 0)]
    ]
    assert len({tuple(draw) for draw in draws}) == 5
    masking = make_masking(tokenizer, seed=0)
    masking(ids, 7, 7)
    for _ in range(2):
        assert masking(ids, 1, 0)[1].tolist() == draws[2]


def test_static_masks_are_those_of_the_first_epoch(tokenizer):
    ids = long_row(tokenizer, 200)
    static, dynamic = make_masking(tokenizer, dynamic=False), make_masking(tokenizer)
    for epoch in range(3):
        for part, expected in zip(static(ids, epoch, 5), dynamic(ids, 0, 5), strict=True):
            assert (part == expected).all()


# ---- whole words


def words_of(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    begins = word_beginnings(tokenizer)[ids]
    cuts = [i for i, begin in enumerate(begins) if begin or i == 0]
    return [tokenizer.decode(ids[a:b]).strip() for a, b in zip(cuts, [*cuts[1:], len(ids)], strict=True)]


def test_words_of_wordpiece(wordpiece):
    words = words_of(wordpiece, "Unbelievably, Tiếng 生成 한국어")  # uncased BERT takes Korean syllables apart
    assert words == ["unbelievably", ",", "tieng", "生", "成", unicodedata.normalize("NFD", "한국어")]


def test_words_of_byte_level_bpe(roberta):
    assert words_of(roberta, "Unbelievably, Tiếng Việt") == ["Unbelievably", ",", "Tiếng", "Việt"]
    assert words_of(roberta, "don't 3.14\nend") == ["don", "'t", "3", ".14", "end"]
    assert words_of(roberta, "한국어 형태소 Tie\u0302\u0301ng") == ["한국어", "형태소", "Tie\u0302\u0301ng"]
    assert words_of(roberta, "हिन्दी में ภาษาไทย") == ["हिन्दी", "में", "ภาษาไทย"]


def test_unseen_chinese_characters_are_words_though_their_bytes_are_cut(roberta):
    assert words_of(roberta, "鼎鼐𠮷") == ["鼎", "鼐", "𠮷"]


def test_words_are_hidden_whole_or_not_at_all(tokenizer):
    masking = make_masking(tokenizer, whole_words=True)
    ids = np.array(tokenizer.encode(" ".join(TEXTS[:3])))
    begins = word_beginnings(tokenizer)
    for epoch in range(5):
        _, labels = masking(ids, epoch, 0)
        chosen = labels != IGNORED
        eligible = ~masking.is_special[ids]
        assert 0.14 * eligible.sum() < chosen.sum() <= round(0.15 * eligible.sum())
        inside = eligible & ~begins[ids]
        inside[1:] &= eligible[:-1]
        assert (chosen[1:] == chosen[:-1])[inside[1:]].all()
        assert inside.sum() > 100


def test_chinese_is_hidden_too_where_words_are_whole(tokenizer):
    ids = np.array(tokenizer.encode("大型语言模型可以理解和生成文本。它们由许多层组成！" * 3))
    _, labels = make_masking(tokenizer, whole_words=True)(ids, 0, 0)
    assert 0 < (labels != IGNORED).sum() <= round(0.15 * len(ids))


def test_a_word_ends_at_a_special_token(wordpiece):
    """Where running text crosses from one document to the next, or is cut inside a word."""
    going_on = wordpiece.encode("zxqzx", add_special_tokens=False)[1]
    assert not word_beginnings(wordpiece)[going_on]
    ids = np.array([2, going_on, 3, going_on, going_on, 3, going_on, 3])
    masking = make_masking(wordpiece, whole_words=True, rate=0.25)  # one of four tokens
    seen = {tuple(np.flatnonzero(masking(ids, epoch, 0)[1] != IGNORED).tolist()) for epoch in range(60)}
    assert seen == {(1,), (6,)}


def test_one_long_word_is_hidden_in_part(wordpiece):
    ids = np.array([2, *wordpiece.encode("zxqzxqzxqzxqzxqzxq", add_special_tokens=False), 3])
    assert len(ids) > 8 and not word_beginnings(wordpiece)[ids[2:-1]].any()
    _, labels = make_masking(wordpiece, whole_words=True)(ids, 0, 0)
    assert (labels != IGNORED).sum() == round(0.15 * (len(ids) - 2))


# ---- rows of running text


def full_sentences(tokenizer, tokens, **options):
    settings = {"row_tokens": 16, "batch_rows": 4, "seed": 0, "cls_id": 2, "sep_id": 3} | options
    dynamic = settings.pop("dynamic", True)
    return FullSentences(tokens, masking=make_masking(tokenizer, dynamic=dynamic), **settings)


def restored(batch):
    return torch.where(batch.labels == IGNORED, batch.input_ids, batch.labels)


def test_rows_are_windows_between_cls_and_sep(wordpiece):
    tokens = np.arange(300, 600, dtype=np.uint16)
    rows = full_sentences(wordpiece, tokens)
    batch, position = rows((0, 0))
    assert batch.input_ids.shape == (4, 16)
    assert position == (0, 4)
    table = restored(batch)
    assert (table[:, 0] == 2).all() and (table[:, -1] == 3).all()
    assert (table[:, 1:-1].diff(dim=1) == 1).all()
    assert batch.attention_mask.all() and not batch.segment_ids.any() and batch.next_sentence is None
    assert (batch.labels[:, [0, -1]] == IGNORED).all()


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("n_tokens", [14, 15, 27, 28, 29, 200])
def test_an_epoch_has_each_token_at_most_once(wordpiece, n_tokens, dynamic):
    tokens = np.arange(300, 300 + n_tokens, dtype=np.uint16)
    rows = full_sentences(wordpiece, tokens, dynamic=dynamic, batch_rows=1)
    for epoch in range(3):
        batches = [rows((epoch, used)) for used in range(rows.rows_per_epoch)]
        assert batches[-1][1] == (epoch + 1, 0)
        seen = torch.cat([restored(batch)[0, 1:-1] for batch, _ in batches]).tolist()
        assert len(set(seen)) == len(seen) == rows.rows_per_epoch * 14
        assert len(seen) > n_tokens - (28 if dynamic else 14)


def test_static_rows_are_the_same_each_epoch_and_dynamic_ones_are_not(wordpiece):
    tokens = np.arange(300, 600, dtype=np.uint16)

    def epoch_of(rows, epoch):
        batches = [rows((epoch, used))[0] for used in range(rows.rows_per_epoch)]
        return {(tuple(b.input_ids[0].tolist()), tuple(b.labels[0].tolist())) for b in batches}

    static = full_sentences(wordpiece, tokens, dynamic=False, batch_rows=1)
    assert epoch_of(static, 0) == epoch_of(static, 1) == epoch_of(static, 9)
    dynamic = full_sentences(wordpiece, tokens, batch_rows=1)
    assert not epoch_of(dynamic, 0) & epoch_of(dynamic, 1)


def test_a_batch_depends_on_its_position_alone(wordpiece):
    tokens = np.arange(300, 600, dtype=np.uint16)
    first, again = full_sentences(wordpiece, tokens), full_sentences(wordpiece, tokens)
    position, trail = (0, 0), []
    for _ in range(12):
        batch, following = first(position)
        trail.append((position, batch))
        position = following
    assert position[0] >= 2
    for position, batch in reversed(trail):
        same, _ = again(position)
        assert torch.equal(same.input_ids, batch.input_ids) and torch.equal(same.labels, batch.labels)


def test_too_little_text_is_refused(wordpiece):
    with pytest.raises(DataError, match="the text has 13 tokens; a row of 16 takes 14"):
        full_sentences(wordpiece, np.arange(13))
    with pytest.raises(DataError, match="row of 2 "):
        full_sentences(wordpiece, np.arange(13), row_tokens=2)


def test_a_separator_stands_behind_each_document_and_nothing_before(tmp_path, wordpiece, roberta):
    parts = [Passage("một hai", "a", True, False), Passage("ba", "a", False, True), Passage("生成", "b", True, True)]
    for tokenizer in (wordpiece, roberta):
        sep = tokenizer.special_id("sep")
        write_tokens(tmp_path / "tokens.bin", parts, tokenizer, separator=sep)
        first, second, third = (tokenizer.encode(p.text, add_special_tokens=False) for p in parts)
        assert np.fromfile(tmp_path / "tokens.bin", np.uint16).tolist() == [*first, *second, sep, *third, sep]
