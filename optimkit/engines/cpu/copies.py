"""Texts of kernels that serve all rules: the end of a reduction, and copies of strided arrays.

A copy moves a chunk of an array between its place in memory, strided and of any dtype, and a dense buffer of the
compute dtype. There is one for each pair of dtypes. The array's layout is a row of words, `LAYOUT`, which begins with the
address of its copy; lengths and strides of the axes follow.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from optimkit.arrays import DType, Placement
from optimkit.engines.canonical import LANES, UNIT
from optimkit.engines.cpu.text import ABSENT, ENTRY, JOB, LAYOUT, WORD
from optimkit.engines.tables import Columns

OPERATIONS = {"sum": 0, "sum_of_squares": 0, "max": 1, "min": 2}  # as FINISH tells them apart

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
# a chunk of a strided array of {stored} to or from a dense buffer of {computed}
from optimkit.engines.cpu.language import {names}
from optimkit.engines.cpu.language import load_int64 as word

{layout}
LENGTHS = {first}


def kernel(layout, data, start, n, dense, mode):
    axes = word(layout, AXES)
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
{gather}
        elif mode == 1:
{scatter}
        else:
{zero}
        done += run
"""

# Elements that lie side by side have a loop of their own, which takes several at a time.
_LINE = """\
            if step == {itemsize}:
                for i in range(run):
                    {dense}
            else:
                for i in range(run):
                    {strided}"""


@cache
def copy_text(stored: DType, computed: DType) -> str:
    """The text of a copy between an array of one dtype and a buffer of another.

    `mode` is 0 to fill the buffer, 1 to write it back, 2 to fill the array with zeros.
    """

    def loops(statement: str) -> str:
        dense, strided = statement.replace("AT", "line, i"), statement.replace("AT", "line + i * step, 0")
        return _LINE.format(itemsize=stored.itemsize, dense=dense, strided=strided)

    array, buffer = stored.cpu, computed.cpu
    used = dict.fromkeys(verb + kind for verb in ("", "load_", "store_") for kind in (array, buffer))
    return _COPY.format(
        stored=stored.name,
        computed=computed.name,
        names=", ".join(used),
        layout=LAYOUT.text(str.upper, _COPY),
        first=len(LAYOUT),
        gather=loops(f"store_{buffer}(dense, done + i, {buffer}(load_{array}(AT)))"),
        scatter=loops(f"store_{array}(AT, {array}(load_{buffer}(dense, done + i)))"),
        zero=loops(f"store_{array}(AT, {array}(0.0))"),
    )


def layout_words(where: Placement, size: int, copy: int) -> np.ndarray:
    """The layout of an array, with the address of what copies it."""
    lengths, strides = where.lengths_and_strides(size)
    return np.array([copy, len(lengths), *lengths, *strides], np.int64)
