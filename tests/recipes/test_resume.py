"""A run that was killed, at any moment and any number of times, ends like the run that never was (F1, F2, F3, F6)."""

import os
import random
import shutil
import signal
import time

import pytest

TEMPORARY = ".lamoid-tmp-"


@pytest.fixture
def reference(make_run):
    run = make_run("reference")
    assert run.finish() == 0, run.messages()
    return run


def wait_for(condition, process, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        if process.exitcode is not None:
            return
        time.sleep(0.0005)


def test_killed_twenty_times_is_bit_identical(reference, make_run):
    run, generator, kills, kills_in_save = make_run("killed"), random.Random(1), 0, 0
    while kills < 20:
        process, before = run.start(), len(run.records())
        if kills % 2:  # while a checkpoint is being written
            wait_for(lambda: any(run.out.glob(f"checkpoints/{TEMPORARY}*")), process)
            time.sleep(generator.random() * 0.004)
        else:
            goal = before + generator.randint(1, 6)
            wait_for(lambda goal=goal: len(run.records()) >= goal, process)
            time.sleep(generator.random() * 0.01)
        if process.exitcode is not None:
            pytest.fail(f"the run ended after {kills} kills; it needs more steps: {run.messages()[-500:]}")
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        kills_in_save += any(run.out.glob(f"checkpoints/{TEMPORARY}*"))
        if run.records() and max(r["step"] for r in run.records()) > 30:
            shutil.rmtree(run.out)  # begin again rather than run out of steps
    assert kills_in_save >= 2
    assert run.finish() == 0, run.messages()
    assert run.numbers() == reference.numbers()
    assert run.weights() == reference.weights()
    assert "was not finished" in run.messages()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_saves_and_the_same_command_goes_on(reference, make_run, number, code):
    run = make_run("signalled")
    process = run.start()
    wait_for(lambda: len(run.records()) >= 7, process)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == code
    stopped_at = max(r["step"] for r in run.records() if "loss" in r)
    assert (run.out / "checkpoints" / f"step-{stopped_at}").is_dir()
    assert run.finish() == 0
    assert run.numbers() == reference.numbers()
    assert run.weights() == reference.weights()


def test_signal_during_evaluation(reference, make_run):
    """The evaluation is broken off, the step before it is saved, and the evaluation is made up for."""
    run = make_run("evaluating")
    process = run.start()
    wait_for(lambda: any(r["step"] == 5 and "loss" in r for r in run.records()), process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 0
    assert run.finish() == 0
    assert run.numbers() == reference.numbers()
    assert run.weights() == reference.weights()


def test_second_signal_leaves_at_once(make_run):
    run = make_run("impatient", **{"max-steps": 1000, "eval-every": 500, "batch-rows": 4000})  # seconds for a step
    process = run.start()
    wait_for(lambda: (run.out / "metrics.jsonl").exists(), process)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)
    process.join(5)
    assert process.exitcode == 128 + signal.SIGTERM
    assert not list(run.out.glob("checkpoints/step-*"))


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_newest_checkpoint_falls_back(reference, make_run, damage):
    run = make_run("damaged")
    process = run.start()
    wait_for(lambda: (run.out / "checkpoints/step-10").is_dir(), process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    newest = max((run.out / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
    file = newest / "training" / "state.safetensors"
    raw = bytearray(file.read_bytes())
    if damage == "truncate":
        del raw[len(raw) // 2 :]
    else:
        raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    assert run.finish(resume=newest) == 3  # named by path: refused
    assert str(file) in run.messages()
    assert run.finish() == 0  # found by itself: the one before is used
    assert run.numbers() == reference.numbers()
    assert run.weights() == reference.weights()


def test_same_command_after_the_end_changes_nothing(reference):
    before = (reference.numbers(), reference.weights())
    assert reference.finish() == 0
    assert (reference.numbers(), reference.weights()) == before


def test_accumulation_resumes_exactly(make_run):
    whole = make_run("whole", accumulate=3, **{"max-steps": 12})
    assert whole.finish() == 0
    parts = make_run("parts", accumulate=3, **{"max-steps": 12})
    process = parts.start()
    wait_for(lambda: len(parts.records()) >= 8, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert parts.finish() == 0
    assert parts.numbers() == whole.numbers()
    assert parts.weights() == whole.weights()
