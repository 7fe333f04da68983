"""Part 1: the same bits as the CPU engine, for sizes at the borders of lanes, units and chunks, any layout, any value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import optimkit
from optimkit.bench.gpu_day.parts import Day, Failed
from optimkit.transforms import ClipByGlobalNorm

SIZES = (0, 1, 3, 127, 128, 129, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192, 8193)
LARGE = 20_000_000
STEPS = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"transforms": [ClipByGlobalNorm(0.5)]},
    "skip": {"transforms": [ClipByGlobalNorm(0.5)], "nonfinite": "skip"},
}


def _contiguous(xp: Any, x: Any) -> Any:
    return xp.array(x)


def _strided(xp: Any, x: Any) -> Any:
    wide = xp.zeros(2 * x.size + 1, x.dtype)[::2][: x.size]
    wide[...] = x
    return wide


def _unaligned(xp: Any, x: Any) -> Any:
    """On the element's own size only: no vectors can be read."""
    shifted = xp.zeros(x.size + 1, x.dtype)[1:]
    shifted[...] = x
    return shifted


LAYOUTS: dict[str, Callable[[Any, Any], Any]] = {"contiguous": _contiguous, "strided": _strided, "unaligned": _unaligned}


def cases(quick: bool) -> Iterator[tuple[str, str, str, str, tuple[int, ...]]]:
    """(dtype, options, layout, values, sizes)."""
    for dtype in ("float32", "float64"):
        for options in OPTIONS:
            for layout in LAYOUTS:
                yield dtype, options, layout, "normal", SIZES
            yield dtype, options, "contiguous", "subnormal", SIZES
            yield dtype, options, "contiguous", "normal", (50_000 if quick else LARGE,)
        yield dtype, "skip", "contiguous", "one is infinite", SIZES


def draw(rng: np.random.Generator, values: str, size: int, dtype: str) -> np.ndarray:
    x = rng.standard_normal(size, np.float32).astype(dtype)
    if values == "subnormal":
        x *= np.finfo(dtype).smallest_subnormal * 1000
    return x


def run(day: Day) -> str:
    """Fails at the first bit that differs."""
    import cupy

    count = 0
    for dtype, options, layout, values, sizes in cases(day.quick):
        rng = np.random.default_rng(count)
        what = f"{dtype}, {options}, {layout}, {values}, {len(sizes)} arrays"
        print(what, flush=True)
        place, xps = LAYOUTS[layout], (np, cupy)
        start = [draw(rng, values, size, dtype) for size in sizes]
        weights = [[place(xp, xp.asarray(w)) for w in start] for xp in xps]
        both = [optimkit.AdamW(own, lr=1e-2, **OPTIONS[options]) for own in weights]
        for step in range(STEPS):
            grads = [draw(rng, values, size, dtype) for size in sizes]
            if values == "one is infinite" and step == 1:
                grads[-1][-1] = np.inf
            results = [opt.step([place(xp, xp.asarray(g)) for g in grads]) for opt, xp in zip(both, xps, strict=True)]
            told = [(result.applied, result.grad_norm) for result in results]
            if told[0] != told[1]:
                raise Failed(f"{what}, step {step + 1}: (applied, norm) is {told[0]} on the CPU, {told[1]} on the GPU")
        for number, (host, device) in enumerate(zip(*weights, strict=True)):
            _check(f"{what}: weight {number}", host, device)
            for slot, value in both[0].state[str(number)].items():
                _check(f"{what}: slot {slot} of {number}", value, both[1].state[str(number)][slot])
        count += 1
    day.found["cases"] = count
    return f"{count} cases, {STEPS} steps each, no bit differs from the CPU engine"


def _check(what: str, host: Any, device: Any) -> None:
    found = device.get()
    if host.tobytes() != found.tobytes():
        differ = np.flatnonzero(host.reshape(-1) != found.reshape(-1))
        raise Failed(f"{what}: {len(differ)} of {host.size} differ, the first at {differ[:1].tolist()}")
