"""Part 3: races and disorder: many steps under load, compared on the device with the same steps alone.

A large parameter and a thousand ragged ones; gradients scaled by another factor in each iteration; all that passes from
block to block, and from launch to launch, is NaN before each. A sum that is read too early, memory that is given out too
early, a step that overtakes another: each gives other bits. Then the same once more with the fences taken out of the
kernels, to see whether the loop would notice; what that finds is told, and nothing fails for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import numpy as np

import optimkit
from optimkit.bench.gpu_day.parts import Day, Failed, Left
from optimkit.engines.cuda import text
from optimkit.engines.cuda.combine import COMBINE
from optimkit.transforms import ClipByGlobalNorm

POISONED = ("partials", "uniforms", "by_row", "next_counts")
LOAD = 1 << 28  # bytes that a copy beside the steps moves


class Problem:
    """Parameters that lie in one piece, and their gradients in another: one launch scales all, one compares all."""

    def __init__(self, cupy: Any, quick: bool, **options: Any) -> None:
        rng = np.random.default_rng(0)
        sizes = [5000 if quick else 20_000_000, *rng.integers(1, 300 if quick else 20_000, 20 if quick else 1000).tolist()]
        starts = np.concatenate([[0], np.cumsum([-(-size // 4) * 4 for size in sizes])])
        self.cupy, total = cupy, int(starts[-1])
        self.weights = cupy.asarray(rng.standard_normal(total, np.float32))
        self.base = cupy.asarray(rng.standard_normal(total, np.float32))
        self.places = [slice(int(start), int(start) + size) for start, size in zip(starts, sizes, strict=False)]
        self.norm = float(cupy.sqrt(sum(cupy.sum(self.base[each].astype(cupy.float64) ** 2) for each in self.places)))
        settings = {"transforms": [ClipByGlobalNorm(0.75 * self.norm)], "nonfinite": "skip", **options}
        self.optimizer = optimkit.AdamW([self.weights[each] for each in self.places], lr=1e-3, **settings)
        self.scaled = cupy.empty_like(self.base)

    def gradients(self, number: int, anew: bool = False) -> list[Any]:
        """Those of an iteration; `anew`: in memory that is asked for now."""
        self.scaled = self.cupy.empty_like(self.base) if anew else self.scaled
        self.cupy.multiply(self.base, np.float32(factor(number)), out=self.scaled)
        return [self.scaled[each] for each in self.places]

    def poison(self) -> None:
        """Whatever a step leaves for a later block, or launch, is garbage before it."""
        for bucket in self.optimizer._run.steps.buckets if self.optimizer._run.steps is not None else ():
            runner: Any = bucket.runner
            for name in POISONED:
                array = runner._kept[name]
                array.fill(-1 if array.dtype.kind == "i" else np.nan)
            for place in runner.results._free:
                place.fill(np.nan)

    def checksum(self) -> Any:
        """Of the bits of all weights, on the device."""
        return self.weights.view(self.cupy.uint32).astype(self.cupy.uint64).sum()


def factor(number: int) -> float:
    """The gradient's in an iteration: clipped in some, not in others."""
    return 0.5 + (number * 37 % 101) / 128


def run(day: Day) -> str:
    """Fails where an iteration differs from the same one alone."""
    import cupy

    rounds = 12 if day.quick else 1000
    cupy.cuda.Device().synchronize()
    expected = _run(cupy, day, rounds, _alone, load=False)
    norms = np.array([factor(number) for number in range(rounds)]) * expected["norm"]
    if not np.allclose(expected["norms"], norms, rtol=1e-6, atol=0.0):
        raise Failed("norms are wrong already when nothing else runs")
    problems, told = [], []
    for name, (around, step) in MODES.items():
        try:
            with around(cupy):
                found = _run(cupy, day, rounds, step, load=True, capturable=name == "graphs")
        except Left as error:
            told.append(f"{name} left out ({error})")
            continue
        wrong = int((found["sums"] != expected["sums"]).sum()), int((found["norms"] != expected["norms"]).sum())
        print(f"{name}: {wrong[0]} of {rounds} checksums and {wrong[1]} norms differ", flush=True)
        day.found[name] = {"checksums": wrong[0], "norms": wrong[1], "of": rounds}
        if any(wrong):
            problems.append(f"{name}: {wrong[0]} checksums, {wrong[1]} norms")
    with _without_fences():
        found = _run(cupy, day, rounds, _alone, load=True)
    noticed = int((found["sums"] != expected["sums"]).sum())
    day.found["without fences"] = {"checksums": noticed, "of": rounds}
    told.append(f"without fences {noticed} of {rounds} would differ")
    if problems:
        raise Failed(f"of {rounds} iterations: {'; '.join(problems)}; {'; '.join(told)}")
    return f"{rounds} iterations in {len(MODES)} modes are those alone, to the bit; {'; '.join(told)}"


