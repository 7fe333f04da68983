"""Which engine runs which arrays.

NumPy arrays and torch CPU tensors: numba where it is installed, else eager in slices. CuPy arrays:
cuda. Everything else: eager. `engine="eager"`, `"numba"` or `"cuda"` forces one, or says why it can't.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from optimkit.engines.eager import EagerRunner, SlicedRunner
from optimkit.engines.runner import Runner

ENGINES = ("eager", "numba", "cuda")


def check_engine(engine: Any) -> None:
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"engine = {engine!r} must be None (chosen by the arrays) or one of {', '.join(map(repr, ENGINES))}")


@cache
def numba_problem() -> str:
    from optimkit.engines.numba import available

    return available()


@cache
def _say_once(problem: str) -> None:
    warnings.warn(
        f"optimkit runs on NumPy alone, in slices, several times slower than compiled: {problem}", RuntimeWarning, stacklevel=3
    )


def choose(library: str, device: Any, forced: str | None) -> type[Runner]:
    """The engine for arrays of a library on a device.

    Raises
    ------
    ValueError
        If the forced engine can't run them, with the reason.
    """
    on_host = library == "numpy" or (library == "torch" and str(device) == "cpu")
    if forced == "numba" and not on_host:
        raise ValueError(f"engine = 'numba' runs NumPy arrays and torch CPU tensors, not {library} arrays on {device}")
    if forced == "cuda" and library != "cupy":
        raise ValueError(f"engine = 'cuda' runs CuPy arrays, not {library} arrays on {device}")
    if library == "cupy" and forced != "eager":
        from optimkit.engines.cuda import CudaRunner, refuse_capture

        refuse_capture()
        return CudaRunner  # type: ignore[return-value]  # in the place of reduce and commit it has `together`
    if not on_host:
        return EagerRunner
    if forced == "eager":
        return SlicedRunner
    problem = numba_problem()
    if not problem:
        from optimkit.engines.numba import NumbaRunner

        return NumbaRunner
    if forced == "numba":
        raise ValueError(f"engine = 'numba': {problem}")
    _say_once(problem)
    return SlicedRunner


def compiled_looks(runners: Iterable[tuple[str, Runner]]) -> Callable[..., Any] | None:
    """What compares the gradients of (library, runner) pairs in compiled code: where all are NumPy's and numba is there."""
    if any(library != "numpy" or runner.name != "numba" for library, runner in runners):
        return None
    from optimkit.engines.numba_looks import CompiledLooks, works

    return CompiledLooks if works() else None
