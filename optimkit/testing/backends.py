"""The backends that rules are tested on: array libraries, crossed with the engines that serve them.

One list, `BACKENDS`, and one table of tolerances. A backend says whether it is there (an empty text,
or the reason why not), makes arrays, and brings them back:

>>> backend = BACKENDS["numpy-eager"]
>>> backend.available(), backend.engine, backend.exact
('', 'eager', True)
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.engines import choose
from optimkit.engines.cuda import diagnosis

# For values that need not be equal to the bit: |got - expected| <= tolerance * (|expected| + scale), with the largest
# value of the array as scale. A few roundings of functions that libraries compute differently (exp, pow, a fused
# multiply-add, step counts as float32 inside of jit), carried through some steps.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Backend:
    """An array library with an engine.

    Attributes
    ----------
    name : str
        "library-engine".
    library, engine : str
        The engine is forced; "functional" stands for `init` and `apply`.
    exact : bool
        The same bits as the oracle, for rules of exact operations.
    flushes : bool
        The library's own kernels take subnormal float32 numbers for 0, and make none.
    layouts : tuple of str
        The memory layouts that its arrays can have.
    """

    name: str
    library: str
    engine: str
    exact: bool = True
    flushes: bool = False
    layouts: tuple[str, ...] = ("contiguous",)

    @property
    def functional(self) -> bool:
        return self.engine == "functional"

    @property
    def library_flushes(self) -> bool:
        """Whether the library's own kernels flush, whatever the engine's do."""
        return any(other.flushes for other in BACKENDS.values() if other.library == self.library)

    def available(self) -> str:
        """Why it can't be used here; empty if it can."""
        return _problem(self.library, self.engine)

    def make(self, values: Any, dtype: str, layout: str = "contiguous") -> Any:
        """An array of the backend with these values, a copy."""
        if layout not in self.layouts:
            raise ValueError(f"layout = {layout!r} must be one of {', '.join(map(repr, self.layouts))} for {self.name}")
        values = np.asarray(values, dtype)
        library = importlib.import_module(self.library)
        if self.library == "torch":
            return library.from_numpy(lay_out(np, values, layout))
        if self.library == "cupy":
            return lay_out(library, library.asarray(values), layout)
        if self.library == "numpy":
            return lay_out(np, values, layout)
        if self.library == "jax":
            return library.numpy.asarray(values)
        return library.asarray(values, copy=True)

    def to_numpy(self, x: Any) -> np.ndarray:
        """The values of an array of the backend."""
        return np.array(arrays.to_numpy(x))

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """The settings of the library under which its tests run: JAX computes float64 only when told so."""
        if self.library != "jax":
            yield
            return
        with importlib.import_module("jax").enable_x64(True):
            yield

    def __str__(self) -> str:
        return self.name


@functools.cache
def _problem(library: str, engine: str) -> str:
    with warnings.catch_warnings():  # some complain about a missing driver; the reason says it better
        warnings.simplefilter("ignore")
        if library == "cupy":
            return diagnosis.available()
        try:
            importlib.import_module(library)
        except ImportError as error:
            return f"{library} can't be imported: {error}"
    return choose.llvm_problem() if engine == "llvm" else ""


def _strided(xp: Any, values: Any) -> Any:
    """Every second row and every third column of a larger array; the gaps hold NaN."""
    steps = (2, 3, 2, 2)
    shape = tuple(n * step for n, step in zip(values.shape, steps, strict=False))
    buffer = xp.full(shape, float("nan"), dtype=values.dtype)
    return buffer[(*(slice(None, None, step) for step in steps[: values.ndim]), ...)]


def _flipped(values: Any) -> Any:
    return (*(slice(None, None, -1),) * values.ndim, ...)  # the dots keep a 0-d array an array


# How to make an array of a shape and dtype in each layout. `permuted` has its last axis first in memory.
_LAYOUTS: dict[str, Callable[[Any, Any], Any]] = {
    "contiguous": lambda xp, values: xp.empty(values.shape, dtype=values.dtype),
    "fortran": lambda xp, values: xp.empty(values.shape, dtype=values.dtype, order="F"),
    "permuted": lambda xp, values: xp.empty((*values.shape[-1:], *values.shape[:-1]), dtype=values.dtype).transpose(
        tuple(range(1, values.ndim)) + (0,) * bool(values.ndim)
    ),
    "strided": _strided,
    "negative": lambda xp, values: xp.empty(values.shape, dtype=values.dtype)[_flipped(values)],
    "negative strided": lambda xp, values: _strided(xp, values)[_flipped(values)],
}
LAYOUTS = tuple(_LAYOUTS)


def lay_out(xp: Any, values: Any, layout: str) -> Any:
    """A copy of a NumPy or CuPy array in one of the `LAYOUTS`."""
    found = _LAYOUTS[layout](xp, values)
    found[...] = values
    return found


_TORCH = tuple(layout for layout in LAYOUTS if "negative" not in layout)  # torch has no negative strides


def _all() -> Iterator[Backend]:
    yield Backend("numpy-llvm", "numpy", "llvm", layouts=LAYOUTS)
    yield Backend("numpy-eager", "numpy", "eager", layouts=LAYOUTS)
    yield Backend("torch-llvm", "torch", "llvm", layouts=_TORCH)
    yield Backend("torch-eager", "torch", "eager", layouts=_TORCH)
    yield Backend("array_api_strict-eager", "array_api_strict", "eager")
    yield Backend("numpy-functional", "numpy", "functional")
    yield Backend("array_api_strict-functional", "array_api_strict", "functional")
    yield Backend("torch-functional", "torch", "functional", exact=False)  # its float32 sqrt is not always rounded right
    yield Backend("jax-functional", "jax", "functional", exact=False)
    yield Backend("cupy-cuda", "cupy", "cuda", layouts=LAYOUTS)
    yield Backend("cupy-eager", "cupy", "eager", flushes=True, layouts=LAYOUTS)


BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _all()}
