"""What this installation can do: versions, engines, devices, threads, kernel cache, and what is missing.

    python -m optimkit info

`collect` asks everything once and never raises: where something can't be found out, it says so.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optimkit
from optimkit.engines import choose, disk, threads
from optimkit.engines.cuda.diagnosis import (
    CUPY,
    Cuda,
    Problem,
    cuda_problem,
    find_cuda,
    one_line,
    package_version,
    version_text,
)

PACKAGES = ("numpy", "array-api-compat", "llvmlite", "torch", "jax", "array-api-strict", *CUPY)


def llvm_state() -> Problem | None:
    """Why NumPy arrays do not run compiled; None if they do."""
    problem = choose.llvm_problem()
    if not problem:
        return None
    version = package_version("llvmlite")
    if version is None:
        what = "llvmlite is not installed: NumPy arrays run in slices, several times slower"
        return Problem(what, 'pip install "optimkit[cpu]"')
    return Problem(f"llvmlite {version}: {problem}", "pip install -U llvmlite")


def thread_count() -> dict[str, Any]:
    """The number of threads of a step on the CPU, and where it comes from."""
    try:
        count = threads.default_threads()
    except ValueError as error:
        return {"count": None, "source": "", "problem": str(error)}
    for variable in ("OPTIMKIT_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable, "").partition(",")[0].strip() == str(count):
            return {"count": count, "source": variable, "problem": ""}
    return {"count": count, "source": "the cores that this process may use", "problem": ""}


def kernel_cache() -> dict[str, Any]:
    """The folder of compiled kernels: whether it is used, and what is in it."""
    path, problem = disk.folder_path(), disk.folder_problem()
    files = sizes = 0
    if not problem:
        for file in path.rglob("*"):
            with contextlib.suppress(OSError):
                if file.is_file():
                    files, sizes = files + 1, sizes + file.stat().st_size
    return {"folder": str(path), "usable": not problem, "problem": problem, "files": files, "bytes": sizes}


def machine() -> dict[str, Any]:
    """The processor, the system and the versions that numbers depend on."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": usable,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name)) is not None},
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _engine_of(library: str, device: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return choose.choose(library, device, None).name


def collect() -> dict[str, Any]:
    """Everything about this installation, as `info --json` prints it. Never raises."""
    missing: list[Problem] = []

    def ask(probe: Callable[..., Any], otherwise: Any, *args: Any) -> Any:
        try:
            return probe(*args)
        except Exception as error:  # whatever is broken here, the rest is still worth telling
            missing.append(Problem(f"{probe.__name__} failed: {one_line(error)}", "please report it"))
            return otherwise

    cuda = ask(find_cuda, Cuda())
    problems = {"llvm": ask(llvm_state, None), "cuda": ask(cuda_problem, None, cuda)}
    arrays = {"numpy": ask(_engine_of, "?", "numpy", "cpu")}
    if package_version("torch"):
        arrays |= {"torch, on the CPU": ask(_engine_of, "?", "torch", "cpu"), "torch, elsewhere": "eager"}
    if problems["cuda"] is None:
        arrays["cupy"] = ask(_engine_of, "?", "cupy", "0")
    if package_version("jax"):
        arrays["jax"] = "functional form: rule.init, rule.apply"
    found = {
        "optimkit": optimkit.__version__,
        "executable": sys.executable,
        "machine": ask(machine, {"system": "?", "processor": "?", "cores": "?", "python": "?", "packages": {}}),
        "engines": {"eager": ""} | {name: problem.what if problem else "" for name, problem in problems.items()},
        "arrays": {**arrays, "any other namespace": "eager"},
        "driver": None if cuda.driver is None else version_text(cuda.driver),
        "devices": cuda.devices,
        "threads": ask(thread_count, {"count": None, "source": "", "problem": "unknown"}),
        "cache": ask(kernel_cache, {"folder": "?", "usable": False, "problem": "unknown", "files": 0, "bytes": 0}),
    }
    missing = [*filter(None, problems.values()), *missing, *_others_missing(found)]
    return {**found, "missing": [{"what": each.what, "remedy": each.remedy} for each in missing]}


def _others_missing(found: Mapping[str, Any]) -> Iterator[Problem]:
    if found["threads"]["problem"]:
        yield Problem(found["threads"]["problem"], "unset OPTIMKIT_NUM_THREADS, or set it right")
    if not found["cache"]["usable"]:
        what = f"compiled kernels are not kept, each process compiles again: {found['cache']['problem']}"
        yield Problem(what, "set OPTIMKIT_CACHE_DIR to a folder of your own")
    if package_version("torch") is None:
        yield Problem("torch is not installed; only the benchmark wants it, to compare with", "pip install torch")


def render(found: Mapping[str, Any]) -> str:
    """What `collect` found, for people."""
    about, count, kept = found["machine"], found["threads"], found["cache"]
    state = f"{kept['files']} files, {kept['bytes'] / 1e6:.1f} MB" if kept["usable"] else f"refused: {kept['problem']}"
    sections = [
        {"optimkit": found["optimkit"], "python": f"{about['python']} ({found['executable']})", **about["packages"]},
        {
            "system": f"{about['system']}, {about['processor']}, {about['cores']} cores",
            "threads": f"{count['count']}, from {count['source']}" if count["count"] else count["problem"],
            "CUDA driver": f"for CUDA {found['driver']}" if found["driver"] else "none",
            **{f"cuda:{device['number']}": _device_text(device) for device in found["devices"]},
            "kernel cache": f"{kept['folder']}: {state}",
        },
        {f"engine {name}": problem or "works" for name, problem in found["engines"].items()},
        {f"arrays: {library}": how for library, how in found["arrays"].items()},
    ]
    texts = ["\n".join(f"{name:<30}{value}" for name, value in section.items()) for section in sections]
    lacking = [f"  {each['what']}\n      {each['remedy']}" for each in found["missing"]]
    return "\n\n".join([*texts, "\n".join(["missing", *lacking] if lacking else ["nothing is missing"])])


def _device_text(device: Mapping[str, Any]) -> str:
    text = f"{device['name']}, compute capability {device['compute_capability']}, {device['memory'] / 2**30:.0f} GiB"
    return f"{text}; emulated on the CPU: results count, times do not" if device["emulated"] else text
