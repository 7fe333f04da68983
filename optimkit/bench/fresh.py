"""What is measured in fresh processes: imports, and the first step with an empty and with a filled kernel cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from optimkit.bench.contestants import make_data
from optimkit.bench.measure import Ratio, compare
from optimkit.bench.shapes import QUICK
from optimkit.bench.workloads import WORKLOADS
from optimkit.counting import counters

HEAVY = ("numba", "llvmlite", "cupy", "torch", "jax", "scipy", "matplotlib", "sklearn", "tqdm", "pytest")

_IMPORT = """
import sys, time
start = time.perf_counter()
import {module}
seconds = time.perf_counter() - start
import json
print(json.dumps([seconds, [name for name in {heavy!r} if name in sys.modules]]))
"""

_FIRST = """
import json
from optimkit.bench.fresh import first_step
print(json.dumps(first_step({workload!r}, {dtype!r})))
"""


@dataclass(frozen=True)
class Imports:
    """Seconds of `import numpy` and `import optimkit`, their ratio, and the heavy modules that came along."""

    numpy: float
    optimkit: float
    ratio: Ratio
    heavy: tuple[str, ...]


@dataclass(frozen=True)
class FirstStep:
    """Seconds of the first step of a workload: with an empty cache folder, and with what that has left there.

    Making the optimizer and importing its engine are part of it. `torch` are the seconds of `import torch`, 0 where it is
    not there, `cold_ratio` and `cached_ratio` what the first step is of that, the median of the rounds. `compiles` and
    `cached_compiles` are the kernels that were compiled in each case: some, and none.
    """

    workload: str
    cold: float
    cached: float
    torch: float
    cold_ratio: float
    cached_ratio: float
    compiles: int
    cached_compiles: int


def run_python(code: str, environment: Mapping[str, str] | None = None) -> Any:
    """The JSON that a new Python process prints. `environment` is added to that of this process.

    Raises
    ------
    RuntimeError
        If it fails; with what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **(environment or {})}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"a fresh Python process failed with {done.returncode}:\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def measure_imports(rounds: int) -> Imports:
    """Import NumPy alone and optimkit, in turn, each in a process of its own."""
    seconds: dict[str, list[float]] = {"numpy": [], "optimkit": []}
    heavy: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="optimkit-bench-") as folder:
        # modules are compiled once, as an installation does, whatever the settings of this process are
        environment = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        for number in range(rounds + 1):  # the first one compiles
            for module, kept in seconds.items():
                took, came = run_python(_IMPORT.format(module=module, heavy=HEAVY), environment)
                if number:
                    kept.append(took)
                if module == "optimkit":
                    heavy.update(came)
    ratio = compare(seconds["optimkit"], seconds["numpy"])
    return Imports(median(seconds["numpy"]), median(seconds["optimkit"]), ratio, tuple(sorted(heavy)))


def first_step(workload: str, dtype: str) -> tuple[float, int]:
    """Seconds that the first step of this process takes, the making of the optimizer included; and kernels compiled."""
    weights, grads = make_data(QUICK["mlp"], dtype)
    make, tail = WORKLOADS[workload].optimizer, WORKLOADS[workload].tail
    start = time.perf_counter()
    make(weights).step(grads, zero_grad=tail)
    return time.perf_counter() - start, counters.compiles


def measure_first_step(workload: str, dtype: str, rounds: int, torch: bool) -> FirstStep:
    """First steps in fresh processes: the median of some cold ones, and of some that find the kernels.

    In each round torch is imported too, in a process of its own, where it is there.
    """
    code = _FIRST.format(workload=workload, dtype=dtype)
    cold: list[float] = []
    cached: list[float] = []
    imports: list[float] = []
    compiles = [0, 0]
    for _ in range(rounds):
        imports.append(run_python(_IMPORT.format(module="torch", heavy=()))[0] if torch else 0.0)
        with tempfile.TemporaryDirectory(prefix="optimkit-bench-") as folder:
            for place, kept in enumerate((cold, cached)):
                seconds, compiles[place] = run_python(code, {"OPTIMKIT_CACHE_DIR": folder})
                kept.append(seconds)
    cold_ratio, cached_ratio = (compare(kept, imports).median if torch else 0.0 for kept in (cold, cached))
    return FirstStep(workload, median(cold), median(cached), median(imports), cold_ratio, cached_ratio, *compiles)
