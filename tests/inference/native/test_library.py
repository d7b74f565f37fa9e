"""The kernels against straightforward float64 products, on all formats and odd sizes, on every path."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.inference.native.blocks import PATHS, as_numbers, multiply, quantized, random_rows

from lamoid.errors import EngineUnavailable
from lamoid.inference.native import library
from lamoid.inference.native.build import SANITIZERS, compile_library
from lamoid.inference.native.library import Team
from lamoid.inference.weights import QUANTIZED

PLAIN = ("F32", "F16", "BF16")


@pytest.fixture(scope="module", params=PATHS)
def team(request) -> Team:
    return Team(2, path=request.param)


def test_the_paths_are_what_the_processor_has():
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    needed = {
        "AVX512-VNNI": {"avx2", "fma", "f16c", "avx512vl", "avx512_vnni"},
        "AVX-VNNI": {"avx2", "fma", "f16c", "avx_vnni"},
        "AVX2": {"avx2", "fma", "f16c"},
        "C": set(),
    }
    assert [name for name, flags in needed.items() if flags <= set(line.split())] == list(PATHS)
    assert Team(1).path == PATHS[0]
    with pytest.raises(EngineUnavailable, match="this processor has no NEON; it has .*C"):
        Team(1, path="NEON")


def columns(kind: str) -> list[int]:
    return (
        {"Q4_K": [256, 768], "Q6_K": [256, 768]}.get(kind, [32, 96, 576]) if kind in QUANTIZED else [1, 5, 8, 13, 100]
    )


@pytest.mark.parametrize("kind", [*PLAIN, *QUANTIZED])
def test_products_equal_float64(kind, team):
    """The order of sums aside, a product is exact for the quantized activations, whose own bound is tested below."""
    rng = np.random.default_rng(0)
    for n_rows, n_cols, n_tokens in itertools.product([1, 7, 8, 9, 27], columns(kind), [1, 2, 3, 4, 5, 11]):
        rows, x = random_rows(kind, n_rows, n_cols, rng), rng.standard_normal((n_tokens, n_cols)).astype(np.float32)
        bias = rng.standard_normal(n_rows).astype(np.float32) if n_rows % 2 else None
        weights, seen = as_numbers(kind, rows), quantized(x) if kind in QUANTIZED else x.astype(np.float64)
        expected = seen @ weights.T + (0 if bias is None else bias)
        size = np.abs(seen) @ np.abs(weights).T + 1
        if kind == "Q4_1" or kind == "Q4_K":  # the minimum is added separately: its own size counts
            size += np.abs(seen).sum(axis=1, keepdims=True) * np.abs(weights).max()
        got = multiply(team, kind, rows, n_cols, x, bias)
        assert (np.abs(got - expected) <= 2e-6 * size).all(), (n_rows, n_cols, n_tokens)


@pytest.mark.parametrize("kind", [*PLAIN, *QUANTIZED])
def test_a_token_gets_the_same_bits_in_any_company_from_any_threads_and_on_any_vectors(kind):
    rng = np.random.default_rng(1)
    n_cols, teams = columns(kind)[-1], [Team(n) for n in (1, 2, 3)]
    rows, x = random_rows(kind, 43, n_cols, rng), rng.standard_normal((13, n_cols)).astype(np.float32)
    alone = np.concatenate([multiply(teams[0], kind, rows, n_cols, x[i : i + 1]) for i in range(13)])
    vectors = [path for path in PATHS if path != "C"]  # which rounds products and sums separately
    for team in [*teams, *(Team(2, path=path) for path in vectors)]:
        for n in (2, 3, 4, 7, 13):
            assert np.array_equal(multiply(team, kind, rows, n_cols, x[:n]), alone[:n])


@pytest.mark.parametrize("kind", QUANTIZED)
def test_the_error_of_quantized_activations_stays_below_half_a_unit(kind, team):
    """|y − W x| ≤ Σ |w| · d / 2 with d = max |x| / 127 of the group: rounding moves no x by more."""
    rng = np.random.default_rng(2)
    rows = random_rows(kind, 24, 768, rng)
    x = (rng.standard_normal((6, 768)) * np.exp(3 * rng.standard_normal((6, 768)))).astype(np.float32)
    weights = as_numbers(kind, rows)
    units = np.repeat(np.abs(x.reshape(6, -1, 32)).max(axis=-1) / 127, 32, axis=-1)
    bound = (units / 2) @ np.abs(weights).T
    error = np.abs(multiply(team, kind, rows, 768, x) - x.astype(np.float64) @ weights.T)
    assert (error <= bound * 1.001).all()
    assert (error > bound / 1000).any()


def test_extreme_blocks_do_not_overflow(team):
    """The largest weights times the largest activations, in all signs: −128 and 127, all four bits set."""
    for kind, byte in itertools.product(QUANTIZED, (0x00, 0x7F, 0x80, 0xFF)):
        rows = random_rows(kind, 8, 768, np.random.default_rng(3))
        whole = rows.reshape(
            8, -1, len(rows[0]) * 32 // 768 if kind not in ("Q4_K", "Q6_K") else len(rows[0]) // 3
        ).copy()
        start = {"Q4_1": 4, "Q4_K": 16}.get(kind, 0 if kind == "Q6_K" else 2)
        whole[..., start : 208 if kind == "Q6_K" else None] = byte
        rows = whole.reshape(8, -1)
        for sign in (1.0, -1.0):
            x = np.full((1, 768), sign, np.float32)
            expected = quantized(x) @ as_numbers(kind, rows).T
            size = np.abs(as_numbers(kind, rows)).sum(axis=1) + 768 * np.abs(as_numbers(kind, rows)).max() + 1
            assert (np.abs(multiply(team, kind, rows, 768, x) - expected) <= 1e-5 * size).all(), (kind, byte)


def test_zeros_infinities_and_nan_stay_what_they_are(team):
    rows = random_rows("F32", 8, 16, np.random.default_rng(4))
    assert (multiply(team, "F32", rows, 16, np.zeros((1, 16), np.float32)) == 0).all()
    x = np.zeros((1, 16), np.float32)
    x[0, 3] = np.nan
    assert np.isnan(multiply(team, "F32", rows, 16, x)).all()
    rows = random_rows("Q8_0", 8, 32, np.random.default_rng(4))
    assert (multiply(team, "Q8_0", rows, 32, np.zeros((1, 32), np.float32)) == 0).all()


def test_a_library_that_is_missing_or_foreign_is_a_reason(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    with pytest.raises(EngineUnavailable, match="not compiled"):
        library.library.__wrapped__()
    (tmp_path / "_engine.so").write_bytes(b"not a library")
    with pytest.raises(EngineUnavailable, match="cannot be loaded"):
        library.library.__wrapped__()


def test_under_sanitizers(tmp_path: Path):
    """All formats and a whole model under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own.

    Takes longer than other tests: the kernels are compiled once more, and run several times slower.
    """
    target = tmp_path / "sanitized.so"
    compile_library(target, SANITIZERS)
    runtimes = [
        subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {**os.environ, "LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    environment |= {"PYTHONMALLOC": "malloc", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.inference.native.exercise", str(target)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("exercised")
