"""Part 7: what a step takes on the host: few and many parameters, the same gradients and replaced ones, torch beside it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import optimkit
from optimkit.bench.contestants import torch_problem
from optimkit.bench.gpu_day.parts import Day

COUNTS = {4: 20e-6, 161: None, 1000: 100e-6}  # parameters, and what is aimed at
SIZE = 16  # elements of each: the device is never waited for


def run(day: Day) -> str:
    """Nothing fails here: it measures."""
    import cupy

    torch = not torch_problem("cuda")
    rounds = 3 if day.quick else 60
    said = []
    for count, aim in COUNTS.items():
        weights = {str(number): cupy.ones(SIZE, cupy.float32) for number in range(count)}
        sets = [{name: cupy.ones(SIZE, cupy.float32) for name in weights} for _ in range(6)]
        opt = optimkit.Adam(weights, lr=1e-3)
        own = {
            "same": _host(cupy, rounds, opt.step, sets[:1]),
            "taking turns": _host(cupy, rounds, opt.step, sets),
            "new": _new(cupy, rounds, opt, weights),
        }
        if torch:
            own |= _torch(cupy, rounds, count)
        day.found[str(count)] = {name: seconds * 1e6 for name, seconds in own.items()}
        aimed = f" (aim {aim * 1e6:.0f})" if aim else ""
        said.append(f"{count}: {', '.join(f'{name} {seconds * 1e6:.0f}' for name, seconds in own.items())} us{aimed}")
        print(said[-1], flush=True)
    return "; ".join(said)


def _host(cupy: Any, rounds: int, step: Callable[[Any], Any], sets: list[Any]) -> float:
    for number in range(8):
        step(sets[number % len(sets)])
    taken = []
    gc.collect()
    gc.disable()
    for number in range(rounds):
        grads = sets[number % len(sets)]
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        step(grads)
        taken.append(time.perf_counter() - start)
    gc.enable()
    return median(taken)


def _new(cupy: Any, rounds: int, opt: Any, weights: dict[str, Any]) -> float:
    """Gradients that are made before each step, as a framework does; making them is not timed."""
    taken = []
    for _ in range(rounds):
        grads = {name: cupy.empty(SIZE, cupy.float32) for name in weights}
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        opt.step(grads)
        taken.append(time.perf_counter() - start)
    return median(taken)


def _torch(cupy: Any, rounds: int, count: int) -> dict[str, float]:
    import torch

    params = [torch.ones(SIZE, device="cuda", requires_grad=True) for _ in range(count)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.Adam(params, lr=1e-3, fused=True)
    return {"torch fused": _host(cupy, rounds, lambda grads: optimizer.step(), [None])}
