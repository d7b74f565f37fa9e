"""Times of two or more sides that are measured in turn, so that what else the machine does falls on all of them."""

import time
from collections.abc import Callable, Mapping


def alternate(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    least_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each side, one value a round; every other round goes through the sides backwards.

    With `time.process_time` as the clock it is the processor's time, which other programs do not lengthen.

    A side is called so often in a round that the round takes about `least_s` for it; calls before the first do not count.
    """
    calls = {name: _calls(run, least_s) for name, run in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            began = clock()
            for _ in range(calls[name]):
                sides[name]()
            times[name].append((clock() - began) / calls[name])
    return times


def _calls(run: Callable[[], object], least_s: float) -> int:
    run()
    began = time.perf_counter()
    run()
    return max(int(least_s / max(time.perf_counter() - began, 1e-9)), 1)
