"""Bad input and faults of a training run: what is said, what is left (F4, F5, F7, F8, F10 - F14)."""

import json
import math
import os
import resource
import signal
import time
from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from lamoid.checkpoints.run_directory import RunDirectory
from lamoid.cli import main
from lamoid.errors import RunError


def last_line(run) -> str:
    return run.messages().strip().splitlines()[-1]


def step_folders(run) -> list[str]:
    return sorted(p.name for p in (run.out / "checkpoints").iterdir())


def test_disk_full_keeps_the_old_checkpoint(make_run, monkeypatch, capsys):
    """A real write failure: no file of this process may grow beyond a limit that the second save reaches (F4)."""
    run = make_run("full")
    arguments = ["pretrain", *(f"--{name}={value}" for name, value in run.flags.items())]
    monkeypatch.setenv("XDG_CACHE_HOME", run.environment["XDG_CACHE_HOME"])
    assert run.finish(**{"max-steps": 5}) == 0
    rewritten = {"recipe.yaml", "metrics.jsonl", ".lock"}
    before = {p: p.read_bytes() for p in run.out.rglob("*") if p.is_file() and p.name not in rewritten}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        code = main([*arguments, "--force"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 4
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step-10" in message and "cannot be written" in message
    assert step_folders(run) == ["step-5"]
    assert {p: p.read_bytes() for p in before} == before
    assert not list(run.out.rglob(".lamoid-tmp-*"))


def test_no_space_for_two_checkpoints(make_run, monkeypatch, capsys):
    run = make_run("cramped")
    monkeypatch.setenv("XDG_CACHE_HOME", run.environment["XDG_CACHE_HOME"])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 1000))
    assert main(["pretrain", *(f"--{name}={value}" for name, value in run.flags.items())]) == 4
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1,000 bytes free" in message and "two checkpoints need" in message
    assert not run.records()


def test_keep_one_checkpoint_is_refused(make_run):
    run = make_run("one")
    assert run.finish(keep=1) == 2
    assert "at least 2" in last_line(run)


def test_old_checkpoints_are_deleted_and_the_best_stays(make_run):
    run = make_run("kept")
    assert run.finish() == 0
    assert step_folders(run) == ["step-35", "step-40"]
    best = min((r for r in run.records() if "heldout_loss" in r), key=lambda r: r["heldout_loss"])
    if best["step"] in (35, 40):
        newest = run.out / "checkpoints" / f"step-{best['step']}" / "model.safetensors"
        assert newest.read_bytes() == run.weights()


def test_failing_to_delete_is_a_warning(tmp_path, monkeypatch):
    said: list[str] = []
    with RunDirectory(tmp_path / "run", notify=said.append) as directory:
        monkeypatch.setattr("shutil.rmtree", fail_to_delete)
        for step in (1, 2, 3):
            directory.save(step, lambda folder: (folder / "x").write_text("x"), show=False)
        assert directory.steps() == [1, 2, 3]
    assert any("could not be deleted" in line for line in said)


def fail_to_delete(path, ignore_errors=False):
    if not ignore_errors:
        raise OSError(1, "Operation not permitted", str(path))


@pytest.mark.parametrize(
    "change, field",
    [
        ({"learning-rate": 0.1}, "learning_rate"),
        ({"context": 16}, "context"),
        ({"batch-rows": 3}, "batch_rows"),
        ({"seed": 1}, "seed"),
        ({"vocab-size": 310}, "vocab_size"),
        ({"optimizer": "adam-l2"}, "optimizer"),
    ],
)
def test_resume_with_other_settings_is_refused(make_run, change, field):
    run = make_run("other", **{"max-steps": 10})
    assert run.finish() == 0
    weights = run.weights()
    recipe = (run.out / "recipe.yaml").read_bytes()
    assert run.finish(**change) == 2
    assert "--force" in last_line(run) and (field in last_line(run) or "data" in last_line(run))
    assert run.weights() == weights
    assert (run.out / "recipe.yaml").read_bytes() == recipe


