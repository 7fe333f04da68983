"""What a step takes on the host, for few and many parameters on a device: the same gradients, sets that take turns, new ones.

With `launching=False` nothing is launched: what is left is what optimkit does itself, which an emulated device shows too.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

import optimkit
from optimkit.bench.workloads import KERNELS
from optimkit.engines.cuda import step

COUNTS = (4, 161, 1000)  # parameters
SIZE = 16  # elements of each: the device is never waited for
SETS = 6  # that take turns
SAMPLE = 20  # steps between two looks at the clock
HAND, PYTHON = "ElementwiseKernel", "new, Python looks"


def measure(cupy: Any, rounds: int, launching: bool) -> dict[int, dict[str, float]]:
    """Seconds of CPU time of a step, by the number of parameters; medians, everybody once in each round."""
    return {count: _measure(cupy, count, rounds, launching) for count in COUNTS}


def _measure(cupy: Any, count: int, rounds: int, launching: bool) -> dict[str, float]:
    weights = {str(number): cupy.ones(SIZE, cupy.float32) for number in range(count)}
    sets = [{name: cupy.ones(SIZE, cupy.float32) for name in weights} for _ in range(SETS)]
    opt, slow = (optimkit.Adam(weights, lr=1e-3) for _ in range(2))
    with mock.patch.object(step, "works", return_value=False):  # as where llvmlite is not installed
        slow.warm_up()
    for each in (opt, slow):
        for grads in sets:
            each.step(grads)
        if not launching:
            launch_nothing(each)
    steps: dict[str, Callable[[int], Any]] = {
        "same": partial(_step, opt, sets[:1]),
        "taking turns": partial(_step, opt, sets),
        HAND: by_hand(cupy, weights, sets[0]),
    }
    taken: dict[str, list[float]] = {name: [] for name in (*steps, "new", PYTHON)}
    for _ in range(rounds):
        for name, take in steps.items():
            taken[name].append(_time(cupy, take, SAMPLE))
        for name, each in (("new", opt), (PYTHON, slow)):
            made = [{key: cupy.empty(SIZE, cupy.float32) for key in weights} for _ in range(SAMPLE)]  # not timed
            taken[name].append(_time(cupy, partial(_step, each, made), SAMPLE))
    return {name: median(times) for name, times in taken.items()}


def _step(opt: Any, sets: list[Any], number: int) -> None:
    opt.step(sets[number % len(sets)])


def _time(cupy: Any, take: Callable[[int], Any], steps: int) -> float:
    take(0)
    cupy.cuda.Device().synchronize()
    gc.collect()
    gc.disable()
    start = time.process_time()
    for number in range(steps):
        take(number)
    found = (time.process_time() - start) / steps
    gc.enable()
    return found


def launch_nothing(opt: Any) -> None:
    """Launches of an optimizer become calls of compiled code that do nothing."""
    nothing = "".format
    launches = opt._run.steps.device.launches
    for runner in launches.runners:
        runner.last = nothing
        runner.passes = dict.fromkeys(runner.passes, nothing)
        runner.finishing = dict.fromkeys(runner.finishing, nothing)
    launches._laid_out, launches._warm_of = [], None


def by_hand(cupy: Any, weights: dict[str, Any], grads: dict[str, Any]) -> Callable[[int], Any]:
    """An `ElementwiseKernel` for each parameter, as thinc and chainer have it; its launches are made."""
    kernel = cupy.ElementwiseKernel(*KERNELS["adam"], "host_by_hand")
    slots = {name: (cupy.zeros_like(w), cupy.zeros_like(w)) for name, w in weights.items()}
    rate, root = np.float32(1e-3), np.float32(1.0)

    def take(number: int) -> None:
        for name, w in weights.items():
            kernel(grads[name], rate, root, w, *slots[name])

    return take
