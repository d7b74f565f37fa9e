"""`lamoid pretrain --init MODEL --grow-vocab N`: a tokenizer and a model for another language, resumed exactly."""

import os
import re
import shutil
import signal
import time

import pytest
import torch
import transformers
import yaml
from tests.tokenizers.conftest import STRESS

import lamoid
from lamoid.cli import main
from lamoid.tokenizers.grow import old_pieces

N_NEW = 60


@pytest.fixture(scope="module")
def base(tmp_path_factory, run_class):
    """A model that knows English alone, with a chat template."""
    folder = tmp_path_factory.mktemp("base")
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "what", "it", "had", "seen", "before", "rain", "fell"]
    sentences = [" ".join(words[(i * k) % len(words)] for k in range(1, 40)) for i in range(300)]
    (folder / "english.txt").write_text("\n\n".join(f"{i} {s}" for i, s in enumerate(sentences)), encoding="utf-8")
    run = run_class(folder, folder / "english.txt")
    assert run.finish() == 0, run.messages()
    (run.out / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    """Text in Vietnamese, Chinese and Korean, and an English sentence now and then."""
    parts = [
        "trời mưa to ở Huế",
        "hôm nay trời nắng",
        "雨下得很大，今天没有太阳",
        "비가 왔다 오늘은 날씨가 좋다",
        "the rain fell",
    ]
    paragraphs = [f"ngày {i}: " + "; ".join(parts[(i * k) % 5] + f" {k}" for k in range(1, 9)) for i in range(150)]
    file = tmp_path_factory.mktemp("news") / "news.txt"
    file.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return file


@pytest.fixture
def make_new(make_run, base, news):
    def make(name="new", **flags):
        given = {"init": base.out, "grow-vocab": N_NEW, "old-text": base.flags["data"], "max-steps": 30}
        run = make_run(name, data=news, **{**given, **flags})
        del run.flags["vocab-size"]
        return run

    return make


def test_the_model_grows_with_its_tokenizer(base, make_new):
    run = make_new()
    assert run.finish() == 0, run.messages()
    (old_model, old), (model, new) = lamoid.load(base.out), lamoid.load(run.out)
    assert new.vocab_size == model.config.vocab_size == old.vocab_size + N_NEW
    assert model.config == old_model.config.__class__(**{**vars(old_model.config), "vocab_size": new.vocab_size})
    assert new.chat_template == "{{ messages[0].content }}"
    found = re.findall(r"(new|old) text +([\d.]+) -> ([\d.]+)", run.messages())
    assert [name for name, *_ in found] == ["new", "old", "new", "old"]
    bits, tokens = ({name: (float(a), float(b)) for name, a, b in found[i : i + 2]} for i in (0, 2))
    assert bits["new"][1] < 0.7 * bits["new"][0]
    assert tokens["new"][1] < 0.6 * tokens["new"][0] and tokens["old"][1] <= tokens["old"][0]
    said = re.search(rf"{N_NEW} tokens learned, now 360; ([\d.]+) -> ([\d.]+) tokens per character", run.messages())
    assert said and float(said[2]) < 0.6 * float(said[1])


def test_it_begins_from_the_means_of_the_pieces(base, make_new):
    """With a learning rate of almost nothing the first checkpoint still shows where it began."""
    run = make_new(**{"max-steps": 1, "learning-rate": 1e-30, "weight-decay": 0.0})
    assert run.finish() == 0, run.messages()
    (old_model, old), (model, new) = lamoid.load(base.out), lamoid.load(run.out)
    before, after = old_model.embedding.weight, model.embedding.weight
    torch.testing.assert_close(after[: old.vocab_size], before)
    means = torch.stack([before[ids].mean(dim=0) for ids in old_pieces(old, new)])
    torch.testing.assert_close(after[old.vocab_size :], means)


def test_transformers_opens_it_with_the_same_ids_and_logits(make_new):
    run = make_new(**{"max-steps": 4})
    assert run.finish() == 0, run.messages()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run.out)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(run.out)
    model, tokenizer = lamoid.load(run.out)
    for text in [*STRESS.values(), "trời mưa to", "今天没有太阳", "오늘은 날씨가"]:
        ids = tokenizer.encode(text)
        assert their_tokenizer(text, split_special_tokens=True)["input_ids"] == ids
        assert their_tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
        with torch.inference_mode():
            expected, got = theirs(torch.tensor([ids[:32]])).logits, model(torch.tensor([ids[:32]]))
        assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4


def test_killed_and_its_cache_lost_it_goes_on_exactly(make_new, tmp_path):
    """The tokenizer is learned again from the text, and is the same."""
    whole, parts = make_new("whole"), make_new("parts")
    assert whole.finish() == 0, whole.messages()
    parts.environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for goal in (6, 11, 18):
        process = parts.start()
        end = time.monotonic() + 60
        while len(parts.records()) < goal and process.exitcode is None and time.monotonic() < end:
            time.sleep(0.0005)
        assert process.exitcode is None, parts.messages()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        shutil.rmtree(tmp_path / "cache")
    assert parts.finish() == 0
    assert parts.messages().count("tokens learned") == 4 and "going on from step" in parts.messages()
    assert parts.numbers() == whole.numbers()
    assert parts.weights() == whole.weights()
    assert (parts.out / "tokenizer.json").read_bytes() == (whole.out / "tokenizer.json").read_bytes()


def test_the_cache_is_used_again_and_another_number_is_another_text(make_new):
    first, again, other = make_new("first"), make_new("again"), make_new("other", **{"grow-vocab": 10})
    for run in (first, again, other):
        run.flags |= {"max-steps": 2}
        assert run.finish() == 0, run.messages()
    assert "tokenized before" in again.messages() and first.weights() == again.weights()
    assert lamoid.load(other.out)[1].vocab_size == 310


def test_another_number_is_refused_on_resume(make_new):
    run = make_new(**{"max-steps": 3})
    assert run.finish() == 0, run.messages()
    assert yaml.safe_load((run.out / "recipe.yaml").read_text(encoding="utf-8"))["grow_vocab"] == N_NEW
    assert run.finish(**{"grow-vocab": 20}) == 2
    assert "choose another --out" in run.messages()


@pytest.mark.parametrize(("n", "model"), [(5, "auto"), (5, "bert-base"), (-1, "auto")])
def test_it_needs_a_model_and_a_number(make_run, n, model):
    run = make_run("alone", model=model, **{"grow-vocab": n})
    assert run.finish() == 2
    assert f"grow_vocab is {n}; it must be 0, or tokens to add to the tokenizer of --init" in run.messages()


def test_characters_do_not_grow(make_new, make_run, base, tmp_path):
    folder = tmp_path / "characters"
    assert main(["tokenizer", "train", "--data", str(base.flags["data"]), "--kind", "char", "--out", str(folder)]) == 0
    letters = make_run("letters", data=base.flags["data"], tokenizer=folder, **{"max-steps": 2})
    del letters.flags["vocab-size"]
    assert letters.finish() == 0, letters.messages()
    run = make_new(init=letters.out)
    assert run.finish() == 2
    assert "each of its tokens is one character" in run.messages()
    assert not list(run.out.glob("checkpoints/*"))
