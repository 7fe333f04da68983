"""Fingerprints of NumPy arrays in compiled code: one call compares the gradients of a step with those before.

It reads the fields of the arrays themselves (`PyArrayObject`, which is part of NumPy's binary interface), some
nanoseconds each; NumPy's public ways to an address cost a microsecond.
"""

from __future__ import annotations

import sys
from functools import cache

import numpy as np

from optimkit.arrays import DTYPES, Fingerprint
from optimkit.engines.cpu.kernels import compile_text
from optimkit.engines.tables import Columns

JOB = Columns(
    "items", "known", "before", "now", "others", "n", "none", "array", "weights", "gradients", "ranges",
    "other", "moved", "meet", "read_only",
)  # fmt: skip  # the last four are answers
# A row of what is known: the address of the dtype (or one of the two below), the number of axes, and the address of the
# lengths and strides.
KNOWN = Columns("dtype", "axes", "geometry")
NO_GRADIENT, UNSEEN_ROW = 0, 1
# Words of the objects themselves, as CPython and NumPy lay them out on 64 bits.
LIST = Columns("list_references", "list_class", "list_size", "list_items")
ARRAY = Columns(
    "references", "cls", "data", "dimensions", "lengths", "strides", "base", "descr", "bits"
)  # fmt: skip  # of `dimensions` and `bits` the low half
ALIGNED, WRITEABLE = 0x100, 0x400  # of `bits`

_TEXT = """\
# which objects in a list look otherwise than before, and where the data of the rest is
from optimkit.engines.cpu.runtime import load_int64 as word, store_int64 as put

{job}
{known}
{list}
{array}


def sink(ranges, i, n):
    # the order of a heap below range i
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and word(ranges, 2 * child + 2) > word(ranges, 2 * child):
            child += 1
        if word(ranges, 2 * i) >= word(ranges, 2 * child):
            break
        swap(ranges, i, child)
        i = child


def swap(ranges, i, j):
    for k in range(2):
        a, b = word(ranges, 2 * i + k), word(ranges, 2 * j + k)
        put(ranges, 2 * i + k, b)
        put(ranges, 2 * j + k, a)


def kernel(job):
    items, known, before = word(word(job, JOB_ITEMS), LIST_ITEMS), word(job, JOB_KNOWN), word(job, JOB_BEFORE)
    now, others, n = word(job, JOB_NOW), word(job, JOB_OTHERS), word(job, JOB_N)
    none, array, weights = word(job, JOB_NONE), word(job, JOB_ARRAY), word(job, JOB_WEIGHTS)
    gradients, ranges = word(job, JOB_GRADIENTS), word(job, JOB_RANGES)
    other = moved = read_only = 0
    for i in range(n):
        x, row, address = word(items, i), known + i * {row_bytes}, 0
        dtype = word(row, KNOWN_DTYPE)
        same = False
        if x == none:
            same = dtype == {no_gradient}
        elif word(x, CLS) == array:
            bits = word(x, BITS)
            read_only += (bits & {writeable}) == 0
            axes = word(row, KNOWN_AXES)
            if word(x, DESCR) == dtype and (word(x, DIMENSIONS) & 0xFFFFFFFF) == axes and bits & {aligned}:
                lengths, strides, expected = word(x, LENGTHS), word(x, STRIDES), word(row, KNOWN_GEOMETRY)
                same = True
                for axis in range(axes):
                    if word(lengths, axis) != word(expected, axis) or word(strides, axis) != word(expected, axes + axis):
                        same = False
                address = word(x, DATA)
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
                put(ranges, 2 * count, low)
                put(ranges, 2 * count + 1, high)
                count += 1
        for i in range(count // 2 - 1, -1, -1):
            sink(ranges, i, count)
        for last in range(count - 1, 0, -1):
            swap(ranges, 0, last)
            sink(ranges, 0, last)
        for i in range(1, count):
            meet += word(ranges, 2 * i) < word(ranges, 2 * i - 1)
    put(job, JOB_OTHER, other)
    put(job, JOB_MOVED, moved)
    put(job, JOB_MEET, meet)
    put(job, JOB_READ_ONLY, read_only)
"""

