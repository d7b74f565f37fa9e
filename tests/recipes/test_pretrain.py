"""`lamoid pretrain` from a folder of text: what it chooses, what it writes, and that others can open it."""

import io
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml

import lamoid
from lamoid.cli import main
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.recipes.conversation import find_encoder
from lamoid.recipes.sizes import TABLE, choose_size, choose_steps, model_config
from lamoid.training.interrupt import Interrupt

PROMPTS = ["the cat ", "một con mèo ", "猫坐", "고양이가 ", "😀 مرحبا "]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus, run_class):
    """One run of 40 steps with checkpoints at 35 and 40."""
    run = run_class(tmp_path_factory.mktemp("finished"), corpus)
    assert run.finish() == 0, run.messages()
    return run


@pytest.mark.parametrize("where", ["checkpoints/step-35", "."])
def test_transformers_opens_every_checkpoint(finished, where):
    """Same logits and the same greedy text, from the middle of a run and at its end, in every script."""
    folder = finished.out / where
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, tokenizer = lamoid.load(folder)
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert their_tokenizer(prompt)["input_ids"] == ids
        with torch.inference_mode():
            expected, got = theirs(torch.tensor([ids])).logits, model(torch.tensor([ids]))
        assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4
        settings = dict(max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        text = their_tokenizer.decode(theirs.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist())
        sampling = lamoid_greedy()
        done = lamoid.generate(model, tokenizer, prompt, max_new_tokens=8, sampling=sampling, end_ids=[])
        assert tokenizer.decode(done.ids, skip_special_tokens=False) == text


def lamoid_greedy():
    from lamoid.inference.sampling import Sampling

    return Sampling(temperature=0.0, top_p=1.0)


def test_it_learned(finished):
    losses = [r["loss"] for r in finished.records() if "loss" in r]
    assert losses[0] == pytest.approx(math.log(300), rel=0.05)  # guessing
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_the_root_is_the_best_model(finished):
    """Scored again by `lamoid eval`, on the held-out text that the run used."""
    held = [r for r in finished.records() if "heldout_loss" in r]
    assert len(held) == 8
    best = min(held, key=lambda r: r["heldout_loss"])
    state = json.loads((finished.out / "checkpoints/step-40/training/state.json").read_text(encoding="utf-8"))
    assert state["standing"]["best"] == best["heldout_loss"]


def test_what_was_chosen_is_said_and_written(make_run):
    run = make_run("chosen")
    run.flags = {"data": run.flags["data"], "out": run.out, "max-steps": 3, "threads": 1}
    assert run.finish() == 0
    chosen, size = yaml.safe_load((run.out / "recipe.yaml").read_text(encoding="utf-8")), TABLE[0]
    assert chosen["context"] == size.context and chosen["batch_rows"] == size.batch_rows
    assert chosen["learning_rate"] == size.learning_rate and None not in (chosen["eval_every"], chosen["warmup_steps"])
    assert re.search(r"model: .* M parameters .*table's size for text of", run.messages())
    assert re.search(r"schedule: 3 steps of .* for 1 cores", run.messages())
    assert "held out" in run.messages() and "training a byte-level BPE" in run.messages()


def test_text_is_tokenized_once(make_run):
    first, second = make_run("first", **{"max-steps": 2}), make_run("second", **{"max-steps": 2, "seed": 0})
    assert first.finish() == 0 and second.finish() == 0
    assert "tokenized before" in second.messages()
    assert first.weights() == second.weights()


def test_a_tokenizer_of_ones_own(make_run, corpus, tmp_path, capsys):
    folder = tmp_path / "characters"
    assert main(["tokenizer", "train", "--data", str(corpus), "--kind", "char", "--out", str(folder)]) == 0
    run = make_run("own", tokenizer=folder, **{"max-steps": 2})
    del run.flags["vocab-size"]
    assert run.finish() == 0, run.messages()
    assert lamoid.load_tokenizer(run.out).fingerprint() == lamoid.load_tokenizer(folder).fingerprint()


def test_training_goes_on_with_a_model(finished, make_run, tmp_path):
    """--init: the same tokenizer, another text; what it gained and lost is said, and is what `lamoid eval` finds."""
    news = tmp_path / "news.txt"
    paragraphs = [f"ngày {i} trời mưa to ở Huế, {i * 7} mm; 비가 왔다 {i * i}" + " mưa rơi mãi" * 9 for i in range(150)]
    news.write_text("\n\n".join(paragraphs), encoding="utf-8")
    run = make_run("on", data=news, init=finished.out, **{"old-text": finished.flags["data"], "max-steps": 60})
    del run.flags["vocab-size"]
    assert run.finish() == 0, run.messages()
    assert lamoid.load_tokenizer(run.out).fingerprint() == lamoid.load_tokenizer(finished.out).fingerprint()
    found = re.findall(r"(new|old) text +([\d.]+) -> ([\d.]+)", run.messages())
    moved = {name: (float(before), float(after)) for name, before, after in found}
    assert moved["new"][1] < 0.8 * moved["new"][0]
    first = next(r["loss"] for r in run.records() if "loss" in r)
    model, _ = lamoid.load(finished.out)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in lamoid.load(run.out)[0].parameters())
    assert first < 1.3 * math.log(300), "it began from the weights of --init"


