"""Whether CuPy arrays can be used here; if not, what is missing and how to get it.

`available` asks an installed CuPy, in short. `find_cuda` looks for CuPy, the driver, devices and the compiler
library, and never raises; `cuda_problem` judges what it found. The usual failures look alike from inside CuPy ("driver version
is insufficient" is also said where there is no driver at all), so the driver is asked directly.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

# Distributions of CuPy and the CUDA major that they are built for. Plain "cupy" is built where it is installed.
CUPY = {"cupy-cuda12x": 12, "cupy-cuda13x": 13, "cupy-cuda11x": 11, "cupy": 0}
OLDEST = 14  # the first CuPy that optimkit is made for
DRIVERS = {11: "450", 12: "525", 13: "580"}  # the first driver for each CUDA major
LIBRARY = {"win32": "nvcuda.dll"}.get(sys.platform, "libcuda.so.1")
DRIVER_ERRORS = {  # the results of cuInit that people meet
    34: "a stub library stands in the place of the driver",
    100: "no device",
    802: "the system is not ready",
    803: "driver and kernel module have different versions",
    804: "the compatibility package does not support this GPU",
}
_LOOK = "see what nvidia-smi says; look at CUDA_VISIBLE_DEVICES; start a container with --gpus all"


def available() -> str:
    """Why the CUDA engine can't be used here, in short; empty if it can."""
    try:
        import cupy
    except ImportError as error:
        return f"cupy can't be imported ({error}); pip install 'optimkit[cuda13x]' or 'optimkit[cuda12x]'"
    driver = int(cupy.cuda.runtime.driverGetVersion())
    if not driver:
        return "there is no NVIDIA driver: cupy can be imported, but every array would fail; install the driver of your GPU"
    count, error_of_count = _count_devices(cupy)
    if "InsufficientDriver" in str(error_of_count):
        return (
            f"the NVIDIA driver knows CUDA {version_text(driver)}, and this CuPy is built for CUDA "
            f"{int(cupy.cuda.runtime.runtimeGetVersion()) // 1000}: update the driver, or install the CuPy of an older CUDA"
        )
    if error_of_count is not None:
        return f"no CUDA device answers: {error_of_count}"
    return "" if count else "there is no CUDA device"


def _count_devices(cupy: Any) -> tuple[int, Exception | None]:
    """The number of devices that a CuPy sees, and what it raises."""
    try:
        return int(cupy.cuda.runtime.getDeviceCount()), None
    except Exception as error:  # half an installation raises AttributeError and others
        return 0, error


@dataclass(frozen=True)
class Problem:
    """What is missing, why it matters, and how to get it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Cuda:
    """What was found of CUDA on this machine.

    Attributes
    ----------
    packages : dict
        Installed distributions of CuPy and their versions.
    driver : int or None
        The CUDA version of the driver as CUDA counts it, 13020 for 13.2; None where there is no driver.
    driver_error : int
        What the driver answered when it was started; 0 is success.
    import_error, device_error, compiler_error : str
        Why CuPy could not be imported, list devices, find CUDA's compiler library (NVRTC); empty if it could.
    devices : list of dict
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    driver: int | None = None
    driver_error: int = 0
    import_error: str = ""
    device_error: str = ""
    compiler_error: str = ""
    devices: list[dict[str, Any]] = field(default_factory=list)


def cuda_problem(cuda: Cuda) -> Problem | None:
    """The first reason why CuPy arrays can't be used, and what to do; None if they can."""
    return next(_problems(cuda), None)


