"""The generation loop against transformers' `generate`, and the rules of streaming, stopping and batching."""

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from lamoid.checkpoints.hf import write_model
from lamoid.errors import DataError, UsageError
from lamoid.inference.decoder import TorchDecoder
from lamoid.inference.generate import generate, stream
from lamoid.inference.sampling import Sampling
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.char import train_char

PROMPTS = ["Việt Nam", "a", "你好，世界。这是一个比较长的提示", "한국어 text", "مرحبا بالعالم", "👨‍👩‍👧 hello"]
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(PROMPTS * 3, 330)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=10,
        d_ff=48,
        max_seq_len=96,
        init_std=0.3,
    )
    return Llama(config).initialise(0).eval()


@pytest.fixture(scope="module")
def twin(model, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("twin")
    write_model(directory, model, tokenizer)
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


class Script:
    """A decoder that says what it is told: the ids of each sequence in turn."""

    max_seq_len = 10_000

    def __init__(self, vocab_size, *scripts):
        self.vocab_size, self.scripts = vocab_size, [iter([*s, *itertools.repeat(s[-1], 500)]) for s in scripts]

    def _logits(self):
        logits = np.zeros((len(self.scripts), self.vocab_size), dtype=np.float32)
        for row, script in enumerate(self.scripts):
            logits[row, next(script)] = 9.0
        return logits

    def prefill(self, prompts):
        return self._logits()

    def step(self, ids):
        return self._logits()

    def keep_rows(self, rows):
        self.scripts = [self.scripts[row] for row in rows]


def say(tokenizer, text, **settings):
    """Let a scripted model say a text; returns the chunks and the completion."""
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.special_id("eos")]
    settings = {"sampling": GREEDY, "max_new_tokens": 200} | settings
    chunks = list(stream(Script(tokenizer.vocab_size, ids), tokenizer, ["x"], **settings))
    return [chunk.text for chunk in chunks], chunks[-1].completion


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_ids_equal_transformers(model, tokenizer, twin, prompt):
    ids = tokenizer.encode(prompt)
    expected = twin.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=24, do_sample=False, eos_token_id=-1
    )[0, len(ids) :].tolist()
    done = generate(TorchDecoder(model), tokenizer, [prompt], sampling=GREEDY, max_new_tokens=24, end_ids=[])[0]
    assert done.ids == expected
    assert done.text == tokenizer.decode(expected)
    assert (done.finish_reason, done.prompt_tokens) == ("length", len(ids))


@pytest.mark.parametrize("n_padded", [1, 51])
def test_ids_that_no_token_has_are_never_chosen(model, tokenizer, tmp_path, n_padded):
    """A padded vocabulary, whose extra ids are by far the likeliest; transformers is told to leave them out."""
    vocab_size = tokenizer.vocab_size + n_padded
    padded = Llama(replace(model.config, vocab_size=vocab_size)).initialise(0).eval()
    padded.load_state_dict(
        {
            name: F.pad(w, (0, 0, 0, n_padded), value=9.0) if len(w) == tokenizer.vocab_size else w
            for name, w in model.state_dict().items()
        }
    )
    with torch.no_grad():  # whatever the prompt, one of each pair is the likeliest
        padded.lm_head.weight[tokenizer.vocab_size :: 2] *= -1
    write_model(tmp_path, padded, tokenizer)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    extra = list(range(tokenizer.vocab_size, vocab_size))
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        settings = dict(max_new_tokens=12, do_sample=False, eos_token_id=-1, suppress_tokens=extra)
        expected = peer.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **settings)
        done = generate(TorchDecoder(padded), tokenizer, [prompt], sampling=GREEDY, max_new_tokens=12, end_ids=[])[0]
        assert done.ids == expected[0, len(ids) :].tolist()
    for sampling in (Sampling(temperature=5.0, top_p=1.0), Sampling(top_k=n_padded), Sampling(repetition_penalty=1.3)):
        for done in generate(
            TorchDecoder(padded), tokenizer, PROMPTS, sampling=sampling, max_new_tokens=40, end_ids=[]
        ):
            assert len(done.ids) == 40 and max(done.ids) < tokenizer.vocab_size
            assert done.text == tokenizer.decode(done.ids)
    with pytest.raises(DataError, match=f"id {tokenizer.vocab_size} is outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_with_a_repetition_penalty_equals_transformers(model, tokenizer, twin, prompt):
    ids = tokenizer.encode(prompt)
    expected = twin.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        max_new_tokens=24,
        do_sample=False,
        repetition_penalty=1.4,
        eos_token_id=-1,
    )[0, len(ids) :].tolist()
    sampling = Sampling(temperature=0.0, repetition_penalty=1.4)
    done = generate(TorchDecoder(model), tokenizer, [prompt], sampling=sampling, max_new_tokens=24, end_ids=[])[0]
    assert done.ids == expected