@pytest.mark.parametrize("form", ["chat_template.jinja", "tokenizer_config.json", "model.gguf"])
def test_a_chat_template_goes_along(finished, make_run, tmp_path, capsys, monkeypatch, form):
    """Into every checkpoint, from wherever it was. All forms share a store of tokens: none gets another's template."""
    template = f"{{# {form} #}}" + (
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n{{ m.content }}<|eot_id|>\r\n"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>{% endif %}"
    )
    directory = tmp_path / "with-template"
    directory.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(finished.out / name, directory)
    if form == "tokenizer_config.json":
        config = json.loads((directory / form).read_text(encoding="utf-8"))
        (directory / form).write_text(json.dumps(config | {"chat_template": template}), encoding="utf-8")
    else:
        (directory / "chat_template.jinja").write_bytes(template.encode())
    initial = directory
    if form == "model.gguf":
        assert main(["convert", str(directory), str(tmp_path / form)]) == 0
        initial = tmp_path / form
    run = make_run("chat", init=initial, **{"old-text": finished.flags["data"], "max-steps": 2, "eval-every": 1})
    del run.flags["vocab-size"]
    assert run.finish() == 0, run.messages()
    messages = [{"role": "user", "content": "một con mèo 猫?"}, {"role": "assistant", "content": "고양이"}]
    expected = transformers.AutoTokenizer.from_pretrained(directory).apply_chat_template(messages)["input_ids"]
    for place in (run.out, run.out / "checkpoints/step-1", run.out / "checkpoints/step-2"):
        assert (place / "chat_template.jinja").read_bytes() == template.encode()
        peer, tokenizer = transformers.AutoTokenizer.from_pretrained(place), lamoid.load_tokenizer(place)
        assert peer.apply_chat_template(messages)["input_ids"] == expected
        assert tokenizer.chat_template == template
        assert find_encoder(tokenizer, "").encode(messages, add_generation_prompt=False) == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("con mèo\n"))
    assert main(["chat", str(run.out), "--max-new-tokens=3", "--threads=1"]) == 0
    assert "tok/s" in capsys.readouterr().err


