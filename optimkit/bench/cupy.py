"""The benchmark on a GPU: optimkit on CuPy arrays, and what else people run there, timed by CUDA events.

    python -m optimkit bench --backend cupy

Compared are plain CuPy expressions, `cupy.fuse` and an `ElementwiseKernel` for each parameter, torch's
fused optimizers where torch has CUDA, and a device-to-device copy of as many bytes as a step moves.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import numpy as np

import optimkit
from optimkit.bench import host, report
from optimkit.bench.clocks import clocks, clocks_text
from optimkit.bench.contestants import (
    APEX,
    FUSED,
    OPTIMKIT,
    Contestant,
    Data,
    apex_problem,
    bytes_per_element,
    expressions_contestant,
    make_data,
    optimkit_contestant,
    plan_of,
    torch_contestant,
    torch_problem,
)
from optimkit.bench.graphs import ROTATED, STEPS, CapturedSteps, TorchGraph, measure_graphs, sets_for
from optimkit.bench.measure import LEAST, Timer, compare, no_garbage_collection, run_rounds
from optimkit.bench.options import Options
from optimkit.bench.shapes import FULL, QUICK
from optimkit.bench.targets import judge_device
from optimkit.bench.workloads import KERNELS, LR, WORKLOADS, by_hand, corrections
from optimkit.engines.choose import choose
from optimkit.engines.cuda.diagnosis import LIBRARY, cuda_problem, find_cuda

EXPRESSIONS, FUSE, KERNEL, COPY = "CuPy expressions", "cupy.fuse", "ElementwiseKernel", "copy"
EMULATED = "The device is emulated on the CPU: launches and results count, times mean nothing."
OTHERS = (FUSED, APEX, KERNEL, FUSE, EXPRESSIONS)
COLUMNS = (("of a copy", "share"), ("host", "host_text"), ("kernels", "kernels_text"), ("theirs", "kernels_share"))


def measure(options: Options, show: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the options ask for, shown as it is found.

    Raises
    ------
    Unavailable
        If there is no CuPy, no driver or no device; says what is missing and how to get it.
    """
    cuda = find_cuda()
    problem = cuda_problem(cuda)
    if problem is not None:
        raise report.Unavailable(f"--backend cupy: {problem.what}\n  {problem.remedy}")
    import cupy

    device = cuda.devices[cupy.cuda.Device().id]
    torch = torch_problem("cuda")
    found: dict[str, Any] = {"device": device, "driver": cuda.driver, "torch": {"problem": torch}, "cells": [], "extras": None}
    found["engine"] = choose("cupy", str(device["number"]), None).name
    show(_head(options, device, found["engine"], torch))
    found["clocks"] = {"before": clocks(device["number"])}
    for workload in options.workloads:
        own = [measure_cell(cupy, options, workload, shape, not torch) for shape in options.shapes]
        found["cells"] += own
        report.progress("")
        show(report.cells(own, [name for name in OTHERS if name in own[0]["seconds"]], COLUMNS))
        show(report.launches(own))
    if options.host:
        report.progress("what a step takes on the host ...")
        found["host"] = host.measure(cupy, 3 if options.quick else max(options.rounds, 7), launching=False)
        report.progress("")
        show(host_text(found["host"]))
    found["clocks"]["after"] = clocks(device["number"])
    show("\n".join(f"{when}: {clocks_text(told)}" for when, told in found["clocks"].items()))
    judged = judge_device(found)
    found["targets"] = [{**asdict(each), "holds": each.holds} for each in judged]
    show(report.targets(judged))
    if device["emulated"]:
        show(EMULATED)
    return found


def host_text(found: dict[int, dict[str, float]]) -> str:
    """The host's part of steps of Adam, nothing launched, beside a loop of kernels by hand, which launches."""
    names = list(next(iter(found.values())))
    head = ["CPU time of Adam's step, nothing launched", *names]
    rows = [[f"{count} parameters", *(report.seconds(own[name]) for name in names)] for count, own in found.items()]
    return report.table(head, rows) + f"\n  {host.HAND}: one for each parameter, with its launches.\n"