@pytest.mark.parametrize("temperature", [0.0, 0.8, 3.0])
def test_chunks_joined_are_the_text(model, tokenizer, temperature):
    arguments = dict(sampling=Sampling(temperature=temperature, top_p=1.0), max_new_tokens=40, seed=3)
    chunks = list(stream(TorchDecoder(model), tokenizer, PROMPTS, **arguments))
    done = generate(TorchDecoder(model), tokenizer, PROMPTS, **arguments)
    for index, completion in enumerate(done):
        own = [chunk for chunk in chunks if chunk.index == index]
        assert "".join(chunk.text for chunk in own) == completion.text == tokenizer.decode(completion.ids)
        assert [chunk.completion for chunk in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].completion == completion
    assert any(len(completion.text) > 20 for completion in done)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0), Sampling(1.2, 1.5, 40, 0.9, 0.01)], ids=str)
def test_a_prompt_in_a_batch_gets_what_it_gets_alone(model, tokenizer, sampling):
    arguments = dict(sampling=sampling, max_new_tokens=20, seed=7)
    together = generate(TorchDecoder(model), tokenizer, PROMPTS, **arguments)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        alone = generate(TorchDecoder(model), tokenizer, [prompt], **arguments)[0]
        assert (alone.ids, alone.text, alone.finish_reason) == (
            completion.ids,
            completion.text,
            completion.finish_reason,
        )
        np.testing.assert_allclose(alone.log_probabilities, completion.log_probabilities, atol=1e-4)


def test_those_that_end_early_leave_the_others_alone(model, tokenizer):
    """Each prompt's third token ends it: the rows leave the batch at different steps."""
    free = generate(TorchDecoder(model), tokenizer, PROMPTS, sampling=GREEDY, max_new_tokens=20, end_ids=[])
    ends = [free[0].ids[3], free[2].ids[6]]
    done = generate(TorchDecoder(model), tokenizer, PROMPTS, sampling=GREEDY, max_new_tokens=20, end_ids=ends)
    for before, after in zip(free, done, strict=True):
        cut = next((i for i, index in enumerate(before.ids) if index in ends), None)
        assert after.ids == before.ids[:cut]
        assert after.finish_reason == ("length" if cut is None else "end")
    assert len({len(completion.ids) for completion in done}) > 2


