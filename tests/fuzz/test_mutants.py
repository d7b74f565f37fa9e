"""Files that are damaged, ten thousand of each kind: they are used or refused, and nothing else happens (F20 - F28).

What is asked of them stands in `watch.py`. A mutant is made again by its number: `mutant(root, kind, index)` in
`kinds.py`, where `root` holds what `write_originals` wrote.
"""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.pairs import write_proof
from tests.fuzz.kinds import KINDS, mutant, prepare
from tests.fuzz.originals import write_originals
from tests.fuzz.watch import FREE_BYTES, Make, watch

from lamoid.errors import DataError

SLICE, ALL = 200, 10_000
PROOFS = Path(__file__).parents[2] / "docs" / "proofs"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_originals(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_mutants", [SLICE, pytest.param(ALL, marks=pytest.mark.prove)])
def test_mutants_are_used_or_refused(root: Path, tmp_path: Path, kind: str, n_mutants: int) -> None:
    findings = watch(functools.partial(prepare, root, kind), n_mutants, tmp_path)
    assert not findings.faults, f"{len(findings.faults)} of {n_mutants}: {dict(list(findings.faults.items())[:20])}"
    assert sum(findings.outcomes.values()) == n_mutants
    n_used = findings.outcomes["used"]
    assert n_mutants / 50 < n_used < n_mutants * 49 / 50, "mutants of which nearly all end alike find little"
    if n_mutants == ALL:
        slowest = {"most_cpu_s": round(findings.slowest[0], 3), "of_mutant": findings.slowest[1]}
        write_proof(f"fuzz-{kind}", {"outcomes": dict(findings.outcomes), "faults": 0, **slowest}, PROOFS)


def test_a_number_is_always_the_same_mutant_and_no_two_are_alike(root: Path) -> None:
    for kind in KINDS:
        mutants = [mutant(root, kind, index) for index in range(100)]
        assert mutants == [mutant(root, kind, index) for index in range(100)]
        assert len({(original.folder, original.file, content) for original, content in mutants}) > 95


# ---- the watcher


def _fall(index: int) -> None:
    match index:
        case 1:
            os.abort()
        case 2:
            while True:
                pass
        case 3:
            assert len(bytearray(2 * FREE_BYTES)) == 0, "this much is not there"
        case 4:
            raise KeyError("no LamoidError")
        case 5:
            raise DataError("as it should be")
        case 6:
            began = time.process_time()
            while time.process_time() < began + 1.2:
                pass
        case 7:
            raise DataError("long" * 10_000)
        case 8:
            bytearray(FREE_BYTES // 2)


def _trap(scratch: Path) -> Make:
    def make(index: int) -> tuple[int, Callable[[], object]]:
        return 10, functools.partial(_fall, index)

    return make


def test_the_watcher_sees_every_way_to_fall(tmp_path: Path) -> None:
    findings = watch(_trap, 10, tmp_path, max_wall_s=6.0)
    assert findings.outcomes == {"used": 4, "crash": 1, "hang": 1, "wrong error": 2, "DataError": 2}
    expected = ["the process died: ", "no answer in 6.0 s: ", "MemoryError", "KeyError", "takes 1.", "40000 characters"]
    assert list(findings.faults) == [1, 2, 3, 4, 6, 7]
    for found, part in zip(findings.faults.values(), expected, strict=True):
        assert part in found
    assert "_fall" in findings.faults[2], "where it hangs"
    assert findings.slowest[1] == 6
