"""Reductions in one order: the same bits from every engine and any number of threads.

A parameter's elements, in memory order of its weight, form units of 2,048. In a unit, lane l of
128 adds the elements l, l + 128, ... one after the other; the lanes are added as a tree (64 to 64,
32 to 32, ...). The sums of the units, and the sums of the parameters, are added the same way.
Everything is float64. The code is array-API code: it is the reference, and the eager engine.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import device

LANES = 128
UNIT = 2048

IDENTITY = {"sum": 0.0, "sum_of_squares": 0.0, "max": float("-inf"), "min": float("inf")}


def _combine(xp: Any, op: str, a: Any, b: Any) -> Any:
    return {"max": xp.maximum, "min": xp.minimum}[op](a, b) if op in ("max", "min") else a + b


def _fold(xp: Any, op: str, values: Any) -> Any:
    """(n, rows, 128) to (n,): the lanes one row after the other, then the tree."""
    lanes = values[:, 0, :] + 0.0
    for row in range(1, values.shape[1]):
        lanes = _combine(xp, op, lanes, values[:, row, :])
    half = LANES // 2
    while half:
        lanes = _combine(xp, op, lanes[:, :half], lanes[:, half : 2 * half])
        half //= 2
    return lanes[:, 0]


def _pad(xp: Any, op: str, values: Any, multiple: int) -> Any:
    missing = -values.shape[0] % multiple
    if not missing:
        return values
    filler = xp.full(missing, IDENTITY[op], dtype=values.dtype, device=device(values))
    return xp.concat([values, filler])


def unit_values(xp: Any, op: str, values: Any, scale: int = 0) -> Any:
    """The value of each unit of a flat real array."""
    wide = xp.astype(values, xp.float64)
    if op == "sum_of_squares":
        wide = wide * 2.0**scale if scale else wide
        wide = wide * wide
    wide = _pad(xp, op, wide, UNIT if wide.shape[0] > UNIT else LANES)  # rows of identities would change nothing
    return _fold(xp, op, xp.reshape(wide, (-1, min(UNIT, wide.shape[0]) // LANES, LANES)))


def combine(xp: Any, op: str, values: Any) -> Any:
    """One value from those of the units, or of the parameters: a 0-d float64 array."""
    if values.shape[0] == 1:
        return values[0] + 0.0
    values = _pad(xp, op, values, LANES)
    return _fold(xp, op, xp.reshape(values, (1, -1, LANES)))[0]


def combine_few(values: list[float]) -> float:
    """The sum of up to 128 values: `combine` in Python numbers, which is quicker for a few."""
    lanes, half = [value + 0.0 for value in values], LANES // 2  # + 0.0: as if the empty lanes were added
    while half:
        upper = lanes[half:]
        lanes = [a + b for a, b in zip(lanes, upper, strict=False)] + lanes[len(upper) : half]
        half //= 2
    return lanes[0] if lanes else 0.0


def reduce(xp: Any, op: str, values: Any, scale: int = 0) -> Any:
    """One value from the elements of a parameter, flat, in memory order; empty arrays give the identity."""
    if values.shape[0] == 0:
        return xp.asarray(IDENTITY[op], dtype=xp.float64, device=device(values))
    return combine(xp, op, unit_values(xp, op, values, scale))
