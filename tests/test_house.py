"""The house stands as it was drawn: layers, exports, the README's tree, sizes of files, rows and their proofs."""

import ast
import re
from pathlib import Path

import pytest

import lamoid
from lamoid.cli import VERBS
from lamoid.recipes.sizes import FLOP_PER_CORE, TABLE

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lamoid"
FILES = sorted(SOURCE.rglob("*.py"))
LEVELS = {
    "errors": 0,
    "nn": 1,
    "tokenizers": 1,
    "models": 2,
    "data": 2,
    "adapt": 2.5,  # beside models and data, but given the models
    "checkpoints": 3,
    "training": 3,
    "inspect": 3,
    "inference": 4,
    "recipes": 5,
    "cli": 6,
}


def part(module: str) -> str:
    """lamoid.nn.norms → nn; lamoid.cli → cli."""
    return module.split(".")[1]


def name_of(file: Path) -> str:
    relative = file.relative_to(SOURCE.parent).with_suffix("")
    return ".".join(relative.parts).removesuffix(".__init__")


def imports_of(file: Path) -> set[str]:
    """Every module of lamoid that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    modules = {name_of(f) for f in FILES}
    return {name for name in found if name in modules and name.count(".") >= 1}


def test_every_file_has_a_level():
    assert {part(name_of(f)) for f in FILES if name_of(f) != "lamoid"} == set(LEVELS)


@pytest.mark.parametrize("file", [f for f in FILES if name_of(f) != "lamoid"], ids=name_of)
def test_imports_go_strictly_downward(file: Path):
    own = part(name_of(file))
    for module in imports_of(file):
        other = part(module)
        assert other == own or LEVELS[other] < LEVELS[own], f"{name_of(file)} imports {module}"


def test_no_cycles_between_files():
    edges = {name_of(f): imports_of(f) - {name_of(f)} for f in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' -> '.join([*path, module])}"
        if module not in done:
            for other in edges.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_exports_are_what_all_says():
    assert lamoid.__all__ == sorted(lamoid.__all__) == sorted(lamoid._HOMES)
    for name in lamoid.__all__:
        assert getattr(lamoid, name).__name__ == name
    assert dir(lamoid) == lamoid.__all__
    with pytest.raises(AttributeError, match="nothing"):
        _ = lamoid.nothing


def test_readme_tree_is_the_disk():
    block = re.search(r"```\nsrc/lamoid/\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    drawn, folders = set(), [""]
    for line in block[1].splitlines():
        if not line.startswith(" "):
            assert (ROOT / line.split()[0]).is_dir()
            continue
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        assert len(line.split()) > 1, f"{name} has no line about it"
        folders = folders[: indent // 2]
        if name.endswith("/"):
            folders.append(folders[-1] + name)
        else:
            assert folders[-1] + name not in drawn, f"{name} is drawn twice"
            drawn.add(folders[-1] + name)
    files = [*FILES, *SOURCE.rglob("*.c"), *SOURCE.rglob("*.h")]
    on_disk = {str(f.relative_to(SOURCE)) for f in files if f.name != "__init__.py" or f.parent == SOURCE}
    assert drawn == on_disk


BUDGETS = [("models/*.py", 250), ("training/loop.py", 200), ("*/*.py", 320), ("recipes/lab/*.py", 120), ("cli.py", 120)]


def test_files_stay_small():
    for pattern, most in BUDGETS:
        for file in SOURCE.glob(pattern):
            assert len(file.read_text(encoding="utf-8").splitlines()) <= most, f"{file} is longer than {most} lines"


def test_a_verb_is_a_short_sentence():
    for module, _ in VERBS.values():
        file = SOURCE.parent / (module.replace(".", "/") + ".py")
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 80, f"{file} is too long for a recipe"


def test_nothing_is_pickled_or_executed():
    """`weights_only` aside, pickle is not read, and written for Meta's format alone; `model.eval()` is a method."""
    forbidden = re.compile(
        r"import pickle|torch\.save\((?!state, file\))|torch\.load\((?!.*weights_only=True)|[^.\w]eval\(|[^.\w]exec\("
    )
    for file in FILES:
        assert not forbidden.search(re.sub(r'"""(.*?)"""', "", file.read_text(encoding="utf-8"), flags=re.DOTALL)), file


def test_names_of_the_house():
    bad = {"utils", "helpers", "manager", "base", "common", "misc"}
    for file in FILES:
        assert file.stem not in bad, file
        assert "Manager" not in file.read_text(encoding="utf-8"), file


def test_rows_name_tests_that_exist():
    text = (ROOT / "docs" / "rows.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert named, "docs/rows.md names no test"
    for file, test in named:
        assert (ROOT / file).is_file(), f"docs/rows.md names {file}, which is not there"
        if test:
            assert re.search(rf"def {test}\b", (ROOT / file).read_text(encoding="utf-8")), f"{file} has no {test}"
    for command in re.findall(r"`lamoid ([a-z-]+(?: (?:train|show|list|run|report))?)", text):
        assert command in VERBS, f"docs/rows.md names lamoid {command}, which is no verb"
    for proof in re.findall(r"`(docs/proofs/[\w.-]+)`", text):
        assert (ROOT / proof).is_file(), f"docs/rows.md names {proof}, which is not there"


def test_documented_sizes_are_the_table():
    text = (ROOT / "docs" / "pretrain.md").read_text(encoding="utf-8")
    for size in TABLE:
        assert documented(size) in text, f"docs/pretrain.md lacks the row: {documented(size)}"


def documented(size) -> str:
    upto = "any" if size.max_bytes == float("inf") else f"{size.max_bytes / 1e6:g} MB"
    work = f"{size.effort * FLOP_PER_CORE / 1e12:g} TFLOP"
    cells = [upto, f"{size.vocab_size:,}", size.d_model, size.n_layers, size.context, size.batch_rows]
    return "| " + " | ".join(map(str, [*cells, f"{size.learning_rate:g}", size.max_epochs, work])) + " |"


def test_no_test_is_skipped_without_a_reason():
    reasons = (ROOT / "tests" / "skips.txt").read_text(encoding="utf-8")
    for file in (ROOT / "tests").rglob("test_*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if re.search(r"pytest\.(mark\.)?(skip|xfail|importorskip)", line) and "re.search" not in line:
                assert str(file.relative_to(ROOT)) in reasons, f"{file}: {line.strip()}"
