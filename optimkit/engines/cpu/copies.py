"""Texts of two kernels that serve all rules: the end of a reduction, and copies of strided arrays.

A copy moves a chunk of an array between its place in memory, strided and of any dtype, and a dense buffer of the
compute dtype. Its layout is a row of words, `LAYOUT`; lengths and strides of the axes follow.
"""

from __future__ import annotations

import numpy as np

from optimkit.arrays import DTYPES, DType, Placement
from optimkit.engines.canonical import LANES, UNIT
from optimkit.engines.cpu.text import ABSENT, ENTRY, JOB, WORD
from optimkit.engines.tables import Columns

OPERATIONS = {"sum": 0, "sum_of_squares": 0, "max": 1, "min": 2}  # as FINISH tells them apart
LAYOUT = Columns("axes", "stored", "computed")

# Adds the units of each parameter in the canonical order.
_FINISH = f"""\
# the values of the units of each parameter become one value of the parameter
from optimkit.engines.cpu.language import inf, load_float64, load_int64 as word, store_float64

# words of the job, and columns of a parameter's entry
@NAMES


def merge(operation, lane, value: float64):
    a = load_float64(lane, 0)
    if operation == {OPERATIONS["sum"]}:
        a = a + value
    elif operation == {OPERATIONS["max"]}:
        a = a if (a > value) | (a != a) else value
    else:
        a = a if (a < value) | (a != a) else value
    store_float64(lane, 0, a)


def kernel(job):
    table, lanes, partials, results = word(job, TABLE), word(job, SCRATCH), word(job, PARTIALS), word(job, RESULTS)
    operations, n_params = word(job, OPERATIONS), word(job, N_PARAMS)
    entry_bytes, count = word(job, ENTRY_BYTES), word(job, COUNT)
    for p in range(n_params):
        entry = table + p * entry_bytes
        units = 0 if word(entry, FLAGS) & {ABSENT} else (word(entry, SIZE) + {UNIT - 1}) // {UNIT}
        for r in range(count):
            operation = word(operations, r)
            start = 0.0 if operation == {OPERATIONS["sum"]} else (-inf if operation == {OPERATIONS["max"]} else inf)
            width = {LANES}
            while width // 2 >= units and width > 1:
                width //= 2
            for lane in range(width):
                store_float64(lanes, lane, start)
            for unit in range(units):
                value = load_float64(partials, (word(entry, FIRST_UNIT) + unit) * count + r)
                merge(operation, lanes + {WORD} * (unit % {LANES}), value)
            half = width // 2
            while half:
                for lane in range(half):
                    merge(operation, lanes + {WORD} * lane, load_float64(lanes, lane + half))
                half //= 2
            store_float64(results, p * count + r, load_float64(lanes, 0))
"""
FINISH = _FINISH.replace("@NAMES", "\n".join(columns.text(str.upper, _FINISH) for columns in (JOB, Columns(*ENTRY))))

_COPY = """\
# a chunk of a strided array to or from a dense buffer
from optimkit.engines.cpu.language import {kinds}, {loads}
from optimkit.engines.cpu.language import load_int64 as word, {stores}

{layout}
LENGTHS = {first}


def kernel(layout, data, start, n, dense, mode):
    axes, stored, computed = word(layout, AXES), word(layout, STORED), word(layout, COMPUTED)
    last, step = word(layout, LENGTHS + axes - 1), word(layout, LENGTHS + 2 * axes - 1)
    done = 0
    while done < n:
        row, column = (start + done) // last, (start + done) % last
        run = min(last - column, n - done)
        line = data + column * step
        for axis in range(axes - 2, -1, -1):
            length = word(layout, LENGTHS + axis)
            line += (row % length) * word(layout, LENGTHS + axes + axis)
            row //= length
        if mode == 0:
            for i in range(run):
{read}
        else:
            for i in range(run):
                value = 0.0
                if mode == 1:
{fetch}
{write}
        done += run
"""


def _branches(depth: int, word: str, text: str) -> str:
    """One statement for each dtype: the one whose code a word has is run."""
    lines: list[str] = []
    for dtype in DTYPES.values():
        asked = f"{'el' * bool(lines)}if {word} == {dtype.code}:"
        lines += [asked if dtype.code < len(DTYPES) - 1 else "else:", "    " + text.format(cpu=dtype.cpu)]
    return "\n".join(" " * 4 * depth + line for line in lines)


COPY = _COPY.format(
    kinds=", ".join(dict.fromkeys(["float64", *(dtype.compute for dtype in DTYPES.values())])),
    loads=", ".join(f"load_{dtype.cpu}" for dtype in DTYPES.values()),
    stores=", ".join(f"store_{dtype.cpu}" for dtype in DTYPES.values()),
    layout=LAYOUT.text(str.upper, _COPY),
    first=len(LAYOUT),
    read="\n".join(
        (
            _branches(4, "stored", "value = float64(load_{cpu}(line + i * step, 0))"),
            _branches(4, "computed", "store_{cpu}(dense, done + i, {cpu}(value))"),
        )
    ),
    fetch=_branches(5, "computed", "value = float64(load_{cpu}(dense, done + i))"),
    write=_branches(4, "stored", "store_{cpu}(line + i * step, 0, {cpu}(value))"),
)


def layout_words(where: Placement, size: int, compute: DType) -> np.ndarray:
    """The layout of an array as the copy reads it."""
    lengths, strides = where.lengths_and_strides(size)
    return np.array([len(lengths), where.dtype.code, compute.code, *lengths, *strides], np.int64)
