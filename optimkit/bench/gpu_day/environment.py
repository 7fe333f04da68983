"""Part 0: what is here: versions, the device, its clocks."""

from __future__ import annotations

import platform
from importlib import metadata

from optimkit import info
from optimkit.bench.clocks import clocks, clocks_text
from optimkit.bench.gpu_day.parts import Day, Failed
from optimkit.engines.cuda.diagnosis import cuda_problem, find_cuda, package_version, version_text
from optimkit.engines.cuda.job import room_by_value
from optimkit.engines.cuda.objects import cupy_objects
from optimkit.engines.cuda.step import works

PACKAGES = ("numpy", "array-api-compat", "array-api-strict", "llvmlite", "torch", "pytest", "pytest-xdist", "hypothesis")


def run(day: Day) -> str:
    """Fails where CuPy finds no device."""
    cuda = find_cuda()
    problem = cuda_problem(cuda)
    if problem is not None:
        raise Failed(f"{problem.what}; {problem.remedy}")
    device = cuda.devices[0]
    versions = {name: package_version(name) for name in PACKAGES}
    day.found |= {"machine": info.machine(), "device": device, "driver": cuda.driver, "cupy": dict(cuda.packages)}
    day.found |= {"versions": versions, "clocks": clocks(), "python": platform.python_version()}
    day.found |= {"looks compiled": works(), "layout": str(cupy_objects()), "carried": room_by_value(1)}
    for name, value in day.found.items():
        print(f"{name}: {value}")
    for distribution in metadata.distributions():
        print(f"  {distribution.metadata['Name']} {distribution.version}")
    packages = ", ".join(f"{name} {version}" for name, version in cuda.packages.items())
    looks = "compiled looks" if works() else "looks by Python (slower: pip install llvmlite)"
    driver = f"driver CUDA {version_text(cuda.driver)}"
    return f"{device['name']}, {packages}, {driver}, {looks}; {clocks_text(day.found['clocks'])}"