def _head(options: Options, device: dict[str, Any], engine: str, torch: str) -> str:
    other = f"no torch ({torch})" if torch else f"torch {sys.modules['torch'].__version__}"
    lines = [
        f"optimkit bench: {options.dtype}, {device['name']}, engine {engine}, {other}",
        f"{options.rounds} interleaved rounds, timed by CUDA events. {report.RATIOS}",
        "host: what a step takes in Python, when it finds an idle device.",
        f"kernels: what it takes without the host, in a CUDA graph of {STEPS} steps or more, over sets of arrays that take",
        f"turns ({ROTATED / 1e6:.0f} MB); theirs: the share of the speed of a copy in such a graph.",
    ]
    if device["emulated"]:
        lines.append(EMULATED)
    if options.quick:
        lines.append(report.QUICK)
    return "\n".join(lines) + "\n"


def measure_cell(cupy: Any, options: Options, workload: str, shape: str, torch: bool) -> dict[str, Any]:
    """One update on one list of shapes, by everybody."""
    shapes, tail = (QUICK if options.quick else FULL)[shape], WORKLOADS[workload].tail
    report.progress(f"{WORKLOADS[workload].title}, {shapes.title} ...")
    data, plan = make_data(shapes, options.dtype), plan_of(workload, options.dtype)
    read, written = bytes_per_element(plan, options.dtype, tail)
    traffic = (read + written) * shapes.elements
    own = optimkit_contestant(workload, data, cupy.array)
    contestants = [own, copy_contestant(cupy, traffic), *cupy_contestants(cupy, workload, data)]
    if torch:
        contestants.append(torch_contestant(workload, data, "fused", "cuda"))
        if not apex_problem():
            contestants.append(torch_contestant(workload, data, APEX, "cuda"))
    least = 1e-6 if options.quick else LEAST
    taken = run_rounds(contestants, options.rounds, options.dtype, event_timer(cupy), least)
    on_host = host_seconds(cupy, own, options.rounds)
    cell = {
        "workload": workload,
        "shape": shape,
        "title": shapes.title,
        "parameters": len(shapes.shapes),
        "elements": shapes.elements,
        "bytes_read": read,
        "bytes_written": written,
        "stages": len(plan.stages),
        "gb_per_s": traffic / median(taken[OPTIMKIT]) / 1e9,
        "share": f"{compare(taken[COPY], taken[OPTIMKIT]).median:.0%}",
        "ratios": {name: compare(times, taken[OPTIMKIT])._asdict() for name, times in taken.items() if name in OTHERS},
        "launches": {each.name: count_launches(cupy, each) for each in contestants if each.name != COPY},
        "host_seconds": on_host,
        "host_text": report.seconds(on_host),
        "seconds": taken,
    }
    contestants.clear()
    cupy.get_default_memory_pool().free_all_blocks()
    kernels, cell["not_captured"] = graph_seconds(cupy, options, workload, data, traffic, torch)
    cell["kernels"], cell["kernels_text"] = kernels, report.seconds(kernels[OPTIMKIT])
    cell["kernels_share"] = f"{kernels[COPY] / kernels[OPTIMKIT]:.0%}"
    cupy.get_default_memory_pool().free_all_blocks()
    return cell


