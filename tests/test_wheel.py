"""The wheel, in a clean environment that has nothing but what it asks for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*words: object, cwd: Path) -> str:
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment into which the wheel was installed with its own dependencies alone."""
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT, cwd=folder)
    (wheel,) = (folder / "dist").glob("lamoid-*.whl")
    call(sys.executable, "-m", "venv", folder / "clean", cwd=folder)
    bin_folder = folder / "clean" / "bin"
    pip = (bin_folder / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    call(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return bin_folder


def test_smoke(commands: Path, tmp_path: Path):
    """From text to a model that writes, away from the repository."""
    text = "\n\n".join(f"Câu {i}: the cat sat on mat {i * i}, 猫坐在垫子上。 고양이." * 3 for i in range(200))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    lamoid = commands / "lamoid"
    assert "pretrain" in call(lamoid, "--help", cwd=tmp_path)
    assert call(lamoid, "--version", cwd=tmp_path).startswith("lamoid 0.")
    call(lamoid, "tokenizer", "train", "--data", "text.txt", "--out", "tok", "--vocab-size", 300, cwd=tmp_path)
    settings = ("--tokenizer", "tok", "--context", 32, "--batch-rows", 2, "--max-steps", 4, "--threads", 1)
    call(lamoid, "pretrain", "--data", "text.txt", "--out", "run", *settings, cwd=tmp_path)
    for engine in ("native", "torch"):
        settings = ("--max-new-tokens", 5, "--json", "--engine", engine)
        assert '"text"' in call(lamoid, "generate", "run", "Câu", *settings, cwd=tmp_path)
    assert '"bits_per_byte"' in call(lamoid, "eval", "run", "--text", "text.txt", "--json", cwd=tmp_path)


def test_missing_extra_names_its_command(commands: Path, tmp_path: Path):
    done = subprocess.run(
        [commands / "python", "-c", "from lamoid.inspect.figures import loss_curve_text as f; f([(0, 1)], [(0, 1)])"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert "pip install 'lamoid[plots]'" in done.stderr.splitlines()[-1]
