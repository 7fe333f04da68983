"""From texts to compiled kernels: in memory, on disk, or compiled by numba.

A kernel is compiled once for a rule's structure and dtype, and kept on disk as object code with a checksum.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.resources
import linecache
import pickle
import platform
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from optimkit.counting import counters
from optimkit.engines import disk

_compiled: dict[tuple[str, int], Kernel] = {}
_compile_lock = threading.RLock()


class Kernel:
    """Compiled code: `free` gives up the GIL while it runs, `held` keeps it."""

    def __init__(self, address: int, words: int, keep: Any) -> None:
        kinds = [ctypes.c_int64] * words
        self.address, self._keep = address, keep
        self.free: Callable[..., None] = ctypes.CFUNCTYPE(None, *kinds)(address)
        self.held: Callable[..., None] = ctypes.PYFUNCTYPE(None, *kinds)(address)


def available() -> str:
    """Why numba can't be used here; empty if it can."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"numba can't be imported ({error}); pip install 'optimkit[numba]'"
    except Exception as error:  # numba refuses NumPy versions that it does not know with various errors
        return f"numba does not work with this NumPy {np.__version__}: {error}"
    return ""


@cache
def _environment() -> str:
    """All that object code depends on besides its text: versions, processor, our helpers."""
    import llvmlite
    import numba
    from llvmlite import binding

    helpers = importlib.resources.files("optimkit.engines.cpu").joinpath("runtime.py").read_text()
    features = binding.get_host_cpu_features().flatten()
    versions = (numba.__version__, llvmlite.__version__, platform.python_version(), np.__version__, platform.machine())
    return "\n".join((*versions, binding.get_host_cpu_name(), features, helpers))


def compile_text(text: str, words: int = 1) -> Kernel:
    """The kernel of a text: from memory, from disk, or compiled."""
    with _compile_lock:
        kernel = _compiled.get((text, words))
        if kernel is None:
            key = disk.digest(text, _environment(), str(words))
            kernel = _load(key, words) or _compile(text, key, words)
            _compiled[text, words] = kernel
        return kernel


def _load(key: str, words: int) -> Kernel | None:
    """A kernel from disk; None if there is none, or not one that can be trusted."""
    payload = disk.kept(f"{key}.kernel")
    if payload is None:
        return None
    try:
        from numba.core.registry import cpu_target

        name, state = pickle.loads(payload)
        library = cpu_target.target_context.codegen().unserialize_library(state)
        kernel = Kernel(library.get_pointer_to_function(name), words, library)
    except (ImportError, AttributeError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError):
        return None
    counters.cache_hits += 1
    return kernel


def _compile(text: str, key: str, words: int) -> Kernel:
    import numba

    counters.compiles += 1
    filename = f"<optimkit kernel {key}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    scope: dict[str, Any] = {"__name__": f"optimkit_kernel_{key}"}
    exec(compile(text, filename, "exec"), scope)
    for name in ("merge", "swap", "sink"):  # what kernels call
        if name in scope:
            scope[name] = numba.njit(error_model="numpy")(scope[name])
    signature = numba.void(*[numba.int64] * words)
    function = numba.cfunc(signature, error_model="numpy")(scope["kernel"])
    with contextlib.suppress(AttributeError, RuntimeError):  # numba keeps these names private; without them, memory
        state = function._library.serialize_using_object_code()
        disk.keep(f"{key}.kernel", pickle.dumps((function._wrapper_name, state)))
    return Kernel(function.address, words, function)
