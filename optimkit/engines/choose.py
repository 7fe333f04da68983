"""Which engine runs which arrays.

NumPy arrays and torch CPU tensors: llvm where llvmlite is installed, else eager in slices. CuPy arrays:
cuda. Everything else: eager. `engine="eager"`, `"llvm"` or `"cuda"` forces one, or says why it can't.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from optimkit.engines.eager.sliced import SlicedRunner
from optimkit.engines.eager.whole import EagerRunner
from optimkit.engines.protocol import Engine

KERNELS = ("llvm", "cuda")  # engines that make kernels
ENGINES = ("eager", *KERNELS)
EAGER, SLICED = Engine("eager", EagerRunner), Engine("eager", SlicedRunner)


@cache
def compiling(name: str) -> Engine:
    """An engine that makes kernels, "llvm" or "cuda"; whether it can run here is another question."""
    if name == "cuda":
        from optimkit.engines.cuda.launches import CudaLaunches
        from optimkit.engines.cuda.runner import CudaRunner
        from optimkit.engines.cuda.text import kernel_texts as cuda_texts

        return Engine("cuda", CudaRunner, CudaLaunches, cuda_texts)
    from optimkit.engines.cpu.runner import CpuRunner
    from optimkit.engines.cpu.text import kernel_texts as cpu_texts

    return Engine("llvm", CpuRunner, texts=cpu_texts)


def check_engine(engine: Any) -> None:
    """Raise ValueError unless it is the name of an engine, or None."""
    if engine == "numba":
        raise ValueError("engine = 'numba' is called engine = 'llvm' now: kernels are compiled through llvmlite, without numba")
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"engine = {engine!r} must be None (chosen by the arrays) or one of {', '.join(map(repr, ENGINES))}")


@cache
def llvm_problem() -> str:
    """Why NumPy arrays do not run compiled; empty if they do."""
    from optimkit.engines.cpu.kernels import available

    return available()


@cache
def _say_once(problem: str) -> None:
    warnings.warn(problem, RuntimeWarning, stacklevel=3)


def choose(library: str, device: Any, forced: str | None) -> Engine:
    """The engine for arrays of a library on a device.

    Raises
    ------
    ValueError
        If the forced engine can't run them, with the reason.
    """
    on_host = library == "numpy" or (library == "torch" and str(device) == "cpu")
    if forced == "llvm" and not on_host:
        raise ValueError(f"engine = 'llvm' runs NumPy arrays and torch CPU tensors, not {library} arrays on {device}")
    if forced == "cuda" and library != "cupy":
        raise ValueError(f"engine = 'cuda' runs CuPy arrays, not {library} arrays on {device}")
    if library == "cupy" and forced != "eager":
        from optimkit.engines.cuda.compile import missing
        from optimkit.engines.cuda.context import refuse_capture

        refuse_capture()
        return _compiling_or("cuda", forced, missing(), "CuPy's own functions, many", EAGER)
    if not on_host:
        return EAGER
    if forced == "eager":
        return SLICED
    return _compiling_or("llvm", forced, llvm_problem(), "NumPy alone, in slices, several", SLICED)


def _compiling_or(name: str, forced: str | None, problem: str, instead: str, other: Engine) -> Engine:
    """An engine that compiles; another one, with a warning, where there is a problem and nobody forced it."""
    if not problem:
        return compiling(name)
    if forced == name:
        raise ValueError(f"engine = {name!r}: {problem}")
    _say_once(f"optimkit runs on {instead} times slower than compiled: {problem}")
    return other


def compiled_step(buckets: Iterable[tuple[str, Engine]]) -> Callable[..., Any] | None:
    """What looks at gradients and takes warm steps in compiled code: for NumPy's arrays by llvm, or CuPy's by cuda."""
    kinds = {(library, engine.name) for library, engine in buckets}
    if kinds == {("numpy", "llvm")}:
        from optimkit.engines.cpu.step import CompiledStep, works

        return CompiledStep if works() else None
    if kinds == {("cupy", "cuda")}:
        from optimkit.engines.cuda import step

        return step.CudaStep if step.works() else None
    return None