def graph_seconds(
    cupy: Any, options: Options, workload: str, data: Data, traffic: int, torch: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of a step without the host; and who can't be captured in a graph, and why."""
    sets, steps = sets_for(traffic, options.quick), 2 if options.quick else STEPS
    by_hand = {KERNEL: 0, FUSE: 1}

    def of(make: Callable[[], Contestant]) -> Callable[[], CapturedSteps]:
        return lambda: CapturedSteps(cupy, [make() for _ in range(sets)], steps)

    made: dict[str, Callable[[], Any]] = {
        OPTIMKIT: of(lambda: optimkit_contestant(workload, data, cupy.array, capturable=True)),
        COPY: of(lambda: copy_contestant(cupy, traffic)),
    }
    if not WORKLOADS[workload].tail:  # what clips by hand waits for nothing, but allocates
        made |= {name: of(partial(_by_hand, cupy, workload, data, place)) for name, place in by_hand.items()}
    if torch and not WORKLOADS[workload].tail:
        module = sys.modules["torch"]
        made[FUSED] = lambda: TorchGraph(
            module, [torch_contestant(workload, data, "fused", "cuda", **_for_graphs(workload)) for _ in range(sets)], steps
        )
    return measure_graphs(made, options.rounds, OTHERS)


def _by_hand(cupy: Any, workload: str, data: Data, place: int) -> Contestant:
    return cupy_contestants(cupy, workload, data)[place]


def _for_graphs(workload: str) -> dict[str, Any]:
    """What torch wants for steps in graphs; its SGD has no such option, and needs none."""
    return {} if WORKLOADS[workload].torch[0] == "SGD" else {"capturable": True}


def cupy_contestants(cupy: Any, name: str, data: Data) -> list[Contestant]:
    """What people write: an ElementwiseKernel, a fused function, or plain expressions, for each parameter."""
    inputs, outputs, body = KERNELS[name]
    kernel = cupy.ElementwiseKernel(inputs, outputs, body, f"by_hand_{name}")
    real = np.dtype(data[0][0].dtype).type

    def elementwise(w: Any, g: Any, slots: Any, t: int) -> None:
        first, root = corrections(t)
        scalars = () if name == "sgd" else (real(LR / first), real(root))
        kernel(g, *scalars, w, *slots)

    def update(w: Any, g: Any, *rest: Any) -> None:
        by_hand(name, cupy, w, g, rest[: WORKLOADS[name].slots], rest[WORKLOADS[name].slots :])

    fused = cupy.fuse(kernel_name=f"fused_{name}")(update)

    def fuse(w: Any, g: Any, slots: Any, t: int) -> None:
        fused(w, g, *slots, *(() if name == "sgd" else map(real, corrections(t))))

    return [
        expressions_contestant(name, data, cupy, KERNEL, elementwise),
        expressions_contestant(name, data, cupy, FUSE, fuse),
        expressions_contestant(name, data, cupy, EXPRESSIONS),
    ]


def copy_contestant(cupy: Any, traffic: int) -> Contestant:
    """A copy on the device that reads and writes as many bytes as a step, together."""
    source, target = cupy.ones(traffic // 2, cupy.uint8), cupy.empty(traffic // 2, cupy.uint8)

    def copy() -> None:
        target.data.copy_from_device_async(source.data, source.nbytes, cupy.cuda.get_current_stream())

    return Contestant(COPY, copy)


def event_timer(cupy: Any) -> Timer:
    """Seconds per step between two events of the current stream; filling the gradients again does not count."""

    def timer(contestant: Contestant, steps: int) -> float:
        step, refill, pairs = contestant.step, contestant.refill, []
        for _ in range(steps if refill else 1):
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            if refill:
                refill()
            start.record()
            for _ in range(1 if refill else steps):
                step()
            stop.record()
            pairs.append((start, stop))
        pairs[-1][1].synchronize()
        return sum(cupy.cuda.get_elapsed_time(*pair) for pair in pairs) / 1e3 / steps  # type: ignore[no-any-return]

    return timer


def host_seconds(cupy: Any, contestant: Contestant, rounds: int) -> float:
    """What a step takes in Python: the median of single steps that find an idle device."""
    taken = []
    with no_garbage_collection():
        for _ in range(max(rounds, 3)):
            cupy.cuda.get_current_stream().synchronize()
            start = time.perf_counter()
            contestant.step()
            taken.append(time.perf_counter() - start)
    return median(taken)


def count_launches(cupy: Any, contestant: Contestant) -> int | None:
    """Launches in a warm step: optimkit's own count; for CuPy's functions the nodes of a graph that captured it; else None.

    The nodes are launches and memsets.
    """
    if contestant.optimizer is not None:
        before = optimkit.counters.launches
        contestant.step()
        return optimkit.counters.launches - before or None
    if contestant.name == FUSED:  # torch has streams of its own
        return None
    try:
        stream = cupy.cuda.Stream(non_blocking=True)
        stream.wait_event(cupy.cuda.get_current_stream().record())  # the arrays were made there
        with stream:
            contestant.step()  # fills the stream's memory pool: nothing may be allocated while capturing
            stream.synchronize()
            stream.begin_capture()
            try:
                contestant.step()
            finally:
                graph = stream.end_capture()
        count = ctypes.c_size_t()
        driver = ctypes.CDLL(LIBRARY)
        if driver.cuGraphGetNodes(ctypes.c_void_p(graph.graph), None, ctypes.byref(count)):
            return None
        return count.value
    except Exception:  # a step that can't be captured, a driver that does not know graphs
        return None
