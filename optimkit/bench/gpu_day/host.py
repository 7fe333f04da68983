"""Part 7: what a step takes on the host: few and many parameters, the same gradients and replaced ones, torch beside it."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from optimkit.bench import host
from optimkit.bench.contestants import torch_problem
from optimkit.bench.gpu_day.parts import Day


def run(day: Day) -> str:
    """Nothing fails here: it measures."""
    import cupy

    rounds = 2 if day.quick else 25
    found = host.measure(cupy, rounds, launching=True)
    for count, own in host.measure(cupy, rounds, launching=False).items():
        found[count] |= {f"{name}, nothing launched": seconds for name, seconds in own.items() if name != host.HAND}
        if not torch_problem("cuda"):
            found[count]["torch fused"] = _torch(rounds, count)
    day.found["microseconds"] = {str(count): {name: 1e6 * each for name, each in own.items()} for count, own in found.items()}
    return "; ".join(f"{count}: {_told(own)} us" for count, own in found.items())


def _told(own: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1e6:.0f}" for name, seconds in own.items() if "nothing" not in name)


def _torch(rounds: int, count: int) -> float:
    import torch

    params: list[Any] = [torch.ones(host.SIZE, device="cuda", requires_grad=True) for _ in range(count)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.Adam(params, lr=1e-3, fused=True)
    taken = []
    for _ in range(rounds):
        optimizer.step()
        torch.cuda.synchronize()
        start = time.process_time()
        for _ in range(host.SAMPLE):
            optimizer.step()
        taken.append((time.process_time() - start) / host.SAMPLE)
        torch.cuda.synchronize()
    return median(taken)
