"""Memory: where the elements of an array lie, and whether two arrays share any.

A `Placement` is all that a compiled engine knows of an array: the address of its first element, its dtype, and
either that it is dense or its lengths and strides. Weights, gradients, slots and inputs are told alike.

>>> import numpy as np
>>> Placement.of(np.zeros((4, 6), np.float32)[:, ::2]).geometry
((4, 3), (24, 8))
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from optimkit.arrays.dtypes import DTYPES, DType
from optimkit.arrays.libraries import library_of

Geometry = tuple[tuple[int, ...], tuple[int, ...]]  # lengths, and strides in bytes


class Placement(NamedTuple):
    """Where an array lies. `geometry` is None where its elements follow each other in C order, without gaps."""

    address: int
    dtype: DType
    geometry: Geometry | None = None

    @classmethod
    def of(cls, x: Any) -> Placement:
        """The placement of an array that has an address."""
        library = library_of(x)
        geometry = None if x.flags.c_contiguous else (tuple(x.shape), library.strides(x))
        return cls(library.address(x), _record(x.dtype), geometry)

    def lengths_and_strides(self, size: int) -> Geometry:
        """The geometry, with at least one axis; of a dense array of `size` elements too."""
        if self.geometry is None:
            return (size,), (self.dtype.itemsize,)
        lengths, strides = self.geometry
        return (lengths, strides) if lengths else ((1,), (0,))


@cache
def _record(dtype: Any) -> DType:
    """The record of a dtype of NumPy's: arrays that have an address are NumPy's, or as good as."""
    return DTYPES[dtype.name]


def itemsize(x: Any) -> int:
    """Bytes of an element."""
    return library_of(x).itemsize(x)


def byte_strides(x: Any) -> tuple[int, ...]:
    """The strides of an array, in bytes."""
    return library_of(x).strides(x)


def address(x: Any) -> int:
    """The address of the first element."""
    return library_of(x).address(x)


def has_memory(x: Any) -> bool:
    """Whether an array has an address and strides that we use."""
    return library_of(x).has_memory


def bounds(x: Any) -> tuple[int, int]:
    """The first byte of an array, and the first after it; (0, 0) where it is empty or has no address."""
    library = library_of(x)
    if 0 in x.shape or not library.has_memory:
        return 0, 0
    low = high = library.address(x)
    for step, n in zip(library.strides(x), x.shape, strict=True):
        if step < 0:
            low += step * (n - 1)
        else:
            high += step * (n - 1)
    return low, high + library.itemsize(x)


def self_overlap(x: Any) -> str:
    """How elements of an array share memory among themselves; empty where they do not."""
    if 0 in x.shape:
        return ""
    steps = sorted((abs(step), n) for step, n in zip(byte_strides(x), x.shape, strict=True) if n > 1)
    reach = itemsize(x)
    for step, n in steps:
        if step < reach:
            return "is broadcast (a stride is 0)" if step == 0 else "has elements that overlap in memory"
        reach = step * (n - 1) + reach
    return ""


def folds(x: Any) -> bool:
    """Whether several elements of an array may be one in memory."""
    return has_memory(x) and bool(self_overlap(x))


def overlap(a: Any, b: Any) -> bool:
    """Whether two arrays with strides, whose bounds meet, share an element."""
    try:
        return bool(np.shares_memory(_shadow(a), _shadow(b), max_work=10**6))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _shadow(x: Any) -> Any:
    """A NumPy array at the same address; only its address is ever looked at."""
    if isinstance(x, np.ndarray):
        return x
    interface = {"data": (address(x), True), "shape": tuple(x.shape), "strides": byte_strides(x), "version": 3}
    interface["typestr"] = f"|V{itemsize(x)}"
    return np.asarray(type("Shadow", (), {"__array_interface__": interface})())


def unwritable_ranges() -> list[tuple[int, int]]:
    """The address ranges of this process that the system will not let us write; none where it does not tell.

    Writing there would end the process.
    """
    found = []
    try:
        with open("/proc/self/maps") as file:
            for line in file:
                span, rights, _ = line.split(maxsplit=2)
                if "w" not in rights:
                    low, _, high = span.partition("-")
                    found.append((int(low, 16), int(high, 16)))
    except OSError:
        return []
    return found
