"""`lamoid lab`: every experiment runs at a trial's size, keeps what it has, and the page holds all of it."""

import errno
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lamoid.cli import main
from lamoid.recipes.lab import records, rope_relative
from lamoid.recipes.lab.experiments import EXPERIMENTS, find
from lamoid.recipes.lab.records import Parts

SOURCE = Path(__file__).parents[3] / "src" / "lamoid" / "recipes" / "lab"
VERDICTS = {"holds", "does not hold here", "undecided"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a whole trial."""
    out = tmp_path_factory.mktemp("lab")
    assert main(["lab", "report", "--trial", "--out", str(out)]) == 0
    return out / "trial"


def results(folder):
    return {r["name"]: r for r in json.loads((folder / "report.json").read_text(encoding="utf-8"))["results"]}


def test_every_file_is_an_experiment_of_its_table():
    named = {SOURCE / f"{module.rpartition('.')[2]}.py" for module in EXPERIMENTS.values()}
    on_disk = {file for file in SOURCE.glob("*.py") if "EXPERIMENT = " in file.read_text(encoding="utf-8")}
    assert named == on_disk


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_what_it_does(name):
    experiment = find(name)
    assert re.search(r"(19|20)\d\d", experiment.about), "the source of its claim"
    assert set(experiment.trial) <= set(experiment.settings), "a trial changes settings that there are"
    assert all((experiment.claim, experiment.question, experiment.budget, experiment.rule))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_trial_measures_but_decides_nothing(report, name):
    result = results(report)[name]
    assert result["verdict"] == "undecided" and result["reason"]
    if "missing" in result["facts"]:
        return
    assert result["checks"] and {check["verdict"] for check in result["checks"]} <= VERDICTS
    assert result["table"]["rows"] and {len(r) for r in result["table"]["rows"]} == {len(result["table"]["columns"])}
    assert result["figures"] and all((report / figure).is_file() for figure in result["figures"])


def test_what_is_done_is_kept(report, capsys):
    before = {file: file.stat().st_mtime_ns for file in report.rglob("facts.json")}
    assert main(["lab", "report", "--trial", "--out", str(report.parent), "--json"]) == 0
    captured = capsys.readouterr()
    assert "measuring" not in captured.err.replace("tokenizers: measuring", "")
    again = json.loads(captured.out)["results"]
    kept = [r["name"] for r in again if "missing" not in r["facts"]]
    assert {f: f.stat().st_mtime_ns for f in before if f.parent.name in kept} == {
        f: t for f, t in before.items() if f.parent.name in kept
    }


class Page(HTMLParser):
    """What a page fetches, and which of its tags are not closed."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.links, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.fetched += [given[key] for key in ("src", "data", "srcset") if key in given] + [tag] * (tag == "script")
        self.links += [given["href"]] if "href" in given else []
        self.ids += [given["id"]] if "id" in given else []
        self.open += [] if tag in ("meta", "br", "img") else [tag]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(report):
    page = Page()
    page.feed((report / "report.html").read_text(encoding="utf-8"))
    assert not page.open and not page.fetched
    assert page.links == [f"#{name}" for name in EXPERIMENTS] and set(EXPERIMENTS) <= set(page.ids)


def test_quick_is_what_trains_nothing(tmp_path, capsys):
    assert main(["lab", "report", "--trial", "--quick", "--out", str(tmp_path), "--json"]) == 0
    done = [r["name"] for r in json.loads(capsys.readouterr().out)["results"]]
    assert done == [name for name in EXPERIMENTS if not find(name).trains]


def test_other_settings_are_measured_again(tmp_path):
    parts, calls = Parts(tmp_path), []

    def measured(value):
        return lambda: calls.append(value) or value

    assert parts("a", {"n": 1}, measured(1)) == 1 == parts("a", {"n": 1}, measured(2))
    assert parts("a", {"n": 2}, measured(3)) == 3 and parts("b", {"n": 1}, measured(4)) == 4
    assert calls == [1, 3, 4]
    for number, damaged in enumerate(['{"what": ', "", "[]", "null", "3", '{"what": "a"}', "[" * 100_000], start=5):
        for file in tmp_path.glob("*.json"):
            file.write_text(damaged, encoding="utf-8")
        assert parts("a", {"n": 1}, measured(number)) == number, "a damaged part is measured again"


@pytest.fixture(scope="module")
def one_trial(tmp_path_factory):
    """The folder of one experiment, and the words that ran it."""
    out = tmp_path_factory.mktemp("one")
    words = ["lab", "run", "rope-relative", "--trial", "--out", str(out)]
    assert main(words) == 0
    return out / "trial" / "rope-relative", words


@pytest.mark.parametrize("damaged", ["", '{"facts": ', "null", "3", "{}", '[["facts", 1]]', "[" * 100_000, "\udcff"])
def test_damaged_files_are_made_again(damaged, one_trial, capsys):
    folder, words = one_trial
    whole = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    for name in ("facts.json", "result.json", "figure-1.svg"):
        (folder / name).write_bytes(damaged.encode("utf-8", "surrogateescape"))
    assert main(words) == 0
    assert "rope-relative: measuring" in capsys.readouterr().err
    assert json.loads((folder / "facts.json").read_text(encoding="utf-8"))["facts"] == whole["facts"]
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["facts"] == whole["facts"]


@pytest.mark.parametrize("key, value", [("facts", 3), ("facts", None), ("seconds", "long"), ("code", ["x"])])
def test_a_record_of_other_types_is_measured_again(key, value, one_trial, capsys):
    folder, words = one_trial
    record = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    (folder / "facts.json").write_text(json.dumps(record | {key: value}), encoding="utf-8")
    assert main(words) == 0
    assert "rope-relative: measuring" in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, "x", [], {"a": 1}, -1])
