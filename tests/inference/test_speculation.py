"""Guessing ahead changes how many steps there are, and nothing else."""

import numpy as np
import pytest
from tests.inference.native.exercise import random_model

from lamoid.inference.engine import NativeDecoder, NativeModel
from lamoid.inference.native.library import Team
from lamoid.inference.sampling import Sampler, Sampling
from lamoid.inference.speculation import SpeculatingDecoder


def decode(decoder, prompts: list[list[int]], n: int, sampling: Sampling) -> tuple[list[list[int]], list[np.ndarray]]:
    samplers, ids = [Sampler(sampling, seed=3) for _ in prompts], [list(prompt) for prompt in prompts]
    logits, seen = decoder.prefill(prompts), []
    for _ in range(n):
        seen.append(logits)
        for row, sampler in enumerate(samplers):
            ids[row].append(sampler.choose(logits[row], ids[row]))
        logits = decoder.step([row[-1] for row in ids])
    return ids, seen


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(temperature=0.7, repetition_penalty=1.2)])
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_text_and_logits_are_those_of_plain_decoding(kind, sampling):
    model = NativeModel(random_model(kind, vocab_size=7), Team(2))
    for prompt in ([1, 2, 3, 4] * 20, [5], [1, 2, 3, 1, 2, 3, 1, 2], [3] * 100):
        speculating = SpeculatingDecoder(NativeDecoder(model))
        ids, logits = decode(speculating, [prompt], 120, sampling)
        plain_ids, plain_logits = decode(NativeDecoder(model), [prompt], 120, sampling)
        assert ids == plain_ids
        assert all(np.array_equal(a, b) for a, b in zip(logits, plain_logits, strict=True))
        assert speculating.n_guessed > 0


def test_right_guesses_save_steps(monkeypatch):
    """Greedy decoding of a small vocabulary runs in circles, and circles are guessed."""
    model = NativeModel(random_model("F32", vocab_size=3), Team(1))
    calls, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *a: calls.append(1) or forward(*a))
    speculating = SpeculatingDecoder(NativeDecoder(model))
    decode(speculating, [[1, 2, 0]], 200, Sampling(temperature=0))
    assert len(calls) < 60 and len(calls) + speculating.n_right == 201  # the prompt, and 200 tokens


def test_the_next_turn_reads_what_is_new_alone(monkeypatch):
    """Whatever was guessed before: the answer's pages are known, all of them."""
    model = NativeModel(random_model("F32", vocab_size=43), Team(1))
    speculating, computed, forward = SpeculatingDecoder(NativeDecoder(model)), [], model.forward
    ids, _ = decode(speculating, [[1, 2, 0]], 200, Sampling(temperature=5.0))
    monkeypatch.setattr(model, "forward", lambda ids, *rest: computed.append(len(ids)) or forward(ids, *rest))
    got = speculating.prefill([[*ids[0], 4, 5]])
    assert sum(computed) <= 3
    assert np.array_equal(got, NativeDecoder(model).prefill([[*ids[0], 4, 5]]))


def test_the_end_of_the_context_is_not_passed():
    weights = random_model("F32", vocab_size=7, max_seq_len=60)
    decoder = NativeDecoder(NativeModel(weights, Team(1)))
    longest, step_many = [], decoder.step_many

    def watched(ids):
        longest.append(len(decoder._tables[0].ids) + len(ids))
        return step_many(ids)

    decoder.step_many = watched  # type: ignore[method-assign]
    decode(SpeculatingDecoder(decoder), [[1, 2, 3]], 57, Sampling(temperature=0))
    assert max(longest) == 60


def test_batches_are_decoded_as_usual():
    model = NativeModel(random_model("Q8_0", vocab_size=7), Team(1))
    prompts = [[1, 2, 3] * 5, [4, 5]]
    ids, _ = decode(SpeculatingDecoder(NativeDecoder(model)), prompts, 20, Sampling(temperature=0))
    assert ids == decode(NativeDecoder(model), prompts, 20, Sampling(temperature=0))[0]


def test_a_second_prompt_begins_anew():
    model = NativeModel(random_model("Q8_0", vocab_size=7), Team(1))
    speculating, plain = SpeculatingDecoder(NativeDecoder(model)), NativeDecoder(model)
    for prompt in ([1, 2, 3] * 30, [1, 2, 3] * 31, [2]):
        ids, _ = decode(speculating, [prompt], 30, Sampling(temperature=0))
        assert ids == decode(plain, [prompt], 30, Sampling(temperature=0))[0]
