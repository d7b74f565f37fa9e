"""Several processes (gloo, on this machine) train as one does: losses, files, going on with another number, faults."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.distributed import TCPStore

TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
COURSE = {"context": 64, "batch-rows": 4, "max-steps": 12, "eval-every": 4, "learning-rate": 0.001}


def start(run, n: int, **flags: object) -> list:
    """`n` processes with the environment that torchrun gives, and its store, which outlives them; with one, none of it."""
    if n == 1:
        return [run.start(**flags)]
    run.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(run.store.port), "WORLD_SIZE": str(n)}
    own |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    before, processes = run.environment, []
    for rank in range(n):
        run.environment = before | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(run.start(**flags))
    run.environment = before
    return processes


def wait(processes: list) -> list[int | None]:
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def finish(run, n: int, **flags: object) -> None:
    assert wait(start(run, n, **flags)) == [0] * n, run.messages()


def figures(run, *names: str) -> list[float]:
    return [record[name] for record in run.records() for name in names if name in record]


def assert_same(run, reference) -> None:
    """Losses within 1e-5, weights within rounding, and the same files at the root."""
    for name in ("loss", "heldout_loss"):
        assert figures(run, name) == pytest.approx(figures(reference, name), rel=1e-5)
    assert figures(run, "tokens", "total_tokens", "step") == figures(reference, "tokens", "total_tokens", "step")
    files = {path.name: path for path in reference.out.iterdir() if path.is_file()}
    assert {path.name for path in run.out.iterdir() if path.is_file()} == set(files)
    own = next(run.out.glob("*model.safetensors"))
    theirs, ours = load_file(files[own.name]), load_file(own)
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, corpus, run_class):
    """What one process makes of it."""
    run = run_class(tmp_path_factory.mktemp("reference"), corpus, **COURSE)
    finish(run, 1)
    return run


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, reference, run_class):
    """make(name): a LoRA of the reference run's model on a few chats; and what one process makes of it."""
    folder = tmp_path_factory.mktemp("chats")
    base = shutil.copytree(reference.out, folder / "base")
    (base / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    generator, file = random.Random(0), folder / "chats.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for number in range(24):
            texts = [generator.choice(["mèo?", "猫?", "cat?"]), f"{generator.choice(['고양이', 'mat'])} {number}"]
            turns = [{"role": r, "content": t} for r, t in zip(("user", "assistant"), texts, strict=True)]
            out.write(json.dumps({"messages": turns}) + "\n")

    def make(name: str):
        (folder / name).mkdir()
        flags = COURSE | {"rank": 3, "max-steps": 8, "sample-every": 4}
        return run_class(folder / name, file, ("finetune", str(base)), **flags)

    alone = make("alone")
    finish(alone, 1)
    return make, alone


@pytest.mark.parametrize(("n", "parallel"), [(2, "data"), (2, "sharded"), (4, "sharded")])
def test_pretraining_is_that_of_one_process(make_run, reference, n, parallel):
    """Also: one process prints and writes, and transformers opens what was gathered."""
    run = make_run("run", **COURSE, parallel=parallel)
    finish(run, n)
    assert_same(run, reference)
    assert run.messages().count("schedule:") == run.messages().count("the best model is in") == 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run.out, dtype=torch.float32)
    own = transformers.AutoModelForCausalLM.from_pretrained(reference.out, dtype=torch.float32)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, own(ids).logits, rtol=1e-4, atol=1e-4)


def test_data_parallel_is_accumulation_bit_for_bit(make_run):
    """Two processes add up what one adds up in two micro-batches, in an order that makes no difference to a sum of two."""
    together, alone = make_run("together", **COURSE), make_run("alone", **COURSE | {"batch-rows": 2, "accumulate": 2})
    finish(together, 2)
    finish(alone, 1)
    for name in ("loss", "gradient_norm", "heldout_loss"):
        assert figures(together, name) == figures(alone, name)
    assert together.weights() == alone.weights()


@pytest.mark.parametrize("parallel", ["data", "sharded"])
def test_lora_is_that_of_one_process(tuned, parallel):
    make, alone = tuned
    run = make(parallel)
    finish(run, 2, parallel=parallel)
    assert_same(run, alone)


@pytest.mark.parametrize(("first", "then"), [((2, "sharded"), (4, "sharded")), ((2, "sharded"), (1, "data"))])
def test_a_rank_dies_and_another_number_goes_on(make_run, reference, first, then):
    """kill -9: the others say so in one line, soon; what was saved is gone on from, with the losses of an unbroken run."""
    run = make_run("run", **COURSE)
    processes = start(run, first[0], parallel=first[1])
    until(lambda: (run.out / "checkpoints" / "step-4").is_dir())
    os.kill(processes[-1].pid, signal.SIGKILL)
    codes = wait(processes)
    assert codes == [4] * (first[0] - 1) + [-signal.SIGKILL], run.messages()
    errors = [line for line in run.messages().splitlines() if line.startswith("lamoid:")]
    assert len(errors) == 1 and "another process" in errors[0] and "Traceback" not in run.messages()
    finish(run, then[0], parallel=then[1])
    assert "going on from step" in run.messages()
    assert_same(run, reference)


def test_stopped_alone_more_go_on(make_run, reference):
    """SIGTERM to a run of one process, then to one rank of two: saved by all within a step; then the data parallel rest."""
    run = make_run("run", **COURSE)
    for n, step in ((1, 1), (2, 5)):
        processes = start(run, n, parallel="sharded")
        until(lambda step=step: len(figures(run, "loss")) >= step)
        os.kill(processes[-1].pid, signal.SIGTERM)
        assert wait(processes) == [0] * n, run.messages()
        assert any(line.startswith("stopped at step") for line in run.messages().splitlines())
    finish(run, 2)
    assert_same(run, reference)


def test_a_rank_that_does_not_answer_ends_the_run(make_run):
    """The seconds are enough for processes that start on a busy machine."""
    run = make_run("run", **COURSE | {"max-steps": 10_000, "eval-every": 10_000, "rank-timeout-s": 10})
    processes = start(run, 2)
    until(lambda: figures(run, "loss"))
    os.kill(processes[0].pid, signal.SIGSTOP)
    processes[1].join(60)
    assert processes[1].exitcode == 4
    processes[0].kill()
    wait(processes)
    assert re.search(r"lamoid: rank 1 of 2 .* did not answer for 10 s", run.messages())


def test_an_error_of_all_is_said_once(make_run):
    run = make_run("run", **COURSE | {"batch-rows": 1})
    assert set(wait(start(run, 2))) <= {2, 4}
    errors = [line for line in run.messages().splitlines() if line.startswith("lamoid:")]
    assert len(errors) == 1 and "1 rows for 2 processes" in errors[0]


def test_torchrun_itself(make_run, reference):
    """The command of docs/scale.md."""
    run = make_run("run", **COURSE | {"max-steps": 2, "warmup-steps": 0})
    flags = [f"--{name}={value}" for name, value in run.flags.items()]
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "lamoid.cli", "pretrain", *flags]
    environment = os.environ | run.environment | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert figures(run, "loss")[0] == pytest.approx(figures(reference, "loss")[0], rel=1e-5)
