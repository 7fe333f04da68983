"""Part 2: the CuPy tests of the checkout, in parallel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata, util

from optimkit.bench.gpu_day.parts import CHECKOUT, Day, Failed, Left

QUICK = ["tests/cuda/test_cuda_text.py"]


def run(day: Day) -> str:
    """Fails where a test does, or none was run."""
    if not (CHECKOUT / "tests" / "cuda").is_dir():
        raise Left("there are no tests beside the package: run it from a checkout")
    if util.find_spec("pytest") is None:
        raise Left("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cupy or cuda"]
    if not any(each.name == "optimkit" for each in metadata.entry_points(group="pytest11")):
        command += ["-p", "optimkit.testing.fixtures"]
    if util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    if util.find_spec("pytest_benchmark") is not None:
        command += ["-p", "no:benchmark"]
    run = subprocess.run(command + QUICK * day.quick, cwd=CHECKOUT, capture_output=True, text=True)
    print(run.stdout, run.stderr, flush=True)
    last = next((line for line in reversed(run.stdout.splitlines()) if re.search(r"\d+ (passed|failed)|no tests", line)), "")
    day.found["said"] = last
    if run.returncode:
        failed = [line.split(" - ")[0] for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        raise Failed(f"{last.strip('= ')}; {'; '.join(failed[:5])}; see log.txt")
    return last.strip("= ")
