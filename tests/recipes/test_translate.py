"""The encoder–decoder through the command line: resumed exactly, learning, translating, and its wrong calls."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

import lamoid
from lamoid.cli import main
from lamoid.data.pairs import EncodedPair, PairRows
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.recipes import translate
from lamoid.training.loop import Progress, train
from lamoid.training.objectives import target_tokens
from lamoid.training.optim import inverse_sqrt, make_optimizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "một", "con", "mèo", "猫", "坐", "고양이가", "매트에"]
SMALL = {"model": "transformer-tiny", "vocab-size": 300, "context": 32, "batch-rows": 4, "max-steps": 24}
SMALL |= {"eval-every": 8, "sample-every": 10, "heldout-share": 0.1}


def write_pairs(file: Path, n: int) -> Path:
    """The words of a sentence, and the same in alphabetical order."""
    generator = random.Random(0)
    sentences = [generator.choices(WORDS, k=generator.randint(2, 6)) for _ in range(n)]
    lines = [f"{' '.join(words)}\t{' '.join(sorted(words))}\n" for words in sentences]
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.tsv", 300)


@pytest.fixture
def make_translator(make_run, pairs):
    return lambda name, **flags: make_run(name, **({"data": pairs} | SMALL | flags))


@pytest.fixture(scope="module")
def trained(run_class, pairs: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("trained")
    run = run_class(folder, pairs, **SMALL | {"max-steps": 60, "batch-rows": 16, "eval-every": 20})
    del run.flags["learning-rate"]
    assert run.finish() == 0, run.messages()
    return run


def test_killed_three_times_is_bit_identical(make_translator):
    reference, run = (make_translator(name, **{"eval-every": 4}) for name in ("reference", "killed"))
    assert reference.finish() == 0, reference.messages()
    for goal in (7, 13, 21):  # behind the checkpoints of steps 4, 8 and 16
        process = run.start()
        while process.exitcode is None and len(run.records()) < goal:
            time.sleep(0.0005)
        assert process.exitcode is None, run.messages()[-500:]
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert run.finish() == 0, run.messages()
    assert run.messages().count("going on from step") == 3
    assert run.numbers() == reference.numbers()
    assert run.weights() == reference.weights()


def test_the_loss_falls_and_chrf_is_measured(trained):
    heldout = [record for record in trained.records() if "heldout_loss" in record]
    assert [record["step"] for record in heldout] == [20, 40, 60]
    assert heldout[-1]["heldout_loss"] < heldout[0]["heldout_loss"] - 0.1
    assert all(0 <= record["chrf"] <= 100 for record in heldout)
    assert "(should be: " in trained.messages()
    recipe = (trained.out / "recipe.yaml").read_text(encoding="utf-8")
    assert "schedule: inverse-sqrt\n" in recipe and "warmup_steps: 6\n" in recipe
    assert f"learning_rate: {(128 * 4000) ** -0.5}" in recipe
    rates = [record["learning_rate"] for record in trained.records() if "loss" in record]
    assert rates.index(max(rates)) == 5 and rates[-1] == pytest.approx(max(rates) * (6 / 60) ** 0.5)


def test_the_directory_loads_and_knows_its_special_tokens(trained):
    model, tokenizer = lamoid.load(trained.out)
    assert isinstance(model, Transformer)
    specials = [tokenizer.special_id(role) for role in ("bos", "eos", "pad")]
    assert [model.config.bos_id, model.config.eos_id, model.config.pad_id] == specials
    assert model.config.max_seq_len == 32 and model.config.vocab_size == tokenizer.vocab_size


def test_generate_writes_the_target_alone(trained, capsys):
    assert main(["generate", str(trained.out), "the 猫 sat"]) == 0
    plain = capsys.readouterr().out
    assert main(["generate", str(trained.out), " the 猫 sat\n", "--json", "--threads=1"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert plain == facts["text"] + "\n" and facts["finish_reason"] in ("end", "length")
    model, tokenizer = lamoid.load(trained.out)
    source = [*tokenizer.encode("the 猫 sat", add_special_tokens=False), model.config.eos_id]
    assert facts["ids"] == translate.decode_sources(model, [source])[0].ids
    assert main(["generate", str(trained.out), "the 猫 sat", "--json", "--beams=3", "--max-new-tokens=9"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = translate.decode_sources(model, [source], 3, 9)[0]
    assert (facts["ids"], facts["text"]) == (found.ids, tokenizer.decode(found.ids))
    assert facts["log_probability"] == pytest.approx(found.log_probability)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["a", "--temperature=0"], "temperature is 0.0, but a Transformer"),
        (["a", "--engine=native"], "engine is 'native', but a Transformer"),
        (["a", "--stop=b"], "stop is ['b'], but a Transformer"),
        (["a", "--beams=0"], "n_beams is 0"),
        (["a", "--max-new-tokens=0"], "max_new_tokens is 0"),
        ([" "], "the prompt is empty"),
        (["đ" * 40], "the model reads at most 32"),
    ],
)
def test_wrong_calls_of_generate_are_one_line(trained, capsys, flags, words):
    assert main(["generate", str(trained.out), *flags]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


def test_one_goes_on_from_a_transformer_that_exists(make_translator, trained):
    run = make_translator("second", init=trained.out, model="auto", **{"max-steps": 8, "learning-rate": 1e-4})
    del run.flags["vocab-size"]
    assert run.finish() == 0, run.messages()
    assert run.records()[0]["loss"] < next(r["loss"] for r in trained.records() if "loss" in r) - 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model": "transformer-huge"}, "transformer-small"),
        ({"label-smoothing": 1}, "label_smoothing is 1.0"),
        ({"nsp": True}, "nsp is not for a Transformer"),
        ({"heldout-share": 0}, "held-out share is 0"),
        ({"vocab-size": 100}, "vocab_size is 100"),
    ],
)
def test_wrong_calls_are_one_line(make_translator, flags, words):
    run = make_translator("run", **flags)
    assert run.finish() == 2
    assert words in run.messages().splitlines()[-1]


def test_bad_data_are_named_by_their_line(make_translator, tmp_path):
    file = write_pairs(tmp_path / "bad.tsv", 80)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join([*lines[:40], "no tab\n", *lines[40:]]), encoding="utf-8")
    run = make_translator("run", data=file)
    assert run.finish() == 3
    assert "bad.tsv line 41 has 1 column" in run.messages().splitlines()[-1]
    assert run.finish(**{"skip-bad": True, "max-steps": 2, "eval-every": 2}) == 0, run.messages()
    assert "80 examples, 1 bad lines left out" in run.messages()
    short = make_translator("short", context=2)
    assert short.finish() == 3
    assert "longer than 2 tokens" in short.messages().splitlines()[-1]


def test_other_data_are_refused_on_resume(make_translator, tmp_path):
    run = make_translator("run", **{"max-steps": 8})
    assert run.finish() == 0, run.messages()
    assert run.finish(data=write_pairs(tmp_path / "more.tsv", 301)) == 2
    assert "was trained with data" in run.messages().splitlines()[-1]


def test_without_sacrebleu_the_loss_is_measured_and_said_so(monkeypatch, tmp_path, pairs, capsys):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics.chrf", None)
    flags = [f"--{name}={value}" for name, value in (SMALL | {"max-steps": 2, "eval-every": 2}).items()]
    assert main(["pretrain", "--data", str(pairs), "--out", str(tmp_path / "run"), *flags]) == 0
    assert "no chrF: sacrebleu is not installed; install it with: pip install 'lamoid[translation]'" in (
        capsys.readouterr().err
    )
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert "heldout_loss" in text and "chrf" not in text


@pytest.mark.parametrize("task", [lambda ids: ids[::-1], sorted], ids=["reverse", "sort"])
def test_a_transformer_learns_to_reverse_and_to_sort(task):
    """99 % of 500 sequences that it has never seen come out without a mistake. Takes 12 s each: less does not teach it."""
    generator = random.Random(0)
    sequences = list(
        dict.fromkeys(tuple(generator.choices(range(3, 13), k=generator.randint(3, 7))) for _ in range(25_000))
    )
    pairs = [EncodedPair([*ids, 2], list(task(ids))) for ids in sequences]
    training, unseen = pairs[500:], pairs[:500]
    config = TransformerConfig(13, d_model=48, n_layers=2, n_heads=4, d_ff=96, max_seq_len=16, dropout=0.0)
    model = Transformer(config).initialise(0)
    rows = PairRows(training, 64, 0, config.bos_id, config.eos_id, config.pad_id)
    optimizer, schedule = make_optimizer(model.named_parameters()), inverse_sqrt(2e-3, 30)
    train(model, rows, target_tokens(0.1), optimizer, schedule=schedule, max_steps=800, progress=Progress((0, 0)))
    for n_beams in (1, 4):
        found = translate.decode_sources(model, [pair.source for pair in unseen], n_beams)
        right = sum(made.ids == pair.target for made, pair in zip(found, unseen, strict=True))
        assert right >= 0.99 * len(unseen), f"{n_beams} beams: {right} of {len(unseen)}"
