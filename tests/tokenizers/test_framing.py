"""Truncation and windows against transformers' `longest_first` and `only_second`, ids, segments and offsets alike."""

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizers.conftest import STRESS, TRAINING

from lamoid.errors import DataError, UsageError
from lamoid.tokenizers import framing
from lamoid.tokenizers.framing import SPECIAL, frame_many, share, windows
from lamoid.tokenizers.gpt2 import train_roberta
from lamoid.tokenizers.load import load_tokenizer

CASES = settings(max_examples=200, deadline=None, derandomize=True, database=None)
TEXTS = list(STRESS.values())


@pytest.fixture(scope="module", params=["bert", "roberta"])
def both(request, minilm, tmp_path_factory):
    """Our tokenizer and transformers' of the same files."""
    if request.param == "bert":
        return load_tokenizer(minilm), transformers.AutoTokenizer.from_pretrained(minilm)
    ours, folder = train_roberta(TRAINING, 1000), tmp_path_factory.mktemp("roberta")
    for name, content in ours.files().items():
        (folder / name).write_bytes(content)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("max_tokens", [5, 6, 7, 12, 13, 40, 5000])
def test_pairs_are_cut_as_transformers_cuts_them(both, max_tokens):
    ours, twin = both
    first, second = TEXTS, TEXTS[3:] + TEXTS[:3]
    rows = frame_many(ours, first, second, max_tokens=max_tokens)
    for a, b, row in zip(first, second, rows, strict=True):
        options = {"max_length": max_tokens, "truncation": "longest_first", "split_special_tokens": True}
        expected = twin(a, b, return_token_type_ids=True, return_offsets_mapping=True, **options)
        assert row.ids.tolist() == expected["input_ids"]
        assert row.segments.tolist() == expected["token_type_ids"]
        assert [*map(tuple, row.offsets.tolist())] == expected["offset_mapping"]
        assert [None if s == SPECIAL else s for s in row.sources.tolist()] == expected.sequence_ids()
        assert row.n_cut == len(ours.encode(a, b)) - len(row)


@pytest.mark.parametrize("max_tokens", [3, 4, 9, 5000])
def test_texts_are_cut_as_transformers_cuts_them(both, max_tokens):
    ours, twin = both
    expected = twin(TEXTS, max_length=max_tokens, truncation=True, split_special_tokens=True)["input_ids"]
    assert [row.ids.tolist() for row in frame_many(ours, TEXTS, max_tokens=max_tokens)] == expected


@pytest.fixture(scope="module")
def copy(both):
    """The runtime by itself, whose own truncation may be switched on."""
    return type(both[0].backend).from_str(both[0].backend.to_str())


@CASES
@given(a=st.integers(0, 30), b=st.integers(0, 30), room=st.integers(1, 40))
def test_what_two_texts_share_is_what_the_runtime_leaves_them(copy, a, b, room):
    first, second = ["a"] * a, ["b"] * b
    copy.no_truncation()
    lengths = [len(copy.encode(" ".join(words), add_special_tokens=False).ids) for words in (first, second)]
    copy.enable_truncation(room + copy.num_special_tokens_to_add(True), strategy="longest_first")
    sources = copy.encode(" ".join(first), " ".join(second)).sequence_ids
    assert share(*lengths, room) == (sources.count(0), sources.count(1))


@pytest.mark.parametrize(("max_tokens", "overlap"), [(20, 0), (20, 3), (33, 12), (64, 16), (5000, 100)])
def test_windows_are_those_of_transformers(both, max_tokens, overlap):
    ours, twin = both
    for context in TEXTS:
        options = {"truncation": "only_second", "max_length": max_tokens, "stride": overlap}
        options |= {"return_overflowing_tokens": True, "return_offsets_mapping": True, "split_special_tokens": True}
        expected = twin("Gì? 么", context, return_token_type_ids=True, **options)
        made = windows(ours, "Gì? 么", context, max_tokens=max_tokens, overlap=overlap)
        assert [w.ids.tolist() for w in made] == expected["input_ids"]
        assert [w.segments.tolist() for w in made] == expected["token_type_ids"]
        assert [[*map(tuple, w.offsets.tolist())] for w in made] == expected["offset_mapping"]


def test_windows_cover_every_token_and_share_as_many_as_asked_for(both):
    ours, _ = both
    context = " ".join(f"w{number}" for number in range(200))
    whole = ours.encode(context, add_special_tokens=False)
    made = [w.ids[w.sources == 1].tolist() for w in windows(ours, "q", context, max_tokens=50, overlap=7)]
    assert all(a[-7:] == b[:7] for a, b in zip(made, made[1:], strict=False))
    assert made[0] + [i for piece in made[1:] for i in piece[7:]] == whole


def test_an_empty_second_text_makes_one_window(both):
    ours, _ = both
    (window,) = windows(ours, "q", "", max_tokens=20, overlap=5)
    assert window.ids.tolist() == ours.encode("q", "")


def test_a_first_text_without_room_behind_it_is_named(both):
    ours, _ = both
    with pytest.raises(DataError, match=r"'why why why.* leaves .* of 20 .*overlap of 4"):
        windows(ours, "why " * 30, "because", max_tokens=20, overlap=4)
    with pytest.raises(UsageError, match="overlap is -1"):
        windows(ours, "q", "a", max_tokens=20, overlap=-1)


def test_a_limit_below_the_special_tokens_is_refused(both):
    ours, _ = both
    n_special = len(ours.encode("", ""))
    with pytest.raises(UsageError, match=rf"max_tokens is {n_special}; .* need {n_special + 1}"):
        frame_many(ours, ["a"], ["b"], max_tokens=n_special)


def test_a_lone_surrogate_is_named(both):
    with pytest.raises(DataError, match="U\\+D800 at position 1"):
        frame_many(both[0], ["fine", "x\ud800"], max_tokens=9)


def test_many_texts_are_framed_as_one_by_one(both, monkeypatch):
    ours, _ = both
    monkeypatch.setattr(framing, "ENCODED_AT_ONCE", 7)
    rows = frame_many(ours, TEXTS, TEXTS[::-1], max_tokens=30)
    alone = [frame_many(ours, [a], [b], max_tokens=30)[0] for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    assert [row.ids.tolist() for row in rows] == [row.ids.tolist() for row in alone]
