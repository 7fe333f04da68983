"""A look at all arrays in compiled code: which gradients are not what they were, where the rest lie, whether any two
overlap, and whether all weights are what they were.

It reads the fields of the arrays themselves, some nanoseconds each; public ways to an address cost from fifty to a thousand.
How they lie in memory is told by `Objects`: those of NumPy (`PyArrayObject`) are part of its binary interface. The text
is part of that of a step (`step`, `cuda/step`), whose class is a `Look`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from optimkit.arrays import DTYPES, Fingerprint
from optimkit.engines.cpu.kernels import compile_text
from optimkit.engines.tables import Columns

# What a look is told, and what it answers: first words of the job of a step.
TOLD = (
    "ids", "n_ids", "weights", "known", "before", "now", "present", "here", "others", "n", "none", "array", "ranges", "fixed",
    "gradients", "order", "apart", "n_apart",
)  # fmt: skip
ANSWERS = ("other", "moved", "meet", "read_only", "active")
# A row of what is known: the address of the dtype (or UNSEEN_ROW), the number of axes, the address of the lengths and
# strides, the bits of an address that are 0 where it is aligned, and the number of the device.
KNOWN = Columns("dtype", "axes", "geometry", "mask", "device")
# A row of what is known of a weight: the array, the address of its data, and the same.
WEIGHT = Columns("object", "at", "dtype", "axes", "geometry")
UNSEEN_ROW = 1
LATELY = 16  # sets of gradients that are known to lie apart
ONLY_LOOK, PREPARE, RUN, COUNT = range(4)  # modes of a step: each does what those before it do; COUNT only counts
# Words of lists, as CPython lays them out on 64 bits, from the class on.
LIST = Columns("list_class", "list_size", "list_items")
HEADER = object.__basicsize__ - 8  # the class is the last word of what all objects have


def lists_are_known() -> bool:
    """Whether this is a CPython whose lists lie in memory as `LIST` has it."""
    known = sys.byteorder == "little" and sys.implementation.name == "cpython" and sys.maxsize > 1 << 62
    return known and list.__basicsize__ == object.__basicsize__ + 24


class Objects(NamedTuple):
    """How the fields of an array are read: expressions in the language of kernels, in which `x` is its address.

    `memory` is another word for each piece of memory: the address of the data, or of an object that knows it. `aligned` and
    `writeable` may use the `row` of what is known of it; `kind` is the class of which all this holds.
    """

    kind: type
    dtype: str
    axes: str
    lengths: str
    strides: str
    memory: str
    data: str
    device: str
    aligned: str
    writeable: str


def _numpy() -> Objects:
    """Of `PyArrayObject`: two of its fields are ints, the low half of a word."""
    names = ("data", "dimensions", "lengths", "strides", "base", "dtype", "bits")
    field = {name: f"word(x + {HEADER}, {place})" for place, name in enumerate(names, 1)}
    return Objects(
        np.ndarray,
        field["dtype"],
        f"({field['dimensions']} & 0xFFFFFFFF)",
        field["lengths"],
        field["strides"],
        field["data"],
        field["data"],
        "0",
        f"({field['bits']} & 0x100)",
        f"({field['bits']} & 0x400)",
    )


NUMPY = _numpy()

LOOK = """\
def same_objects(job, values) -> int64:
    # whether a list holds the very objects that it should
    items, ids = word(values + {header}, LIST_ITEMS), word(job, JOB_IDS)
    for i in range(word(job, JOB_N_IDS)):
        if word(items, i) != word(ids, i):
            return 0
    return 1


def same_weights(job) -> int64:
    # whether the weights are what they were: arrays can be changed in place; those with a gradient must be writable
    weights, here = word(job, JOB_WEIGHTS), word(job, JOB_HERE)
    for i in range(word(job, JOB_N)):
        row = weights + i * {weight_bytes}
        x, axes = word(row, WEIGHT_OBJECT), word(row, WEIGHT_AXES)
        if {memory} != word(row, WEIGHT_AT) or {dtype} != word(row, WEIGHT_DTYPE):
            return 0
        if {axes} != axes or (word(here, i) and {writeable} == 0):
            return 0
        lengths, strides, expected = {lengths}, {strides}, word(row, WEIGHT_GEOMETRY)
        for axis in range(axes):
            if word(lengths, axis) != word(expected, axis) or word(strides, axis) != word(expected, axes + axis):
                return 0
    return 1


