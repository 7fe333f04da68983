"""What a warm step costs besides time: memory, and the checks of gradients that were replaced."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from statistics import median

from optimkit.bench.contestants import Contestant, make_data
from optimkit.bench.measure import no_garbage_collection
from optimkit.bench.shapes import Shapes
from optimkit.bench.workloads import WORKLOADS


def allocated(contestant: Contestant) -> int:
    """Bytes that are allocated at the highest point of a warm step, what Python and NumPy tell of."""
    _step(contestant)
    tracemalloc.start()
    try:
        _step(contestant)  # what is kept for tracing itself
        if contestant.refill is not None:
            contestant.refill()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        contestant.step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _step(contestant: Contestant) -> None:
    if contestant.refill is not None:
        contestant.refill()
    contestant.step()


def resident() -> int | None:
    """Bytes of this process in memory; None where the system does not tell."""
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def resident_growth(contestant: Contestant) -> int | None:
    """Bytes by which the process has grown after some warm steps."""
    _step(contestant)
    before = resident()
    for _ in range(5):
        _step(contestant)
    after = resident()
    return None if before is None or after is None else after - before


def replaced_gradients(
    workload: str, shapes: Shapes, dtype: str, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds that each parameter costs more when its gradient is another array in every step, round by round.

    The new arrays are copies, made before the time is taken. Small ones, so that what is measured is
    how they are found and checked, and not that their memory is in no cache.
    """
    weights, grads = make_data(shapes, dtype)
    optimizer = WORKLOADS[workload].optimizer(weights)
    costs = []

    def timed(chosen: list[object]) -> float:
        start = clock()
        optimizer.step(chosen)
        return clock() - start

    timed(grads)  # type: ignore[arg-type]
    with no_garbage_collection():
        for _ in range(rounds):
            timed(grads)  # type: ignore[arg-type]
            same = median(timed(grads) for _ in range(5))  # type: ignore[arg-type]
            fresh = [[g.copy() for g in grads] for _ in range(5)]
            other = median(timed(each) for each in fresh)  # type: ignore[arg-type]
            costs.append((other - same) / len(weights))
    return costs