def test_smollm2_learns_vietnamese(smollm2, make_run, tmp_path):
    """The real model by its name, three steps, and what it says about both texts, held against transformers."""
    folder, old = tmp_path / "văn bản", tmp_path / "old.txt"
    (folder / "thơ").mkdir(parents=True)
    for name, start in (("một.txt", 0), ("thơ/hai.txt", 12)):
        lines = [
            f"Ngày {i}, trời mưa ở Huế. Bà nấu {i + 2} bát bún bò, rồi cả nhà kể chuyện đến khuya. " * 2
            for i in range(12)
        ]
        (folder / name).write_text(
            "\n\n".join(line.replace("Ngày ", f"Ngày {start}") for line in lines), encoding="utf-8"
        )
    old.write_text("The capital of France is Paris, which lies on the river Seine.", encoding="utf-8")
    run = make_run(
        "on", data=folder, init="smollm2", **{"old-text": old, "max-steps": 3, "eval-every": 3, "context": 64}
    )
    del run.flags["vocab-size"]
    run.environment = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
    assert run.finish(**{"batch-rows": 1, "learning-rate": 1e-4}) == 0, run.messages()
    found = re.findall(r"(new|old) text +([\d.]+) -> ([\d.]+)", run.messages())
    moved = {name: (float(before), float(after)) for name, before, after in found}
    assert moved["new"][1] < 0.95 * moved["new"][0]
    for directory, bits in zip((smollm2, run.out), moved["old"], strict=True):
        assert bits == pytest.approx(peers_bits_per_byte(directory, old.read_text(encoding="utf-8")), rel=2e-4)
    messages = [{"role": "user", "content": "Thủ đô của Việt Nam là gì?"}]
    before, after = (transformers.AutoTokenizer.from_pretrained(directory) for directory in (smollm2, run.out))
    assert before.chat_template == after.chat_template
    assert before.apply_chat_template(messages)["input_ids"] == after.apply_chat_template(messages)["input_ids"]
    shutil.rmtree(run.out)  # 1.6 GB


@torch.inference_mode()
def peers_bits_per_byte(directory, text):
    """A text that is shorter than the context, behind a begin-of-text token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    assert ids.shape[1] < 64
    return float(model(ids, labels=ids).loss) * (ids.shape[1] - 1) / math.log(2) / len(text.encode())


def test_init_brings_its_own_shape(make_run, finished):
    run = make_run("both", init=finished.out, model="llama-3.2-1b")
    assert run.finish() == 2
    assert "leave out --model and --tokenizer" in run.messages()


def test_a_published_shape_can_be_named(make_run):
    run = make_run("named", model="llama-9-9b")
    assert run.finish() == 2
    assert "llama-3.2-1b" in run.messages() and "llama-9-9b" in run.messages()


@pytest.mark.parametrize(
    "flags",
    [
        {"dtype": "bfloat16"},
        {"optimizer": "adam-l2", "schedule": "warmup-stable-decay"},
        {"schedule": "inverse-sqrt", "accumulate": 2},
        {"gradient-checkpointing": True},
        {"tensorboard": True},
    ],
    ids=str,
)
def test_other_ways_to_train(make_run, flags):
    run = make_run("other", **{"max-steps": 12, **flags})
    assert run.finish() == 0, run.messages()
    losses = [r["loss"] for r in run.records() if "loss" in r]
    assert len(losses) == 12 and losses[-1] < losses[0]
    if "tensorboard" in flags:
        assert list((run.out / "tensorboard").iterdir())


def test_a_device_that_is_missing_is_named(make_run):
    assert not torch.cuda.is_available(), "this test is about a machine without CUDA"
    run = make_run("device", device="cuda")
    assert run.finish() == 2
    assert "device is 'cuda'" in run.messages().splitlines()[-1]


def test_the_table_grows_with_the_text_and_the_work_with_the_cores():
    sizes = [choose_size(n) for n in (10**5, 10**6, 10**7 + 1, 10**9, 10**12)]
    shapes = [model_config(size, size.vocab_size, size.context) for size in sizes]
    with torch.device("meta"):
        counts = [sum(p.numel() for p in Llama(shape).parameters()) for shape in shapes]
    assert counts == sorted(counts) and len(set(counts)) == len(counts)
    one, two = (choose_steps(sizes[2], counts[2], 2048, 10**9, cores) for cores in (1, 2))
    assert two == pytest.approx(2 * one, abs=20)
    assert choose_steps(sizes[1], counts[1], 512, 10_000, 64) == 10_000 * sizes[1].max_epochs // 512 // 10 * 10


def test_interrupt_restores_the_handlers():
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert not interrupt() and interrupt.exit_code == 0
        signal.raise_signal(signal.SIGINT)
        assert interrupt() and interrupt.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_documented_python_runs(capsys):
    """Every block of docs/python.md, as it stands there."""
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert "200" in capsys.readouterr().out
    assert names["logits"].shape == (2, 16, 1000)


def test_a_config_can_be_built_from_the_public_names():
    assert lamoid.LlamaConfig is LlamaConfig
