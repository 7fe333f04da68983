"""The benchmark on the CPU: optimkit on NumPy arrays, torch's tensors, plain NumPy, and the memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

from optimkit.bench import report
from optimkit.bench.contestants import (
    BY_HAND,
    FLOOR,
    FOREACH,
    FUSED,
    OPTIMKIT,
    bytes_per_element,
    expressions_contestant,
    make_data,
    optimkit_contestant,
    plan_of,
    torch_contestant,
    torch_problem,
)
from optimkit.bench.floor import floor_contestant
from optimkit.bench.fresh import measure_first_step, measure_imports
from optimkit.bench.loop import measure_loop
from optimkit.bench.measure import LEAST, compare, run_rounds
from optimkit.bench.options import Options
from optimkit.bench.shapes import FULL, QUICK, Shapes
from optimkit.bench.targets import judge
from optimkit.bench.warm import allocated, replaced_gradients, resident_growth
from optimkit.bench.workloads import WORKLOADS
from optimkit.engines.choose import choose
from optimkit.engines.threads import get_num_threads, set_num_threads

OTHERS = (FUSED, FOREACH, BY_HAND)
COLUMNS = (("of the memory floor", "share"), ("allocates", "allocated_text"))


def measure(options: Options, show: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the options ask for, shown as it is found."""
    problem, before = torch_problem(), get_num_threads()
    if not problem:
        sys.modules["torch"].set_num_threads(options.threads)
    set_num_threads(options.threads)
    try:
        return _measure(options, show, problem)
    finally:
        set_num_threads(before)


def _measure(options: Options, show: Callable[[str], None], problem: str) -> dict[str, Any]:
    engine = choose("numpy", "cpu", None).name
    found: dict[str, Any] = {"engine": engine, "torch": {"problem": problem}, "cells": [], "extras": None, "loop": None}
    show(_head(options, engine, problem))
    for workload in options.workloads:
        own = [measure_cell(options, workload, shape, not problem) for shape in options.shapes]
        found["cells"] += own
        report.progress("")
        show(report.cells(own, OTHERS[:2] * (not problem) + OTHERS[2:], COLUMNS))
    if options.extras:
        found["extras"] = measure_extras(options, not problem)
        report.progress("")
        show(report.extras(found["extras"]))
    if options.loop:
        report.progress("small models ...")
        lines = measure_loop(options.rounds, options.dtype, options.quick)
        found["loop"] = [{**asdict(line), "ratio": line.ratio._asdict()} for line in lines]
        report.progress("")
        show(report.loop(found["loop"]))
    judged = judge(options, found)
    found["targets"] = [{**asdict(each), "holds": each.holds} for each in judged]
    show(report.targets(judged))
    return found


def _head(options: Options, engine: str, problem: str) -> str:
    torch = f"no torch ({problem})" if problem else f"torch {sys.modules['torch'].__version__}"
    lines = [
        f"optimkit bench: {options.dtype}, {options.threads} thread{'s' * (options.threads > 1)}, engine {engine}, {torch}",
        f"{options.rounds} interleaved rounds. {report.RATIOS}",
    ]
    if options.quick:
        lines.append(report.QUICK)
    return "\n".join(lines) + "\n"


def measure_cell(options: Options, workload: str, shape: str, torch: bool) -> dict[str, Any]:
    """One update on one list of shapes, by everybody."""
    shapes, tail = (QUICK if options.quick else FULL)[shape], WORKLOADS[workload].tail
    report.progress(f"{WORKLOADS[workload].title}, {shapes.title} ...")
    data, plan = make_data(shapes, options.dtype), plan_of(workload, options.dtype)
    own = optimkit_contestant(workload, data)
    contestants = [own, floor_contestant(plan, shapes.elements, options.dtype, tail)]
    if torch:
        contestants += [torch_contestant(workload, data, kind) for kind in ("fused", "foreach")]
    contestants.append(expressions_contestant(workload, data))
    taken = run_rounds(contestants, options.rounds, options.dtype, least=LEAST / 10 if options.quick else LEAST)
    read, written = bytes_per_element(plan, options.dtype, tail)
    over_floor = compare(taken[OPTIMKIT], taken[FLOOR])
    memory = allocated(own)
    return {
        "workload": workload,
        "shape": shape,
        "title": shapes.title,
        "parameters": len(shapes.shapes),
        "elements": shapes.elements,
        "bytes_read": read,
        "bytes_written": written,
        "stages": len(plan.stages),
        "gb_per_s": (read + written) * shapes.elements / median(taken[OPTIMKIT]) / 1e9,
        "over_floor": over_floor._asdict(),
        "share": f"{compare(taken[FLOOR], taken[OPTIMKIT]).median:.0%}",
        "ratios": {name: compare(times, taken[OPTIMKIT])._asdict() for name, times in taken.items() if name in OTHERS},
        "allocated": memory,
        "allocated_text": report.size(memory),
        "resident_growth": resident_growth(own),
        "seconds": taken,
    }


def measure_extras(options: Options, torch: bool) -> dict[str, Any]:
    """First steps, imports and replaced gradients."""
    rounds = 1 if options.quick else 5
    many = Shapes("many", ((64,),) * (20 if options.quick else 1000))
    report.progress("first steps in fresh processes ...")
    steps = [measure_first_step(name, options.dtype, rounds, torch) for name in ("adam", "tail")]
    report.progress("imports in fresh processes ...")
    imports = measure_imports(2 * rounds)
    report.progress("replaced gradients ...")
    costs = replaced_gradients("adam", many, options.dtype, options.rounds)
    return {
        "first_steps": [asdict(step) for step in steps],
        "imports": {**asdict(imports), "ratio": imports.ratio._asdict()},
        "replaced": {"seconds": costs, "parameters": len(many.shapes)},
    }
