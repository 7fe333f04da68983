"""Comparisons in words: where two arrays differ first, and by how much.

>>> import numpy as np
>>> difference(np.array([1.0, 2.5]), np.array([1.0, 2.0]))
'1 of 2 elements differ, the first at [1]: 2.5, expected 2.0'
>>> difference(np.array([np.nan, 0.0]), np.array([np.nan, 0.0]))
''
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optimkit.fusion.graph import Level
from optimkit.fusion.operations import OPERATIONS
from optimkit.fusion.stages import Program

# Operations that may return either zero where IEEE 754 leaves it open.
_OPEN_ZEROS = {"minimum", "maximum", "sign", "max", "min"}


def inexact_operations(programs: Iterable[Program]) -> set[str]:
    """What traced rules do that libraries round differently; the host computes its numbers alike everywhere."""
    nodes = [node for program in programs for node in program.nodes if node.level is not Level.HOST]
    return {node.op for node in nodes if node.op == "call" or (node.op in OPERATIONS and not OPERATIONS[node.op].exact)}


def zeros_are_signed(programs: Iterable[Program]) -> bool:
    """Whether the signs of zeros are determined."""
    return not any(node.op in _OPEN_ZEROS for program in programs for node in program.nodes)


def difference(
    got: Any, expected: Any, tolerance: float = 0.0, signed_zeros: bool = False, flushed: bool = False, scale: float = 0.0
) -> str:
    """How two arrays differ, in words; empty if they do not.

    Parameters
    ----------
    tolerance : float
        0 for equality to the bit (NaN equals NaN). Else |got - expected| may be up to
        tolerance * (|expected| + scale), and infinities must be equal.
    signed_zeros : bool
        0.0 and -0.0 differ, without a tolerance.
    flushed : bool
        Subnormal numbers of the dtype of `expected` equal 0.
    scale : float
        At least the largest finite value of `expected`.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        return f"shape {got.shape}, expected {expected.shape}"
    if got.dtype != expected.dtype:
        return f"dtype {got.dtype}, expected {expected.dtype}"
    wrong = ~_same(got, expected, tolerance, signed_zeros, flushed, scale)
    if not wrong.any():
        return ""
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f"{int(wrong.sum())} of {wrong.size} elements differ, the first at {list(place)}: " if wrong.ndim else ""
    return f"{where}{_number(got[place])}, expected {_number(expected[place])}"


def _same(got: Any, expected: Any, tolerance: float, signed_zeros: bool, flushed: bool, scale: float) -> Any:
    if flushed and expected.dtype.kind == "f":
        tiny = np.finfo(expected.dtype).tiny
        got, expected = (np.where(np.abs(x) < tiny, 0, x) for x in (got, expected))
    same = (got == expected) | ((got != got) & (expected != expected))
    if tolerance:
        finite = np.isfinite(got) & np.isfinite(expected)
        with np.errstate(invalid="ignore", over="ignore"):
            size = np.abs(expected)
            largest = max(scale, float(np.max(size[np.isfinite(expected)], initial=0.0)))
            return same | (finite & (np.abs(got - expected) <= tolerance * (size + largest)))
    if signed_zeros and not flushed:
        same &= (got != 0) | (np.signbit(got) == np.signbit(expected))
    return same


def _number(x: Any) -> str:
    return repr(x.item()) if x.dtype == np.float64 or x.dtype.kind != "f" else f"{x!s}"