def test_facts_that_nobody_can_judge_are_named(value, one_trial, capsys):
    folder, words = one_trial
    file = folder / "facts.json"
    kept = file.read_text(encoding="utf-8")
    record = json.loads(kept)
    file.write_text(json.dumps(record | {"facts": dict.fromkeys(record["facts"], value)}), encoding="utf-8")
    try:
        assert main(words) == 3
        assert f"{file} is damaged" in (said := capsys.readouterr().err) and "delete it" in said
    finally:
        file.write_text(kept, encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(tmp_path, monkeypatch, capsys):
    """Root may write anywhere, so that the disk is asked to refuse."""

    def refused(dir):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["lab", "run", "rope-relative", "--trial", "--out", str(tmp_path / "file")]) == 4
    monkeypatch.setattr(records, "TemporaryFile", refused)
    assert main(["lab", "run", "rope-relative", "--trial", "--out", str(tmp_path)]) == 4
    said = capsys.readouterr().err
    assert said.count("choose another --out") == 2 and "Permission denied" in said and "measuring" not in said


@pytest.mark.parametrize("words", [["run", "rope-relative"], ["report", "--quick"]])
def test_ctrl_c_says_what_is_kept(words, tmp_path, monkeypatch, capsys, request):
    experiment = find("rope-relative")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))

    def interrupted(settings, keep):
        keep("a part", {}, lambda: 1)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(rope_relative, "EXPERIMENT", replace(experiment, measure=interrupted))
    assert main(["lab", *words, "--trial", "--out", str(tmp_path)]) == 130
    said, folder = capsys.readouterr().err.splitlines(), tmp_path / "trial"
    assert said[-1] == f"stopped; what was measured is kept in {folder}, and the same command goes on from there"
    assert len(list((folder / "parts").glob("*.json"))) >= 1
    assert (folder / "rmsnorm-speed" / "facts.json").is_file() == (words[0] == "report")


def test_the_profiler_does_not_talk(tmp_path):
    """In a process of its own: the profiler's library decides once, at its first use."""
    words = ["lab", "run", "flash-memory", "--trial", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "lamoid.cli", *words], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "flash-memory: measuring (a trial)",
        "  attention over 8",
        "  attention over 16",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "an experiment is needed"),
        (["run", "rope"], "'rope' is no experiment; did you mean rope-relative"),
        (["report", "--quik"], "did you mean --quick"),
        (["run", "rope-relative", "--threads", "0"], "threads is 0"),
    ],
)
def test_a_wrong_call_is_refused(words, message, capsys):
    assert main(["lab", *words]) == 2
    assert message in capsys.readouterr().err