Step = Callable[[Any, Problem, int, list[Any]], Any]


def _run(cupy: Any, day: Day, rounds: int, step: Step, load: bool, **options: Any) -> dict[str, Any]:
    """Checksums and norms after each iteration."""
    problem = Problem(cupy, day.quick, **options)
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    beside = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)] if load else []
    size = 1 << 16 if day.quick else LOAD
    copies = [(cupy.empty(size, cupy.uint8), cupy.empty(size, cupy.uint8)) for _ in beside]
    sums = cupy.zeros(rounds, cupy.uint64)
    cupy.cuda.Device().synchronize()
    results = []
    for number in range(rounds):
        for stream, (a, b) in zip(beside, copies, strict=True):
            a.data.copy_from_device_async(b.data, size, stream)
        results.append(step(cupy, problem, number, streams))
        sums[number] = problem.checksum()
    cupy.cuda.Device().synchronize()
    norms = np.array([result if isinstance(result, float) else result.grad_norm for result in results])
    return {"sums": sums.get(), "norms": norms, "norm": problem.norm}


def _iterate(problem: Problem, number: int, anew: bool = False) -> Any:
    grads = problem.gradients(number, anew)
    problem.poison()
    return problem.optimizer.step(grads)


def _alone(cupy: Any, problem: Problem, number: int, streams: list[Any]) -> Any:
    return _iterate(problem, number)


def _new_memory(cupy: Any, problem: Problem, number: int, streams: list[Any]) -> Any:
    return _iterate(problem, number, anew=True)


def _switching(cupy: Any, problem: Problem, number: int, streams: list[Any]) -> Any:
    """Each iteration on another stream: the caller orders its own arrays, the optimizer the state."""
    here, stream = cupy.cuda.get_current_stream(), streams[number % 3]
    stream.wait_event(here.record())
    with stream:
        result = _iterate(problem, number)
    here.wait_event(stream.record())
    return result


def _threads(cupy: Any, problem: Problem, number: int, streams: list[Any]) -> Any:
    """Every other iteration in a thread with a default stream of its own."""
    found: list[Any] = []

    def work() -> None:
        with cupy.cuda.Stream.ptds as stream:
            found.append(_iterate(problem, number))
            stream.synchronize()

    cupy.cuda.get_current_stream().synchronize()
    if number % 2:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        work()
    return found[0]


def _graphs(cupy: Any, problem: Problem, number: int, streams: list[Any]) -> Any:
    """A step that was captured, replayed; every third iteration a step beside the graph."""
    stream, here = streams[0], cupy.cuda.get_current_stream()
    stream.wait_event(here.record())
    with stream:
        graph = problem.__dict__.get("graph")
        if number == 0 or number % 3 == 2:
            result = _iterate(problem, number)
        else:
            grads = problem.gradients(number)
            if graph is None:
                stream.begin_capture()
                problem.captured = problem.optimizer.step(grads)  # type: ignore[attr-defined]
                graph = problem.graph = stream.end_capture()  # type: ignore[attr-defined]
            problem.poison()
            graph.launch()
            result = problem.captured.grad_norm  # type: ignore[attr-defined]
    here.wait_event(stream.record())
    return result


@contextmanager
def _as_it_is(cupy: Any) -> Iterator[None]:
    yield


@contextmanager
def _async_pool(cupy: Any) -> Iterator[None]:
    """Memory from CUDA's own pool, which gives out what was freed in the order of streams."""
    before = cupy.cuda.get_allocator()
    try:
        pool = cupy.cuda.MemoryAsyncPool()
        pool.malloc(1 << 10)
    except RuntimeError as error:  # CUDA's own errors are such
        raise Left(f"no asynchronous pool: {error}") from error
    cupy.cuda.set_allocator(pool.malloc)
    try:
        yield
    finally:
        cupy.cuda.Device().synchronize()
        cupy.cuda.set_allocator(before)


def _without_fences() -> AbstractContextManager[Any]:
    unfenced = COMBINE.replace("__threadfence();", ";").replace("const volatile T*", "const T*")
    return mock.patch.object(text, "COMBINE", unfenced)


MODES: dict[str, tuple[Callable[[Any], Any], Step]] = {
    "load": (_as_it_is, _alone),
    "new memory": (_as_it_is, _new_memory),
    "asynchronous pool": (_async_pool, _new_memory),
    "a stream of each thread": (_as_it_is, _threads),
    "graphs": (_as_it_is, _graphs),
    "another stream in each step": (_as_it_is, _switching),
}