def look(job, values):
    # which gradients look otherwise than when they were last there, and where the data of the rest is
    items, known, before = word(values + {header}, LIST_ITEMS), word(job, JOB_KNOWN), word(job, JOB_BEFORE)
    now, present, here = word(job, JOB_NOW), word(job, JOB_PRESENT), word(job, JOB_HERE)
    others, none, array = word(job, JOB_OTHERS), word(job, JOB_NONE), word(job, JOB_ARRAY)
    n = word(job, JOB_N)
    other = moved = read_only = active = 0
    for i in range(n):
        x, row = word(items, i), known + i * {row_bytes}
        address, there, same = word(before, i), 1, False
        if x == none:
            there, same = 0, True
        else:
            if word(x + {header}, 0) == array:
                read_only += {writeable} == 0
                axes = word(row, KNOWN_AXES)
                known_dtype = word(row, KNOWN_DTYPE)
                if {dtype} == known_dtype and {axes} == axes and {aligned} and {device} == word(row, KNOWN_DEVICE):
                    lengths, strides, expected = {lengths}, {strides}, word(row, KNOWN_GEOMETRY)
                    same = True
                    for axis in range(axes):
                        if word(lengths, axis) != word(expected, axis) or word(strides, axis) != word(expected, axes + axis):
                            same = False
                    address = {data}
            else:
                read_only += 1
        active += there
        moved += there != word(present, i) or (same and address != word(before, i))
        put(here, i, there)
        put(now, i, address)
        if not same:
            put(others, other, i)
            other += 1
    put(job, JOB_OTHER, other)
    put(job, JOB_MOVED, moved)
    put(job, JOB_READ_ONLY, read_only)
    put(job, JOB_ACTIVE, active)
    put(job, JOB_MEET, 0)
    if moved:
        look_at_ranges(job, n)


def look_at_ranges(job, n):
    # whether the bytes of any two arrays may be the same; where the same lay apart lately, they do
    now, here, sets = word(job, JOB_NOW), word(job, JOB_HERE), word(job, JOB_APART)
    known = word(job, JOB_N_APART)
    for k in range(min(known, {lately})):
        if same_words(now, sets + k * {set_words} * n, n) and same_words(here, sets + (k * {set_words} + 8) * n, n):
            return
    put(job, JOB_MEET, ranges_meet(job, n))
    if word(job, JOB_MEET) == 0:
        place = sets + (known % {lately}) * {set_words} * n
        for i in range(n):
            put(place, i, word(now, i))
            put(place, n + i, word(here, i))
        put(job, JOB_N_APART, known + 1)


def same_words(a, b, n) -> int64:
    for i in range(n):
        if word(a, i) != word(b, i):
            return 0
    return 1


def ranges_meet(job, n) -> int64:
    # ranges in the order of their first bytes do not meet: those of weights and slots, and those of gradients, merged
    now, here, gradients = word(job, JOB_NOW), word(job, JOB_HERE), word(job, JOB_GRADIENTS)
    ranges, order, fixed = word(job, JOB_RANGES), word(job, JOB_ORDER), word(job, JOB_FIXED)
    scratch = order + 8 * (fixed + n)
    for i in range(n):
        low, high = word(gradients, 2 * i), word(gradients, 2 * i + 1)
        put(ranges, 2 * (fixed + i), word(now, i) + low)
        put(ranges, 2 * (fixed + i) + 1, word(now, i) + (high if word(here, i) else low))
    sort(ranges, order, fixed, scratch)
    sort(ranges, order + 8 * fixed, n, scratch)
    meet = top = a = b = 0
    while a < fixed or b < n:
        one, other = word(order, min(a, fixed - 1)), word(order, fixed + min(b, n - 1))
        first = b == n or (a < fixed and word(ranges, 2 * one) <= word(ranges, 2 * other))
        place = one if first else other
        low, high = word(ranges, 2 * place), word(ranges, 2 * place + 1)
        if low < high:
            meet += low < top
            top = max(top, high)
        a += first
        b += 1 - first
    return meet


def run_from(ranges, order, start, n) -> int64:
    # the end of the run that is in order
    end = start + 1
    while end < n and word(ranges, 2 * word(order, end - 1)) <= word(ranges, 2 * word(order, end)):
        end += 1
    return min(end, n)


def sort(ranges, order, n, scratch):
    # most lie in the order of the step before: the runs that are in order are merged, two by two, until there is one
    while run_from(ranges, order, 0, n) < n:
        start = 0
        while start < n:
            middle = run_from(ranges, order, start, n)
            stop = run_from(ranges, order, middle, n) if middle < n else n
            a, b = start, middle
            for k in range(start, stop):
                first = b == stop or (a < middle and word(ranges, 2 * word(order, a)) <= word(ranges, 2 * word(order, b)))
                put(scratch, k, word(order, a if first else b))
                a += first
                b += 1 - first
            start = stop
        for k in range(n):
            put(order, k, word(scratch, k))
"""


COUNTS = """\
def count_up(job, bucket):
    present, places, counts = word(job, JOB_PRESENT), word(bucket, PLACES), word(bucket, COUNTS)
    for p in range(word(bucket, MEMBERS)):
        put(counts, p, word(counts, p) + word(present, word(places, p)))