TEXT = _TEXT.format(
    job=JOB.text(lambda name: f"JOB_{name.upper()}", _TEXT),
    known=KNOWN.text(lambda name: f"KNOWN_{name.upper()}", _TEXT),
    list=LIST.text(str.upper, _TEXT),
    array=ARRAY.text(str.upper, _TEXT),
    row_bytes=8 * len(KNOWN),
    no_gradient=NO_GRADIENT,
    aligned=ALIGNED,
    writeable=WRITEABLE,
)

_DTYPES = [np.dtype(name) for name in DTYPES if hasattr(np, name)]  # NumPy's own: one object each, that lives as long


class CompiledFingerprints:
    """The comparison of fingerprints in compiled code, on the tables of `Fingerprints` and `ByteRanges`.

    `moved`: an array with the same fingerprint is at another address; `meet`: the bytes of two arrays may be the same,
    known where no fingerprint differs; `read_only`: some gradient may not be written.
    """

    def __init__(self, before: np.ndarray, now: np.ndarray, weights: np.ndarray, gradients: np.ndarray) -> None:
        self.kernel = compile_text(TEXT)
        n = len(before)
        self.known, self.others = np.zeros((n, len(KNOWN)), np.int64), np.zeros(n, np.int64)
        self.ranges = np.zeros((2 * n, 2), np.int64)
        self.geometries: list[np.ndarray | None] = [None] * n
        self.moved = self.meet = self.read_only = True
        self.job = np.zeros(len(JOB), np.int64)
        self.address = self.job.ctypes.data
        self.tables = {"before": before, "now": now, "weights": weights, "gradients": gradients}  # kept alive
        own = {"known": self.known, "others": self.others, "ranges": self.ranges}
        for name, table in (self.tables | own).items():
            self.job[getattr(JOB, name)] = table.ctypes.data
        self.job[JOB.n], self.job[JOB.none], self.job[JOB.array] = n, id(None), id(np.ndarray)

    def keep(self, place: int, seen: Fingerprint) -> None:
        if seen is None:
            self.known[place] = NO_GRADIENT
            return
        dtype = next((known for known in _DTYPES if isinstance(seen, tuple) and seen[1] is known), None)
        if dtype is None:
            self.known[place] = UNSEEN_ROW, 0, 0
            return
        shape, strides = seen[2:4]
        geometry = self.geometries[place] = np.array([*shape, *strides], np.int64)
        self.known[place] = id(dtype), len(shape), geometry.ctypes.data

    def compare(self, values: list[object]) -> list[int]:
        self.job[JOB.items] = id(values)
        self.kernel.held(self.address)
        other, moved, meet, read_only = self.job[JOB.other :].tolist()
        self.moved, self.meet, self.read_only = moved > 0, meet > 0, read_only > 0
        return self.others[:other].tolist() if other else []


@cache
def works() -> bool:
    """Whether lists and arrays lie in memory as `LIST` and `ARRAY` have it: tried on some arrays."""
    if (object.__basicsize__, list.__basicsize__, sys.byteorder, sys.implementation.name) != (16, 40, "little", "cpython"):
        return False
    plain, other = np.zeros((3, 5), np.float32), np.zeros((5, 3), np.float32).T
    values = [plain, plain.astype(np.float64), None, plain[:, ::-1], np.float32(1), other]
    before, now = np.zeros((2, len(values)), np.int64)
    found = CompiledFingerprints(before, now, *np.zeros((2, len(values), 2), np.int64))
    for place in range(len(values)):
        found.keep(place, (np.ndarray, plain.dtype, plain.shape, plain.strides))
    different = found.compare(values)
    return different == [1, 2, 3, 4, 5] and now[0] == plain.ctypes.data and found.read_only
