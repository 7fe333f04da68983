"""CUDA text to kernels: NVRTC, without the flags that change bits, and with a cache on disk.

CuPy appends `-ftz=true` to all that its own classes compile, which flushes subnormals to zero. So the
text goes through `cupy.cuda.compiler.compile_using_nvrtc` and `Function` by hand. CuPy promises none of these: where one
is `missing`, arrays go to the eager engine.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from functools import cache
from typing import Any

from optimkit.counting import counters
from optimkit.engines import disk
from optimkit.engines.protocol import KernelError

OPTIONS = ("--fmad=false", "--std=c++17")
OLDEST = 70  # the first architecture whose kernels can index their arguments in place

MOST = 256  # modules that are kept for whoever asks next; those in use are not counted
_loaded: OrderedDict[tuple[str, int], Any] = OrderedDict()
_lock = threading.RLock()

if hasattr(os, "register_at_fork"):  # no child is born while a kernel is made: nobody there would release the lock
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _architecture(device: int) -> str:
    """The compute capability of a device, without its dot."""
    import cupy

    return str(cupy.cuda.Device(device).compute_capability)


@cache
def _target(device: int) -> tuple[str, ...]:
    """All that a kernel's binary depends on besides its text."""
    import cupy

    arch = _architecture(device)
    if int(arch) < OLDEST:
        raise KernelError(
            f"device {device} has compute capability {arch[:-1]}.{arch[-1]}, and the kernels need {OLDEST // 10}.{OLDEST % 10} "
            "(Volta) or later; use engine='eager' for its arrays"
        )
    version = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    return (*OPTIONS, arch, version, cupy.__version__, os.environ.get("CUPY_COMPILE_WITH_PTX", ""))


NEEDED = (("compiler", "compile_using_nvrtc"), ("function", "Module"), ("driver", "launchKernel"), ("nvrtc", "getVersion"))


def missing() -> str:
    """Which function of CuPy's own that the engine calls is not there any more; empty if all are."""
    import cupy

    for room, name in NEEDED:
        if not hasattr(getattr(cupy.cuda, room, None), name):
            return (
                f"CuPy {cupy.__version__} has no cupy.cuda.{room}.{name}, which the CUDA engine calls; install CuPy 14"
            )
    return ""


def load(text: str, device: int) -> Any:
    """The module of a text on a device: from memory, from disk, or compiled. The device must be current.

    Raises
    ------
    KernelError
        If NVRTC refuses the text, or the driver the binary.
    """
    with _lock:
        module = _loaded.get((text, device))
        if module is None:
            module = _loaded[text, device] = _make(text, device)
            while len(_loaded) > MOST:
                _loaded.popitem(last=False)
        _loaded.move_to_end((text, device))
        return module


def _make(text: str, device: int) -> Any:
    key = disk.digest(text, *_target(device))
    binary = disk.kept(f"{key}.cuda")
    module = _module(binary, text) if binary is not None else None
    if module is None:
        return _module(_compile(text, key), text, final=True)
    counters.cache_hits += 1
    return module


def _compile(text: str, key: str) -> bytes:
    from cupy.cuda import compiler

    counters.compiles += 1
    disk.say_compiling()
    try:
        binary, _ = compiler.compile_using_nvrtc(text, OPTIONS, None, "optimkit.cu", cache_in_memory=True)
    except compiler.CompileException as error:
        raise KernelError(f"NVRTC did not compile this kernel:\n{_numbered(text)}\n\nIts log:\n{error}") from error
    whole = _whole(bytes(binary))
    disk.keep(f"{key}.cuda", whole)
    return whole


def _whole(binary: bytes) -> bytes:
    """A binary with its last byte, which CuPy cuts off as if it ended a string.

    ELF's header tells how long it is. At its end is a table of numbers of 8 bytes, lowest first, that are alignments
    or sizes of entries: the byte that is missing is 0.
    """
    if not binary.startswith(b"\x7fELF"):
        return binary  # PTX, which is a string
    program, section = struct.unpack_from("<QQ", binary, 32)
    program_size, programs, section_size, sections = struct.unpack_from("<4H", binary, 54)
    end = max(program + program_size * programs, section + section_size * sections)
    return binary + b"\0" if end == len(binary) + 1 else binary


def _module(binary: bytes, text: str, final: bool = False) -> Any:
    """A binary on the current device; None where the driver refuses one from disk."""
    import cupy

    module = cupy.cuda.function.Module()
    try:
        module.load(binary)
    except cupy.cuda.driver.CUDADriverError as error:
        if not final:
            return None
        driver, compiler = cupy.cuda.runtime.driverGetVersion(), ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
        raise KernelError(
            f"the NVIDIA driver (CUDA {driver // 1000}.{driver % 1000 // 10}) refuses what NVRTC {compiler} compiled: {error}. "
            "A driver can't load what a newer compiler makes: update the driver, or install the CuPy of an older CUDA.\n"
            f"{_numbered(text)}"
        ) from error
    return module


def _numbered(text: str) -> str:
    return "\n".join(f"{number:4d}  {line}" for number, line in enumerate(text.splitlines(), 1))
