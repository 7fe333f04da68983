"""Looks at NumPy arrays in compiled code: one call compares the gradients of a step with those before.

It reads the fields of the arrays themselves (`PyArrayObject`, which is part of NumPy's binary interface), some
nanoseconds each; NumPy's public ways to an address cost a microsecond.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np

from optimkit.engines.numba import compile_text

# known: a table of (address of the dtype, or 0 for no gradient, or 1 for unseen; number of axes; address of the lengths
# and strides). Words of an array: class 1, data 2, number of axes 3 (low half), lengths 4, strides 5, dtype 7, flags 8.
TEXT = """\
# which objects in a list look otherwise than before, and where the data of the rest is
from optimkit.engines.numba_runtime import load_int64 as word, store_int64 as put


def sink(spans, i, n):
    # the order of a heap below span i
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and word(spans, 2 * child + 2) > word(spans, 2 * child):
            child += 1
        if word(spans, 2 * i) >= word(spans, 2 * child):
            break
        swap(spans, i, child)
        i = child


def swap(spans, i, j):
    for k in range(2):
        a, b = word(spans, 2 * i + k), word(spans, 2 * j + k)
        put(spans, 2 * i + k, b)
        put(spans, 2 * j + k, a)


def kernel(job):
    items, known, before, now = word(word(job, 0), 3), word(job, 1), word(job, 2), word(job, 3)
    others, n, none, array = word(job, 4), word(job, 5), word(job, 6), word(job, 7)
    weights, gradients, spans = word(job, 8), word(job, 9), word(job, 10)
    other = moved = read_only = 0
    for i in range(n):
        x, entry, address = word(items, i), known + 24 * i, 0
        dtype = word(entry, 0)
        same = False
        if x == none:
            same = dtype == 0
        elif word(x, 1) == array:
            flags = word(x, 8)
            read_only += (flags & 0x400) == 0
            axes = word(entry, 1)
            if word(x, 7) == dtype and (word(x, 3) & 0xFFFFFFFF) == axes and flags & 0x100:
                lengths, strides, expected = word(x, 4), word(x, 5), word(entry, 2)
                same = True
                for axis in range(axes):
                    if word(lengths, axis) != word(expected, axis) or word(strides, axis) != word(expected, axes + axis):
                        same = False
                address = word(x, 2)
        else:
            read_only += 1
        if same:
            moved += address != word(before, i)
            put(now, i, address)
        else:
            put(others, other, i)
            other += 1
    meet = 0
    if moved:
        count = 0
        for i in range(2 * n):
            low, high = word(weights, 2 * i), word(weights, 2 * i + 1)
            if i >= n:
                address = word(now, i - n)
                low = address + word(gradients, 2 * (i - n))
                high = address + word(gradients, 2 * (i - n) + 1)
            if low < high:
                put(spans, 2 * count, low)
                put(spans, 2 * count + 1, high)
                count += 1
        for i in range(count // 2 - 1, -1, -1):
            sink(spans, i, count)
        for last in range(count - 1, 0, -1):
            swap(spans, 0, last)
            sink(spans, 0, last)
        for i in range(1, count):
            meet += word(spans, 2 * i) < word(spans, 2 * i - 1)
    put(job, 11, other)
    put(job, 12, moved)
    put(job, 13, meet)
    put(job, 14, read_only)
"""

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))  # one object each, that lives as long as NumPy


class CompiledLooks:
    """`Looks.compare` in compiled code, on the tables of `Looks` and `Spans`.

    `moved`: an array of the same look is at another address; `meet`: the bytes of two arrays may be the same, known
    where none looks otherwise; `read_only`: some gradient may not be written.
    """

    def __init__(self, before: np.ndarray, now: np.ndarray, weights: np.ndarray, gradients: np.ndarray) -> None:
        self.kernel = compile_text(TEXT)
        n = len(before)
        self.known, self.others, self.spans = np.zeros((n, 3), np.int64), np.zeros(n, np.int64), np.zeros((2 * n, 2), np.int64)
        self.layouts: list[np.ndarray | None] = [None] * n
        self.moved = self.meet = self.read_only = True
        self.job = np.zeros(15, np.int64)
        self.address = self.job.ctypes.data
        self.tables = (before, now, weights, gradients)
        known, others, spans = (x.ctypes.data for x in (self.known, self.others, self.spans))
        tables = [x.ctypes.data for x in self.tables]
        self.job[1:11] = (known, *tables[:2], others, n, id(None), id(np.ndarray), *tables[2:], spans)

    def keep(self, place: int, seen: tuple[Any, ...] | None) -> None:
        if seen is None:
            self.known[place] = 0
            return
        dtype = next((known for known in _DTYPES if isinstance(seen, tuple) and seen[1] is known), None)
        if dtype is None:
            self.known[place] = 1, 0, 0
            return
        shape, strides = seen[2:4]
        layout = self.layouts[place] = np.array([*shape, *strides], np.int64)
        self.known[place] = id(dtype), len(shape), layout.ctypes.data

    def compare(self, values: list[Any]) -> list[int]:
        self.job[0] = id(values)
        self.kernel.held(self.address)
        other, moved, meet, read_only = self.job[11:].tolist()
        self.moved, self.meet, self.read_only = moved > 0, meet > 0, read_only > 0
        return self.others[:other].tolist() if other else []


@cache
def works() -> bool:
    """Whether lists and arrays lie in memory as `TEXT` has it: tried on some arrays."""
    if (object.__basicsize__, list.__basicsize__, sys.byteorder, sys.implementation.name) != (16, 40, "little", "cpython"):
        return False
    plain, other = np.zeros((3, 5), np.float32), np.zeros((5, 3), np.float32).T
    values = [plain, plain.astype(np.float64), None, plain[:, ::-1], np.float32(1), other]
    before, now = np.zeros((2, len(values)), np.int64)
    looks = CompiledLooks(before, now, *np.zeros((2, len(values), 2), np.int64))
    for place in range(len(values)):
        looks.keep(place, (np.ndarray, plain.dtype, plain.shape, plain.strides))
    found = looks.compare(values)
    return found == [1, 2, 3, 4, 5] and now[0] == plain.ctypes.data and looks.read_only
