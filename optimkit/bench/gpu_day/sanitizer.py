"""Part 4: NVIDIA's compute-sanitizer on steps of every kind: memory, uninitialised memory, barriers, races in shared memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap

from optimkit.bench.gpu_day.parts import Day, Failed, Left

TOOLS = ("memcheck", "initcheck", "synccheck", "racecheck")
STEPS = textwrap.dedent("""
    import cupy, optimkit
    from optimkit.transforms import ClipByGlobalNorm
    clip = {"transforms": [ClipByGlobalNorm(0.5)]}
    for options in ({}, clip, {**clip, "nonfinite": "skip"}, {"capturable": True}):
        for dtype in ("float32", "float64"):
            weights = [cupy.ones(n, dtype) for n in (1, 3, 129, 2049, 4097, 50_000)] + [cupy.ones((33, 70), dtype)[::2, ::3]]
            opt = optimkit.AdamW(weights, lr=1e-3, **options)
            for _ in range(3):
                result = opt.step([cupy.ones_like(w) for w in weights], zero_grad=True)
            result.applied
""")


def run(day: Day) -> str:
    """Fails where a tool finds an error."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        raise Left("compute-sanitizer is not installed")
    bad = []
    for tool in TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", STEPS]
        run = subprocess.run(command, capture_output=True, text=True)
        print(tool, run.returncode, run.stdout[-4000:], run.stderr[-2000:], flush=True)
        summary = next((line for line in run.stdout.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line), "")
        day.found[tool] = summary or f"ended with {run.returncode}"
        if run.returncode:
            bad.append(f"{tool}: {day.found[tool]}")
    if bad:
        raise Failed("; ".join(bad))
    return f"{', '.join(TOOLS)}: no errors"
