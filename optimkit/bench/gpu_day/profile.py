"""Part 6: what Nsight Compute counts in the kernels: bytes, issue rate, occupancy, the top stall."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import textwrap

from optimkit.bench.gpu_day.parts import Day, Left

METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__bytes.sum": "bytes",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "of the peak of memory",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "of the issue slots",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "stalled on memory",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "stalled at barriers",
    "smsp__average_warps_issue_stalled_lg_throttle_per_issue_active.ratio": "stalled by a full queue",
}
STEPS = textwrap.dedent("""
    import cupy, optimkit
    from optimkit.transforms import ClipByGlobalNorm
    w, g = cupy.ones(20_000_000, cupy.float32), cupy.ones(20_000_000, cupy.float32)
    opt = optimkit.AdamW(w, lr=1e-3, transforms=[ClipByGlobalNorm(0.5)])
    for _ in range(3):
        opt.step(g)
    cupy.cuda.Device().synchronize()
""")


def run(day: Day) -> str:
    """Left out where ncu is not installed, or the driver lets only administrators count."""
    program = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if program is None:
        raise Left("ncu is not installed")
    chosen = ["--kernel-name", "regex:(read|write)_stage", "--launch-skip", "2", "--launch-count", "2"]
    command = [program, "--csv", "--metrics", ",".join(METRICS), *chosen, sys.executable, "-c", STEPS]
    run = subprocess.run(command, capture_output=True, text=True)
    print(run.stdout, run.stderr, flush=True)
    if "ERR_NVGPUCTRPERM" in run.stdout + run.stderr:
        raise Left("the driver lets only administrators read the counters (ERR_NVGPUCTRPERM)")
    lines = [line for line in run.stdout.splitlines() if line.startswith('"')]
    for row in csv.DictReader(lines):
        known = METRICS.get(row.get("Metric Name", ""))
        if known is not None:
            kernel = day.found.setdefault(row["Kernel Name"].partition("(")[0], {})
            kernel[known] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    if not day.found:
        raise Left(f"ncu told nothing (it ended with {run.returncode}): see log.txt")
    parts = [f"{name}: {', '.join(f'{what} {value}' for what, value in found.items())}" for name, found in day.found.items()]
    return "; ".join(parts)
