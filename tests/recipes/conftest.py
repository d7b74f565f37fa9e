"""Real runs in processes of their own, which can be killed. The fork server has torch imported, so a start is cheap."""

import contextlib
import json
import multiprocessing
import os
from pathlib import Path

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "lamoid.recipes.fit", "lamoid.recipes.choose", "lamoid.data.packed"])

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "một",
    "con",
    "mèo",
    "猫坐在垫子上",
    "고양이가",
    "매트에",
    "앉았다",
]


def _call(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        from lamoid.cli import main

        code = main(arguments)
        file.flush()
        os._exit(code)


class Run:
    """`lamoid pretrain`, or the words in `verb`, on a small corpus, always with the same command."""

    verb = ("pretrain",)

    def __init__(self, folder: Path, corpus: Path, **flags: object) -> None:
        self.out, self.log = folder / "run", folder / "log.txt"
        self.flags = {"data": corpus, "out": self.out, **self.defaults(), **flags}
        self.environment = {"XDG_CACHE_HOME": str(corpus.parent / "cache")}

    @staticmethod
    def defaults() -> dict[str, object]:
        sizes = {"vocab-size": 300, "context": 32, "batch-rows": 2, "max-steps": 40, "threads": 1}
        return sizes | {"eval-every": 5, "sample-every": 0, "learning-rate": 0.003}

    def start(self, **flags: object):
        together = self.flags | flags
        flags_given = (f"--{name}" if value is True else f"--{name}={value}" for name, value in together.items())
        arguments = [*self.verb, *flags_given]
        process = _CONTEXT.Process(target=_call, args=(arguments, str(self.log), self.environment))
        process.start()
        return process

    def finish(self, **flags: object) -> int:
        process = self.start(**flags)
        process.join(120)
        assert process.exitcode is not None, "the run hangs"
        return process.exitcode

    def records(self) -> list[dict]:
        file = self.out / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}\n")]

    def numbers(self) -> list[tuple]:
        """Everything in metrics.jsonl that must be equal in two runs, at full precision."""
        timed = {"seconds", "tokens_per_s", "peak_memory_bytes"}
        return [tuple(sorted((k, repr(v)) for k, v in r.items() if k not in timed)) for r in self.records()]

    def weights(self) -> bytes:
        return (self.out / "model.safetensors").read_bytes()

    def messages(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.is_file() else ""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text of generated sentences in several scripts, in 40 paragraphs that all differ."""
    import random

    generator = random.Random(0)
    folder = tmp_path_factory.mktemp("corpus")
    paragraphs = [" ".join(generator.choices(WORDS, k=60)) for _ in range(120)]
    file = folder / "text.txt"
    file.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def run_class() -> type[Run]:
    """The class of runs, for fixtures that live longer than a test."""
    return Run


@pytest.fixture
def make_run(tmp_path: Path, corpus: Path):
    """make_run(name, **flags): a run in a folder of its own."""

    def make(name: str = "a", **flags: object) -> Run:
        folder = tmp_path / name
        folder.mkdir()
        return Run(folder, flags.pop("data", corpus), **flags)  # type: ignore[arg-type]

    return make