def test_resume_with_other_data_is_refused_and_forced(make_run, corpus, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text(corpus.read_text(encoding="utf-8"), encoding="utf-8")
    run = make_run("data", data=mine)
    assert run.finish(**{"max-steps": 10}) == 0
    mine.write_text(corpus.read_text(encoding="utf-8") + "\n\nmột đoạn mới " * 30, encoding="utf-8")
    assert run.finish(**{"max-steps": 10}) == 2
    assert "data" in last_line(run)
    assert run.finish(**{"max-steps": 15, "force": True, "tokenizer": run.out}) == 0
    assert max(r["step"] for r in run.records()) == 15


def test_other_thread_count_warns(make_run):
    run = make_run("threads", **{"max-steps": 10})
    assert run.finish() == 0
    assert run.finish(threads=2) == 0
    assert "used 1 threads, now 2" in run.messages()


def test_two_runs_in_one_directory(make_run):
    run = make_run("shared", **{"max-steps": 100_000, "eval-every": 50_000})
    first = run.start()
    end = time.monotonic() + 60
    while not run.records():
        assert time.monotonic() < end
        time.sleep(0.01)
    try:
        assert run.finish() == 4
        assert f"in use by process {first.pid}" in last_line(run)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.join()


def test_directory_that_cannot_be_written(make_run, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    run = make_run("nowhere", out=tmp_path / "file" / "run")
    assert run.finish() == 4
    assert "cannot be written" in last_line(run)


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "empty"),
        (b"short", "too little text"),
        ("đây là văn bản ".encode() * 400 + b"\xff\xfe", "offset"),
        (b"one two three\n\n" * 3, "too little text"),
    ],
)
def test_bad_text_names_the_file(make_run, tmp_path, content, expected):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    run = make_run("bad", data=file)
    assert run.finish() == 3
    assert "bad.txt" in last_line(run) and expected in last_line(run)
    assert not (run.out / "model.safetensors").exists()


def test_text_shorter_than_the_context(make_run, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("\n\n".join(f"paragraph {i}: " + "word " * 150 + str(i * i) for i in range(8)), encoding="utf-8")
    run = make_run("short", data=file, context=4096)
    assert run.finish() == 3
    assert "4096" in last_line(run) and "tokens" in last_line(run)


def test_recipe_file_makes_the_run_again(make_run):
    first = make_run("first", **{"max-steps": 10})
    assert first.finish() == 0
    resolved = yaml.safe_load((first.out / "recipe.yaml").read_text(encoding="utf-8"))
    assert resolved["warmup_steps"] == 0 and resolved["vocab_size"] == 300
    again = make_run("again")
    again.flags = {"recipe": first.out / "recipe.yaml", "out": again.out}
    assert again.finish() == 0
    assert again.weights() == first.weights() and again.numbers() == first.numbers()


def test_patience_stops_early(make_run):
    run = make_run("patient", patience=2, **{"learning-rate": 3.0, "max-steps": 200, "clip-norm": 1e9})
    assert run.finish() == 0
    evaluations = [r["heldout_loss"] for r in run.records() if "heldout_loss" in r]
    assert len(evaluations) < 40
    assert min(evaluations) == evaluations[-3]


def test_metrics_hold_what_they_promise(make_run):
    run = make_run("metrics", **{"max-steps": 5})
    assert run.finish() == 0
    record = run.records()[2]
    names = {"loss", "gradient_norm", "learning_rate", "tokens", "total_tokens", "tokens_per_s", "peak_memory_bytes"}
    assert names <= set(record)
    assert record["step"] == 3 and record["tokens"] == 64 and record["total_tokens"] == 192
    assert record["position"] == [0, 4]
    assert math.isfinite(record["loss"]) and json.dumps(record)


def test_lock_is_released(tmp_path: Path):
    with RunDirectory(tmp_path / "run"), pytest.raises(RunError, match=f"process {os.getpid()}"):
        RunDirectory(tmp_path / "run")
    with RunDirectory(tmp_path / "run"):
        pass
