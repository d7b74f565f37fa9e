"""Pretraining of encoders through the command line: resumed exactly, opened by transformers, and its wrong calls."""

import os
import random
import signal
import time

import pytest
import torch
import transformers

import lamoid

SMALL = {"vocab-size": 300, "context": 32, "batch-rows": 4, "max-steps": 24, "eval-every": 5, "sample-every": 10}
SMALL |= {"heldout-share": 0.3}
KINDS = {
    "pairs": {"model": "bert-tiny"},
    "static": {"model": "bert-tiny", "nsp": False, "masking": "static", "whole-words": True},
}


@pytest.fixture
def make_encoder(make_run):
    def make(name: str, **flags: object):
        given = SMALL | flags
        if given.get("nsp") is False:
            del given["nsp"]
            given["no-nsp"] = True
        return make_run(name, **given)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_killed_three_times_is_bit_identical(make_encoder, kind):
    reference, run = make_encoder("reference", **KINDS[kind]), make_encoder("killed", **KINDS[kind])
    assert reference.finish() == 0, reference.messages()
    generator = random.Random(3)
    for _ in range(3):
        process, goal = run.start(), len(run.records()) + generator.randint(1, 4)
        while process.exitcode is None and len(run.records()) < goal:
            time.sleep(0.0005)
        assert process.exitcode is None, run.messages()[-500:]
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert run.finish() == 0, run.messages()
    assert run.numbers() == reference.numbers()
    assert run.weights() == reference.weights()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_and_transformers_opens_it(make_encoder, kind):
    run = make_encoder("run", **KINDS[kind], **{"max-steps": 60, "learning-rate": 0.003})
    run.flags |= {"eval-every": 20}
    assert run.finish() == 0, run.messages()
    heldout = [record for record in run.records() if "heldout_loss" in record]
    assert heldout[-1]["heldout_loss"] < heldout[0]["heldout_loss"] - 0.03  # the words are drawn evenly
    assert ("nsp_accuracy" in heldout[0]) == (kind == "pairs")
    model, tokenizer = lamoid.load(run.out)
    kinds = {"pairs": transformers.AutoModelForPreTraining, "static": transformers.AutoModelForMaskedLM}
    theirs = kinds[kind].from_pretrained(run.out)
    batch = tokenizer.encode_batch(["con mèo [MASK]", "猫坐在垫子上 고양이가"], ["the cat", "sat on a mat"])
    ids, mask, segments = (torch.from_numpy(part) for part in (batch.ids, batch.mask, batch.segments))
    with torch.no_grad():
        output = theirs(input_ids=ids, attention_mask=mask, token_type_ids=segments)
        own = model(ids, mask, segments)
    if kind == "pairs":
        torch.testing.assert_close(own[0], output.prediction_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own[1], output.seq_relationship_logits, rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(own, output.logits, rtol=1e-4, atol=1e-4)


def test_an_encoder_goes_on_from_one_that_exists(make_encoder):
    first = make_encoder("first", model="bert-tiny")
    assert first.finish() == 0, first.messages()
    second = make_encoder("second", init=first.out)
    del second.flags["vocab-size"]
    assert second.finish() == 0, second.messages()
    first_losses, second_losses = ([r["loss"] for r in run.records() if "loss" in r] for run in (first, second))
    assert second_losses[0] < first_losses[0] - 1  # it begins where the other one ended


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"model": "bert-huge"}, "bert-small"),
        ({"model": "bert-tiny", "mask-rate": 0}, "masking rate is 0"),
        ({"model": "roberta-small", "nsp": True}, "nsp is for BERT"),
        ({"model": "bert-tiny", "masking": "some"}, "dynamic, static"),
    ],
)
def test_wrong_calls_are_one_line(make_encoder, flags, words):
    run = make_encoder("run", **flags)
    assert run.finish() == 2
    assert words in run.messages().splitlines()[-1]


def test_one_held_out_passage_makes_no_pairs(make_encoder):
    run = make_encoder("run", model="bert-tiny", **{"heldout-share": 0.01})
    assert run.finish() == 3
    assert "--no-nsp" in run.messages().splitlines()[-1]
