"""What optimkit promises, and whether a run has kept it.

Promises are for float32 and 2 threads. Where a run did not measure one, it says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from optimkit.bench.contestants import FUSED, OPTIMKIT
from optimkit.bench.options import Options
from optimkit.bench.workloads import WORKLOADS

SPEED = {"large": 1.0, "resnet": 1.15, "small": 6.0, "mlp": 1.6}  # torch's fused Adam over ours
FLOOR_ADAM, FLOOR_TAIL = 1 / 0.93, 1.3  # a step over its memory traffic, where the arrays do not fit into a cache
ALLOCATED = 1e6  # bytes
IMPORT = 1.3  # times import numpy
COLD, CACHED = {"adam": 0.25, "tail": 0.4}, {"adam": 0.12}  # a first step over import torch
WARM, LOOP, HALVES = 0.25, {"1,000": 1 / 3, "14,000": 0.5, "100,000": 0.5}, 1.3  # a step over the other's (`loop`)
REPLACED = 2e-6  # seconds per parameter
LAUNCHES, LAUNCHES_REDUCING = 1, 3  # on a device, for any number of parameters


@dataclass(frozen=True)
class Target:
    """A promise: `measured` is None where it was not measured, and `why` says why."""

    text: str
    limit: float
    at_least: bool
    measured: float | None
    unit: str = "x"
    why: str = ""

    @property
    def holds(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        limit = f"{self.text}: {sign} {self.limit:.3g}{self.unit}"
        if self.measured is None:
            return f"  -     {limit}: not measured, {self.why}"
        return f"  {'holds' if self.holds else 'FAILS'} {limit}: {self.measured:.3g}{self.unit}"


def judge(options: Options, found: dict[str, Any]) -> list[Target]:
    """The targets of a run on the CPU; `found` is what `cpu.run` collects."""
    return list(_targets(options, found))


def judge_device(found: dict[str, Any]) -> list[Target]:
    """The targets of a run on a GPU: launches of whole steps."""
    judged = []
    for cell in found["cells"]:
        limit, count = LAUNCHES_REDUCING if cell["stages"] > 1 else LAUNCHES, cell["launches"][OPTIMKIT]
        text = f"launches in a step, {cell['workload']}, {cell['shape']}"
        why = "" if count else f"the engine {found['engine']} does not count them"
        judged.append(Target(text, limit, False, count, "", why))
    return judged


def _targets(options: Options, found: dict[str, Any]) -> Iterator[Target]:
    cells = {(cell["workload"], cell["shape"]): cell for cell in found["cells"]}

    def target(text: str, limit: float, measure: Callable[[], float | str], at_least: bool = False, unit: str = "x") -> Target:
        value: float | str = _not_comparable(options)
        value = value or measure()
        if isinstance(value, str):
            return Target(text, limit, at_least, None, unit, value)
        return Target(text, limit, at_least, value, unit)

    def of_cell(workload: str, shape: str, pick: Callable[[dict[str, Any]], float | str]) -> Callable[[], float | str]:
        return lambda: pick(cells[workload, shape]) if (workload, shape) in cells else "left out by --only"

    def fused(cell: dict[str, Any]) -> float | str:
        ratio = cell["ratios"].get(FUSED)
        return ratio["median"] if ratio else found["torch"]["problem"]  # type: ignore[no-any-return]

    def of_extras(pick: Callable[[dict[str, Any]], float]) -> Callable[[], float | str]:
        return lambda: pick(found["extras"]) if found["extras"] else "left out by --only"

    def first_step(name: str, kind: str) -> Callable[[], float | str]:
        def pick() -> float | str:
            if not found["extras"]:
                return "left out by --only"
            steps = {step["workload"]: step for step in found["extras"]["first_steps"]}
            return float(steps[name][kind]) if steps[name]["torch"] else found["torch"]["problem"]

        return pick

    def of_loop(part: str, words: str = "") -> Callable[[], float | str]:
        chosen = [line for line in found["loop"] or () if line["part"] == part and words in line["title"]]
        return lambda: max(line["ratio"]["median"] for line in chosen) if chosen else "left out by --only"

    for shape, limit in SPEED.items():
        yield target(f"torch's fused Adam over optimkit's, {shape}", limit, of_cell("adam", shape, fused), at_least=True)
    for workload, limit, text in (("adam", FLOOR_ADAM, "Adam"), ("tail", FLOOR_TAIL, "clip + AdamW + zeroing")):
        for shape in ("large", "resnet"):
            pick = of_cell(workload, shape, lambda cell: cell["over_floor"]["median"])
            yield target(f"{text} over its memory traffic, {shape}", limit, pick)
    yield target(
        "allocated in a warm step",
        ALLOCATED / 1e6,
        lambda: max(cell["allocated"] for cell in found["cells"]) / 1e6 if cells else "left out by --only",
        unit=" MB",
    )
    yield target("import optimkit over import numpy", IMPORT, of_extras(lambda extras: extras["imports"]["ratio"]["median"]))
    for kind, text, limits in (("cold_ratio", "cold", COLD), ("cached_ratio", "from cache", CACHED)):
        for name, limit in limits.items():
            pick_step = first_step(name, kind)
            yield target(f"first step over import torch, {WORKLOADS[name].title}, {text}", limit, pick_step)
    yield target("a warm step over Adam by hand", WARM, of_loop("warm step", "Adam,"))
    for size, limit in LOOP.items():
        yield target(f"a step in a loop over Adam by hand, {size} weights", limit, of_loop("loop", f" {size} weights"))
    yield target("a step of one half of the arrays, in turn, over one of all", HALVES, of_loop("halves"))
    cost = of_extras(lambda extras: median(extras["replaced"]["seconds"]) * 1e6)
    yield target("a replaced gradient, per parameter", REPLACED * 1e6, cost, unit=" us")


def _not_comparable(options: Options) -> str:
    if options.quick:
        return "--quick runs small arrays"
    if options.dtype != "float32" or options.threads != 2:
        return "it is promised for float32 and 2 threads (--dtype float32 --threads 2)"
    return ""