def test_log_probabilities_are_those_of_a_full_forward_pass(model, tokenizer):
    """Of the model itself: neither the temperature nor the filters of the sampling show in them."""
    done = generate(TorchDecoder(model), tokenizer, PROMPTS, sampling=Sampling(1.3, 2.0, 30, 0.9), max_new_tokens=15)
    for prompt, completion in zip(PROMPTS, done, strict=True):
        ids = tokenizer.encode(prompt) + completion.ids
        with torch.no_grad():
            log_p = model(torch.tensor([ids]))[0].double().log_softmax(dim=-1)
        expected = [float(log_p[i - 1, ids[i]]) for i in range(len(ids) - len(completion.ids), len(ids))]
        np.testing.assert_allclose(completion.log_probabilities, expected, rtol=1e-4, atol=1e-4)
        assert len(completion.log_probabilities) == len(completion.ids) > 0


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["two three", "three"], "one "),
        ("one two three", ["o three"], "one tw"),
        ("one two three", ["one"], ""),
        ("aaaab", ["aab"], "aa"),
        ("你好，世界。这是", ["世界"], "你好，"),
        ("👨‍👩‍👧 hello", ["\u200d👧"], "👨‍👩"),
        ("end\n\nUser: x", ["\n\nUser:"], "end"),
    ],
)
@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_stop_string_ends_the_text_and_is_never_shown(tokenizer, kind, text, stop, shown):
    tokenizer = tokenizer if kind == "bpe" else train_char([text])
    chunks, done = say(tokenizer, text, stop=stop)
    assert "".join(chunks) == done.text == shown
    assert done.finish_reason == "stop"
    assert len(done.ids) == len(done.log_probabilities) < 200
    so_far = itertools.accumulate(chunks)
    assert all(shown.startswith(part) for part in so_far)


@pytest.mark.parametrize("text", ["one tw", "one twt", "on one tw two"])
def test_what_looked_like_a_stop_string_is_shown_in_the_end(tokenizer, text):
    chunks, done = say(tokenizer, text, stop=["twist", "wos"])
    assert "".join(chunks) == done.text == text
    assert done.finish_reason == "end"


def test_text_is_shown_as_soon_as_it_cannot_become_a_stop_string(tokenizer):
    char = train_char(["abcdx"])
    chunks, _ = say(char, "abxabcd", stop=["abcx"])
    assert chunks == ["abx", "abcd", ""]  # "ab" is held until the x comes, "abc" until the d
    assert say(char, "abcd")[0] == ["a", "b", "c", "d", ""]


def test_half_a_character_is_held_back(tokenizer):
    char = train_char(["ab"])  # everything else comes byte by byte
    chunks, done = say(char, "a你😀b")
    assert chunks == ["a", "你", "😀", "b", ""]
    assert done.text == "a你😀b"


def test_half_a_character_at_the_end_is_marked(tokenizer):
    char = train_char(["ab"])
    chunks, done = say(char, "a你", max_new_tokens=3)
    assert "".join(chunks) == done.text == "a\ufffd\ufffd"
    assert (done.finish_reason, len(done.ids)) == ("length", 3)


def test_stray_bytes_do_not_end_the_run():
    char = train_char(["ab"])
    ids = [*"你".encode(), 0xC3, *char.encode("ab", add_special_tokens=False), 0x80, char.special_id("eos")]
    chunks = list(stream(Script(char.vocab_size, ids), char, ["x"], sampling=GREEDY))
    assert "".join(chunk.text for chunk in chunks) == chunks[-1].completion.text == "你\ufffdab\ufffd"


def test_the_end_token_ends_and_is_not_in_the_ids(tokenizer):
    ids = tokenizer.encode("hello", add_special_tokens=False)
    chunks, done = say(tokenizer, "hello")
    assert (done.ids, done.text, done.finish_reason) == (ids, "hello", "end")
    assert len(done.log_probabilities) == len(ids)
    assert chunks[-1] == ""
    _, done = say(tokenizer, "hello", end_ids=[ids[1]])
    assert (done.ids, done.finish_reason) == (ids[:1], "end")
    _, done = say(tokenizer, "hello", end_ids=[], max_new_tokens=len(ids) + 3)
    assert done.ids == ids + [tokenizer.special_id("eos")] * 3
    assert (done.text, done.finish_reason) == ("hello", "length")


