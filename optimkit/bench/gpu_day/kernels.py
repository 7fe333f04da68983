"""Part 5: kernel times beside a copy: what a step does, the data, their layout, and variants of the text; in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

import optimkit
from optimkit.bench.clocks import clocks, clocks_text
from optimkit.bench.contestants import Contestant
from optimkit.bench.cupy import copy_contestant
from optimkit.bench.gpu_day.bits import LAYOUTS
from optimkit.bench.gpu_day.parts import Day
from optimkit.bench.graphs import STEPS, CapturedSteps, measure_graphs
from optimkit.bench.shapes import FULL, QUICK
from optimkit.engines.cuda import runner, text
from optimkit.transforms import ClipByGlobalNorm

CLIP: dict[str, Any] = {"transforms": [ClipByGlobalNorm(1.0)]}
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "clip": CLIP, "clip and skip": {**CLIP, "nonfinite": "skip"}}
BYTES = {"plain": 28, "clip": 32, "clip and skip": 32}  # per element, in float32
ROUNDS = 7

Edit = Callable[[str], str]
VARIANTS: dict[str, Edit] = {
    "a stride known at run time": lambda own: own.replace("i += 256 * lanes", "i += blockDim.x * lanes"),
    "launch bounds 256, 4": lambda own: own.replace("__launch_bounds__(256, 2)", "__launch_bounds__(256, 4)"),
    "launch bounds 256, 8": lambda own: own.replace("__launch_bounds__(256, 2)", "__launch_bounds__(256, 8)"),
    "forwards after reading": lambda own: own.replace("chunks[gridDim.x - 1 - blockIdx.x]", "chunks[blockIdx.x]"),
}
CHUNKS = (1024, 2048, 4096, 8192)


def run(day: Day) -> str:
    """Nothing fails here: it measures."""
    import cupy

    rounds, steps = (2, 2) if day.quick else (ROUNDS, STEPS)
    shapes = QUICK if day.quick else FULL
    day.found["clocks before"] = clocks()
    large, resnet = shapes["large"].shapes, shapes["resnet"].shapes
    cases: dict[str, Callable[[], CapturedSteps]] = {}

    def add(name: str, own: Any, options: str = "plain", layout: str = "contiguous", values: str = "normal") -> None:
        cases[name] = partial(_captured, cupy, own, options, layout, values, steps)

    for name, own in (("20M", large), ("ResNet-50", resnet)):
        for options in OPTIONS:
            add(f"{name}, {options}", own, options)
    for layout in ("unaligned", "strided"):
        add(f"20M, {layout}", large, layout=layout)
    for values in ("zero", "subnormal"):
        add(f"20M, {values}", large, values=values)
    found = _measure(cupy, cases, large, rounds, steps, day)
    for name, edit in VARIANTS.items():
        with _edited(edit):
            found |= _one(f"20M, clip, {name}", partial(_captured, cupy, large, "clip", "contiguous", "normal", steps), rounds)
    for chunk in CHUNKS:
        with _chunked(chunk):
            make = partial(_captured, cupy, large, "plain", "contiguous", "normal", steps)
            found |= _one(f"20M, plain, chunks of {chunk}", make, rounds)
    day.found["seconds"], day.found["clocks after"] = found, clocks()
    for name, seconds in found.items():
        print(f"{name:<44} {seconds * 1e6:10.1f} us")
    print(clocks_text(day.found["clocks after"]))
    share = [f"{name} {day.found['of a copy'][name]:.0%}" for name in list(cases)[:3] if name in day.found["of a copy"]]
    return f"of the speed of a copy: {', '.join(share)}; {len(found)} measured, see results.json"


def _measure(
    cupy: Any, cases: dict[str, Callable[[], CapturedSteps]], shapes: Any, rounds: int, steps: int, day: Day
) -> dict[str, float]:
    """All cases beside a copy of as many bytes, one after the other: each has its arrays for itself."""
    found: dict[str, float] = {}
    day.found["of a copy"] = {}
    for name, make in cases.items():
        found |= _one(name, make, rounds)
        cupy.get_default_memory_pool().free_all_blocks()
    elements = sum(int(np.prod(shape)) for shape in shapes)
    for options, bytes_each in BYTES.items():
        label = f"a copy of {bytes_each} bytes an element"
        found |= _one(label, partial(_captured_copy, cupy, elements * bytes_each, steps), rounds)
        copied = found[label]
        for name in cases:
            if name.startswith("20M") and name.partition(", ")[2] == options and name in found:
                day.found["of a copy"][name] = copied / found[name]
    return found


def _one(name: str, make: Callable[[], CapturedSteps], rounds: int) -> dict[str, float]:
    return measure_graphs({name: make}, rounds)[0]


def _captured_copy(cupy: Any, size: int, steps: int) -> CapturedSteps:
    return CapturedSteps(cupy, [copy_contestant(cupy, size)], steps)


def _captured(cupy: Any, shapes: Any, options: str, layout: str, values: str, steps: int) -> CapturedSteps:
    place, rng = LAYOUTS[layout], np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape))
        if values == "zero":
            return cupy.zeros(size, cupy.float32)
        x = cupy.asarray(rng.standard_normal(min(size, 1 << 20), np.float32))
        x = cupy.resize(x, size) * np.float32(1e-40 if values == "subnormal" else 1.0)
        return place(cupy, x)

    weights, grads = [draw(shape) for shape in shapes], [draw(shape) for shape in shapes]
    optimizer = optimkit.AdamW(weights, lr=1e-3, capturable=True, **OPTIONS[options])
    return CapturedSteps(cupy, [Contestant("optimkit", lambda: optimizer.step(grads), None, lambda: weights, optimizer)], steps)


def _edited(edit: Edit) -> AbstractContextManager[Any]:
    """Kernels with another text."""
    return mock.patch.object(runner, "module_text", lambda *arguments: edit(text.module_text(*arguments)))


def _chunked(chunk: int) -> AbstractContextManager[Any]:
    return mock.patch.object(runner, "write_chunk", return_value=chunk)