def _problems(cuda: Cuda) -> Iterator[Problem]:
    major = (cuda.driver or 0) // 1000
    install = f'pip install "optimkit[cuda{min(max(major, 12), 13)}x]"'
    if not cuda.packages and cuda.driver is None:
        yield Problem("no CuPy, and no NVIDIA driver", "nothing to do without an NVIDIA GPU: NumPy arrays need neither")
        return
    if not cuda.packages:
        yield Problem("CuPy is not installed; with it optimkit runs on NVIDIA GPUs", install)
        return
    names = list(cuda.packages)
    if len(names) > 1:
        yield Problem(f"{' and '.join(names)} overwrite each other", f"pip uninstall {' '.join(names)}, then {install}")
    name, built = names[0], CUPY[names[0]]
    what = f"{name} {cuda.packages[name]}"
    if cuda.import_error:
        yield Problem(f"{what} can't be imported: {cuda.import_error}", f"pip uninstall {name}, then {install}")
    if cuda.driver is None:
        yield Problem(
            f"{what} is installed, but there is no NVIDIA driver ({LIBRARY} is not found)",
            "with a GPU, install its driver (https://www.nvidia.com/drivers), start a container with --gpus all; "
            "without one, nothing: NumPy arrays need neither",
        )
    if cuda.driver_error:
        why = DRIVER_ERRORS.get(cuda.driver_error, "see CUDA's list of driver errors")
        yield Problem(f"{what}: the driver does not start: error {cuda.driver_error}, {why}", _LOOK)
    if major < built:
        other = f", or pip uninstall {name}, then {install}" if major >= 12 else ""
        yield Problem(
            f"{what} needs a driver for CUDA {built}, and this one is for CUDA {version_text(cuda.driver)}: too old",
            f"update the driver to {DRIVERS[built]} or later{other}",
        )
    if cuda.device_error or not cuda.devices:
        yield Problem(f"{what} finds no device{cuda.device_error and ': ' + cuda.device_error}", _LOOK)
    if cuda.compiler_error:
        wanted = built or major
        yield Problem(
            f"{what} finds no compiler library (NVRTC) of CUDA {wanted}: {cuda.compiler_error}",
            f'pip install "optimkit[cuda{wanted}x-ctk]", or install the toolkit of CUDA {wanted}',
        )
    if int(cuda.packages[name].partition(".")[0]) < OLDEST:
        yield Problem(f"{what} is older than {OLDEST}, which optimkit is made for", install.replace("install", "install -U"))


def version_text(version: int | None) -> str:
    """CUDA's number of a version as people write it: 13020 is "13.2"."""
    return f"{(version or 0) // 1000}.{(version or 0) % 1000 // 10}"


def package_version(distribution: str) -> str | None:
    """The version of an installed distribution; None if there is none. Imports nothing."""
    try:
        return metadata.version(distribution)
    except Exception:  # not installed, or with damaged metadata
        return None


def one_line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def find_cuda() -> Cuda:
    """Look for CuPy, the driver, devices and the compiler library."""
    packages = {name: version for name in CUPY if (version := package_version(name)) is not None}
    driver, driver_error = _start_driver()
    if not packages:
        return Cuda(packages, driver, driver_error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy warns of several distributions; they are told of here
            cupy = importlib.import_module("cupy")
    except Exception as error:  # missing libraries raise OSError, half an installation AttributeError
        return Cuda(packages, driver, driver_error, import_error=one_line(error))
    count, error_of_count = _count_devices(cupy)
    device_error = one_line(error_of_count) if error_of_count is not None else ""
    devices: list[dict[str, Any]] = []
    compiler_error = ""
    try:
        devices += [_device(cupy, number) for number in range(count)]
    except Exception as error:  # CUDA's own errors, and those of half an installation
        device_error = one_line(error)
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # as above; a missing library raises OSError or RuntimeError
        compiler_error = one_line(error)
    return Cuda(packages, driver, driver_error, "", device_error, compiler_error, devices)


def _start_driver() -> tuple[int | None, int]:
    """The CUDA version of the driver (None without one), and what cuInit answers."""
    try:
        library = ctypes.CDLL(LIBRARY)
        version, error = ctypes.c_int(0), int(library.cuInit(0))
        library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None, 0
    return version.value, error


def _device(cupy: Any, number: int) -> dict[str, Any]:
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    name = properties["name"].decode()
    return {
        "number": number,
        "name": name,
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "memory": int(properties["totalGlobalMem"]),
        "multiprocessors": int(properties["multiProcessorCount"]),
        "emulated": "emulated" in name.lower(),
    }
