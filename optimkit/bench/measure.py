"""How time is taken: everybody once in each round, and ratios within the round.

A machine gets slower and faster while it measures. Neighbours in time are compared, and the median
of these ratios is robust where the ratio of two medians is not:

>>> compare([1.0, 8.0, 6.0], [2.0, 4.0, 1.0])
Ratio(median=2.0, low=0.5, high=6.0)
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

from optimkit.bench.contestants import Contestant, check_same

WARM_UP = 3  # steps before anything is timed
LEAST = 0.03  # seconds that a sample lasts: short steps are repeated
MOST = 300  # steps in a sample
PAUSE = 0.02  # seconds before a sample: the threads of OpenMP spin for some milliseconds after their work

Timer = Callable[[Contestant, int], float]


class Ratio(NamedTuple):
    """The median, the least and the largest of the ratios of all rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 1 if self.median >= 9.95 else 2
        return f"{self.median:.{digits}f}x ({self.low:.{digits}f}..{self.high:.{digits}f})"


def compare(others: Sequence[float], own: Sequence[float]) -> Ratio:
    """Their times over ours, round by round."""
    ratios = [other / mine for other, mine in zip(others, own, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def time_on_host(contestant: Contestant, steps: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a step takes, the mean of some; filling the gradients again does not count."""
    step, refill = contestant.step, contestant.refill
    if refill is None:
        start = clock()
        for _ in range(steps):
            step()
        return (clock() - start) / steps
    total = 0.0
    for _ in range(steps):
        refill()
        start = clock()
        step()
        total += clock() - start
    return total / steps


def run_rounds(
    contestants: Sequence[Contestant], rounds: int, dtype: str, timer: Timer = time_on_host, least: float = LEAST
) -> dict[str, list[float]]:
    """Seconds per step of each contestant in each round.

    Raises
    ------
    RuntimeError
        If they do not compute the same.
    """
    steps: dict[str, int] = {}
    for contestant in contestants:
        timer(contestant, WARM_UP - 1)
        steps[contestant.name] = min(max(round(least / max(timer(contestant, 1), 1e-9)), 1), MOST)
    check_same(contestants, dtype)
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    with no_garbage_collection():
        for number in range(rounds):
            shift = number % len(contestants)
            for contestant in (*contestants[shift:], *contestants[:shift]):
                time.sleep(PAUSE)
                if steps[contestant.name] > 1:
                    timer(contestant, 1)  # caches, and threads that slept
                times[contestant.name].append(timer(contestant, steps[contestant.name]))
    return times
