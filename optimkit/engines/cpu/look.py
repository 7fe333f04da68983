"""A look at all arrays in compiled code: which gradients are not what they were, where the rest lie, whether any two
overlap, and whether all weights are what they were.

It reads the fields of the arrays themselves (`PyArrayObject`, which is part of NumPy's binary interface), some
nanoseconds each; NumPy's public ways to an address cost a microsecond. The text is part of that of a step (`step`).
"""

from __future__ import annotations

from optimkit.engines.tables import Columns

# What a look is told, and what it answers: first words of the job of a step.
TOLD = (
    "ids", "n_ids", "weights", "known", "before", "now", "present", "here", "others", "n", "none", "array", "ranges", "fixed",
    "gradients", "order",
)  # fmt: skip
ANSWERS = ("other", "moved", "meet", "read_only", "active")
# A row of what is known: the address of the dtype (or UNSEEN_ROW), the number of axes, and the address of the lengths and
# strides.
KNOWN = Columns("dtype", "axes", "geometry")
# A row of what is known of a weight: the array, the address of its data, and the same.
WEIGHT = Columns("object", "at", "dtype", "axes", "geometry")
UNSEEN_ROW = 1
# Words of the objects themselves, as CPython and NumPy lay them out on 64 bits, from the class on.
LIST = Columns("list_class", "list_size", "list_items")
ARRAY = Columns("cls", "data", "dimensions", "lengths", "strides", "base", "descr", "bits")  # of two of them the low half
ALIGNED, WRITEABLE = 0x100, 0x400  # of `bits`

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
        fields = word(row, WEIGHT_OBJECT) + {header}
        bits, axes = word(fields, BITS), word(row, WEIGHT_AXES)
        if word(fields, DATA) != word(row, WEIGHT_AT) or word(fields, DESCR) != word(row, WEIGHT_DTYPE):
            return 0
        if (word(fields, DIMENSIONS) & 0xFFFFFFFF) != axes or (word(here, i) and (bits & {writeable}) == 0):
            return 0
        lengths, strides, expected = word(fields, LENGTHS), word(fields, STRIDES), word(row, WEIGHT_GEOMETRY)
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
            fields = x + {header}
            if word(fields, CLS) == array:
                bits = word(fields, BITS)
                read_only += (bits & {writeable}) == 0
                axes = word(row, KNOWN_AXES)
                known_dtype = word(row, KNOWN_DTYPE)
                if word(fields, DESCR) == known_dtype and (word(fields, DIMENSIONS) & 0xFFFFFFFF) == axes and bits & {aligned}:
                    lengths, strides, expected = word(fields, LENGTHS), word(fields, STRIDES), word(row, KNOWN_GEOMETRY)
                    same = True
                    for axis in range(axes):
                        if word(lengths, axis) != word(expected, axis) or word(strides, axis) != word(expected, axes + axis):
                            same = False
                    address = word(fields, DATA)
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
    # whether the bytes of any two arrays may be the same: ranges in the order of their first bytes do not meet
    now, here, gradients = word(job, JOB_NOW), word(job, JOB_HERE), word(job, JOB_GRADIENTS)
    ranges, order, fixed = word(job, JOB_RANGES), word(job, JOB_ORDER), word(job, JOB_FIXED)
    for i in range(n):
        low, high = word(gradients, 2 * i), word(gradients, 2 * i + 1)
        put(ranges, 2 * (fixed + i) + 1, 0)
        if word(here, i) and low < high:
            put(ranges, 2 * (fixed + i), word(now, i) + low)
            put(ranges, 2 * (fixed + i) + 1, word(now, i) + high)
    sort(ranges, order, fixed + n)
    meet = top = 0
    for k in range(fixed + n):
        low, high = word(ranges, 2 * word(order, k)), word(ranges, 2 * word(order, k) + 1)
        if low < high:
            meet += low < top
            top = max(top, high)
    put(job, JOB_MEET, meet)


def sort(ranges, order, n):
    # most lie as they lay in the step before: one moves up past a few others, or the order is made anew
    moves = 0
    for k in range(1, n):
        i, place = word(order, k), k
        low = word(ranges, 2 * i)
        while place > 0 and word(ranges, 2 * word(order, place - 1)) > low:
            put(order, place, word(order, place - 1))
            place -= 1
            moves += 1
        put(order, place, i)
        if moves > 8 * n:
            break
    if moves > 8 * n:
        for k in range(n // 2 - 1, -1, -1):
            sink(ranges, order, k, n)
        for last in range(n - 1, 0, -1):
            swap(order, 0, last)
            sink(ranges, order, 0, last)


def sink(ranges, order, k, n):
    # the order of a heap below place k
    while 2 * k + 1 < n:
        child = 2 * k + 1
        if child + 1 < n and word(ranges, 2 * word(order, child + 1)) > word(ranges, 2 * word(order, child)):
            child += 1
        if word(ranges, 2 * word(order, k)) >= word(ranges, 2 * word(order, child)):
            break
        swap(order, k, child)
        k = child


def swap(order, k, l):
    a, b = word(order, k), word(order, l)
    put(order, k, b)
    put(order, l, a)
"""


def look_text(header: int) -> str:
    """The functions of a look, for objects whose class is `header` bytes behind their first one."""
    sizes = {"row_bytes": 8 * len(KNOWN), "weight_bytes": 8 * len(WEIGHT)}
    return LOOK.format(header=header, **sizes, aligned=ALIGNED, writeable=WRITEABLE)