def test_prompt_and_new_tokens_fill_the_context_exactly(model, tokenizer):
    ids = tokenizer.encode("a")
    fits = 96 - len(ids)
    done = generate(TorchDecoder(model), tokenizer, ["a"], max_new_tokens=fits, end_ids=[])[0]
    assert len(done.ids) == fits
    with pytest.raises(UsageError, match=rf"{len(ids)} prompt tokens \+ max_new_tokens {fits + 1} exceed .* 96;"):
        stream(TorchDecoder(model), tokenizer, ["a"], max_new_tokens=fits + 1)
    long = [5] * 90
    with pytest.raises(UsageError, match=r"90 prompt tokens \+ max_new_tokens 10 exceed the context of 96"):
        stream(TorchDecoder(model), tokenizer, ["a", long], max_new_tokens=10)


@pytest.mark.parametrize("prompt", ["", [], ()], ids=repr)
def test_an_empty_prompt_is_refused(model, tokenizer, prompt):
    with pytest.raises(UsageError, match="the prompt is empty"):
        stream(TorchDecoder(model), tokenizer, ["fine", prompt])


@pytest.mark.parametrize("prompt", [[-1], [330], [1, 10**9]], ids=repr)
def test_ids_outside_the_vocabulary_are_refused(model, tokenizer, prompt):
    with pytest.raises(UsageError, match="ids outside the vocabulary; they run from 0 to 329"):
        stream(TorchDecoder(model), tokenizer, [prompt])


def test_a_lone_surrogate_is_refused(model, tokenizer):
    with pytest.raises(DataError, match=r"lone surrogate U\+D800 at position 1"):
        stream(TorchDecoder(model), tokenizer, ["a\ud800"])


@pytest.mark.parametrize("stop", [[""], ["a", ""], ("",)], ids=repr)
def test_an_empty_stop_string_is_refused(model, tokenizer, stop):
    with pytest.raises(UsageError, match=r"^stop is .*; it must be a list of strings that are not empty"):
        stream(TorchDecoder(model), tokenizer, ["a"], stop=stop)


@pytest.mark.parametrize("count", [0, -1, 10**9])
def test_max_new_tokens_must_be_above_zero_and_fit(model, tokenizer, count):
    with pytest.raises(UsageError, match=rf"max_new_tokens (is )?{count}\b"):
        stream(TorchDecoder(model), tokenizer, ["a"], max_new_tokens=count)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused_before_the_first_step(model, tokenizer, seed):
    with pytest.raises(UsageError, match=r"^seed is"):
        stream(TorchDecoder(model), tokenizer, ["a"], seed=seed, max_new_tokens=5)


WRONG_TYPES = """
from lamoid.errors import UsageError
from lamoid.inference.generate import stream
from lamoid.tokenizers.char import train_char

class Decoder:
    max_seq_len = 100

calls = [("stop", v) for v in ("text", [3], [None], [b"a"], 3, None, True, {"a": 1})]
calls += [("max_new_tokens", v) for v in (1.5, "5", None, True)]
calls += [("seed", v) for v in ("1", None, True, 1.0)]
for name, value in calls:
    try:
        stream(Decoder(), train_char(["a"]), ["a"], **({"max_new_tokens": 5} | {name: value}))
    except UsageError as error:
        assert str(error).startswith(f"{name} is {value!r}; it must be "), error
    else:
        raise AssertionError(f"{name} {value!r} was taken")
print(len(calls))
"""


def test_a_value_of_the_wrong_type_is_refused_by_name():
    """In a process without the types' own checks, which only tests have."""
    output = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True)
    assert (output.stdout, output.stderr) == ("16\n", "")


def test_no_prompts_give_no_completions(model, tokenizer):
    assert generate(TorchDecoder(model), tokenizer, []) == []


def test_ids_and_text_of_a_prompt_are_the_same(model, tokenizer):
    text, ids = PROMPTS[2], tokenizer.encode(PROMPTS[2])
    first, second = (generate(TorchDecoder(model), tokenizer, [p], max_new_tokens=10)[0] for p in (text, ids))
    assert first == second