"""


def look_text(objects: Objects) -> str:
    """The functions of a look at arrays of a class, and what counts updates."""
    sizes = {"row_bytes": 8 * len(KNOWN), "weight_bytes": 8 * len(WEIGHT), "header": HEADER, "lately": LATELY}
    sizes["set_words"] = 2 * 8
    return LOOK.format(**sizes, **objects._asdict()) + "\n\n" + COUNTS


def names_text(job: Columns, used: str, *others: Columns) -> str:
    """The statements that make the words of all tables known, as far as a text uses them."""
    names = [
        job.text(lambda name: f"JOB_{name.upper()}", used),
        KNOWN.text(lambda name: f"KNOWN_{name.upper()}", used),
        WEIGHT.text(lambda name: f"WEIGHT_{name.upper()}", used),
        *(columns.text(str.upper, used) for columns in (LIST, *others)),
    ]
    return "\n".join(filter(None, names))


_DTYPES = [np.dtype(name) for name in DTYPES if hasattr(np, name)]  # NumPy's own: one object each, that lives as long


class Tables(NamedTuple):
    """What is known of gradients, by place: addresses before and now, who is present; their ranges of bytes, relative to
    their addresses; and ranges of bytes of weights and slots, with room for those of the gradients behind them."""

    before: np.ndarray
    now: np.ndarray
    present: np.ndarray
    gradients: np.ndarray
    ranges: np.ndarray


class Look:
    """The gradients of an optimizer as they are known, looked at by the compiled code of `text`.

    `moved`: an array came, went, or is at another address; `meet`: the bytes of two arrays may be the same, known where
    nothing looks otherwise; `read_only`: some gradient may not be written. All three are answers of the latest look.
    """

    def __init__(self, text: str, columns: Columns, objects: Objects, *known: np.ndarray) -> None:
        tables = Tables(*known)
        n = len(tables.before)
        self.tables, self.columns = tables, columns
        words = [ctypes.c_int64] * 5
        function = ctypes.PYFUNCTYPE(ctypes.c_int64, *words)
        self.code = compile_text(text, len(words))
        self.kernel: Callable[..., int] = function(self.code.address)
        self.known, self.others, self.here = np.zeros((n, len(KNOWN)), np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.known[:, KNOWN.dtype] = UNSEEN_ROW
        fixed = len(tables.ranges) - n
        self.order = np.concatenate([np.arange(fixed + n), np.zeros(fixed + n, np.int64)])  # and room to sort
        self.apart = np.zeros(LATELY * 2 * n, np.int64)
        self.geometries: list[np.ndarray | None] = [None] * n
        self.weight_rows = np.zeros((n, len(WEIGHT)), np.int64)
        self.weights: list[tuple[Any, ...]] = [()] * n  # what their rows tell of: it has to live
        self.job = np.zeros(len(columns), np.int64)
        self.address = self.job.ctypes.data
        own = {name: getattr(self, name) for name in ("known", "others", "here", "order", "apart")}
        for name, table in (own | tables._asdict()).items():
            self.job[getattr(columns, name)] = table.ctypes.data
        self.job[columns.fixed] = fixed
        self.job[columns.weights] = self.weight_rows.ctypes.data
        self.job[columns.n], self.job[columns.none], self.job[columns.array] = n, id(None), id(objects.kind)
        self.moved = self.meet = self.read_only = True

    def keep(self, place: int, seen: Fingerprint) -> None:
        """The gradient at a place was checked, and looks so: its class, dtype, shape, strides, and what its library adds."""
        self.job[self.columns.n_apart] = 0  # its range may be another one
        dtype = next((known for known in _DTYPES if isinstance(seen, tuple) and seen[1] is known), None)
        if dtype is None or seen is None:
            self.known[place] = UNSEEN_ROW, 0, 0, 0, 0
            return
        shape, strides = seen[2:4]
        geometry = self.geometries[place] = np.array([*shape, *strides], np.int64)
        self.known[place] = id(dtype), len(shape), geometry.ctypes.data, dtype.itemsize - 1, self.device_of(seen)

    def device_of(self, seen: tuple[Any, ...]) -> int:
        """The number of the device in a fingerprint."""
        return 0

    def keep_weight(self, place: int, weight: Any, seen: tuple[Any, ...]) -> None:
        """The weight at a place is this array, and looked so when it was checked: its dtype, shape, strides and address."""
        self.job[self.columns.n_apart] = 0
        dtype, shape, strides, address = seen
        geometry = np.array([*shape, *strides], np.int64)
        self.weight_rows[place] = id(weight), address, id(dtype), len(shape), geometry.ctypes.data
        self.weights[place] = weight, dtype, geometry

    def compare(self, values: list[Any]) -> list[int]:
        """The places of gradients that look otherwise than when they were last there; nothing is changed by a look."""
        self.kernel(self.address, 0, id(values), ONLY_LOOK, False)
        other, moved, meet, read_only = self.job[self.columns.other : self.columns.active].tolist()
        self.moved, self.meet, self.read_only = moved > 0, meet > 0, read_only > 0
        return self.others[:other].tolist() if other else []

    def expect(self, ids: np.ndarray) -> None:
        """What has to stand in the containers, by the ids of the objects."""
        self.ids = ids
        self.job[self.columns.ids], self.job[self.columns.n_ids] = ids.ctypes.data, len(ids)
