"""What a launch is told: the job, passed by value, and the tables that it points to, each described once.

`job_dtype` is the job as Python fills it, `job_text` the same as the kernels see it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache

import numpy as np

from optimkit.arrays import Placement
from optimkit.engines.tables import Columns, Entry
from optimkit.engines.text import identifiers
from optimkit.fusion.stages import GRADIENT, WEIGHT, Plan

WRITE_CHUNKS, WRITE_THREADS = (1024, 2048, 4096), 256  # elements of a chunk: fewer where there are few chunks
CHUNKS_EACH = 8  # for a multiprocessor, before chunks get larger
READ_CHUNK, READ_THREADS = 8192, 128
ROWS = 384  # doubles that a launch carries by value
BY_VALUE = (384, 3584)  # words of `moving` that it may carry too: a launch takes 32,764 bytes from CUDA 12.1 on

# Of a parameter in the table; its arrays follow. `g_dtype` is the code of its gradient's dtype.
ENTRY = ("size", "row", "flags", "first_unit", "blocks", "place", "g_dtype")
FLAGS = {"ABSENT": 1, "VECTOR": 2, "ZERO_G": 4}
STRIDED_BIT = 8  # the first of those that say which arrays are strided
STRIDED = (WEIGHT, GRADIENT)  # arrays that may be strided in any bucket
LAYOUT = Columns("axes", "lengths")  # lengths and strides follow each other from `lengths` on
MOVING = Columns("gradient", "flags", "row")  # what changes from step to step: address, flags, row of each parameter
CONTROL = Columns("parameters_read", "blocks_written")  # how many have arrived
RESULT = Columns("norm", "finite")

_FIELDS = (
    ("table", "const word*", "one entry per parameter"),
    ("chunks", "const int2*", "(parameter, number of the chunk), for the stages that write"),
    ("read_chunks", "const int2*", "the same for the stages that reduce"),
    ("more_rows", "const double*", "the rows, where they are too many to be carried below"),
    ("uniforms", "double*", "what passes sum up, {values} per parameter"),
    ("by_row", "double*", "what follows from totals, {by_row} per row"),
    ("slots", "double*", "state per parameter, {slots} values each"),
    ("shared", "double*", "state per optimizer"),
    ("counts", "word*", "updates of each parameter, where a step is decided on the device"),
    ("next_counts", "word*", "and what they become in the step under way"),
    ("arrived", "unsigned*", "blocks that have finished, per parameter"),
    ("control", "unsigned*", "parameters that were read, blocks that have written"),
    ("partials", "double*", "one value per unit of {unit} elements and reduction"),
    ("contributions", "double*", "what each parameter of the optimizer adds to each total, by device"),
    ("result", "double*", "norm of all gradients, and whether it is finite"),
    ("write_shared", "unsigned long long", "bits: the slots per optimizer that this bucket writes"),
    ("members", "int", "parameters of the bucket"),
    ("row_count", "int", "rows of numbers"),
    ("chunk", "int", "elements of a chunk of the stages that write"),
    ("entries", "int", "parameters of the optimizer"),
    ("labels", "int", "different totals of the optimizer"),
    ("devices", "int", "devices with parameters of the optimizer"),
    ("device", "int", "which of them this one is"),
    ("zero", "int", "zero the gradients"),
    ("finish", "int", "finish the rounds in the launch that reduces"),
)
_WORDS = [(name, np.int32 if kind == "int" else np.uint64) for name, kind, _ in _FIELDS]


def room_by_value(words: int) -> int:
    """How many words of `moving` a launch has room for, where it is to carry so many; 0 where it can't."""
    return next((room for room in BY_VALUE if 0 < words <= room and _takes_large_arguments()), 0)


@cache
def _takes_large_arguments() -> bool:
    import cupy

    return bool(cupy.cuda.runtime.driverGetVersion() >= 12010 and cupy.cuda.nvrtc.getVersion() >= (12, 1))


def job_dtype(by_value: int) -> np.dtype[np.void]:
    """The job as Python fills it, with room for so many words of `moving`."""
    return np.dtype([*_WORDS, ("rows", np.float64, ROWS), *[("moving", np.int64, by_value)] * bool(by_value)], align=True)


def job_text(by_value: int, columns: Entry, **words: int) -> str:
    """The same as a C++ structure, and what looks an entry up; `words` fill in the comments."""
    fields = [(f"{kind} {name};", note.format(**words)) for name, kind, note in _FIELDS]
    fields += [(f"double rows[{ROWS}];", "one per distinct set of numbers")]
    what = "of each parameter: the gradient's address, flags, row; in the place of the table's"
    fields += [(f"word moving[{by_value}];", what)] * bool(by_value)
    lines = [f"    {declared:<36}// {note}" for declared, note in fields]
    places = {columns.names[columns.address[GRADIENT]]: 0, "FLAGS": 1, "ROW": 2}
    moved = "".join(f"column == {name} ? job.moving[p * 3 + {place}] : " for name, place in places.items()) if by_value else ""
    look = f"    __device__ word operator[](int column) const {{ return {moved}job.table[p * {len(columns)} + column]; }}"
    return "\n".join(["struct Job {", *lines, "};", "struct Entry {", "    const Job& job;", "    word p;", look, "};"])


def entry_columns(plan: Plan, strided: Sequence[Hashable] = STRIDED) -> Entry:
    """The columns of a parameter's table entry."""
    return Entry(ENTRY, identifiers(plan.arrays), strided, STRIDED_BIT)


def entry_text(columns: Entry) -> str:
    """Names of columns and bits, in C++."""
    names = [name.upper() if name in ENTRY else name for name in columns.names]
    bits = [f"{name} = {bit}" for name, bit in FLAGS.items()]
    strided = [f"STRIDED_{columns.names[place].removesuffix('_layout')}" for place in columns.layout.values()]
    bits += [f"{name} = {bit}" for name, bit in zip(strided, columns.bit.values(), strict=True)]
    return "\n".join(
        [
            f"enum {{ {', '.join(names)} }};  // columns of the table",
            f"enum {{ {', '.join(bits)} }};  // bits of FLAGS",
            f"enum {{ {', '.join(map(str.upper, LAYOUT.names))} }};  // words of a layout; the strides follow the lengths",
            f"enum {{ {', '.join(map(str.upper, CONTROL.names))} }};  // words of job.control",
            f"enum {{ {', '.join(map(str.upper, RESULT.names))} }};  // words of job.result",
        ]
    )


def layout_words(where: Placement, size: int) -> np.ndarray:
    """The layout of a strided array as kernels read it."""
    lengths, strides = where.lengths_and_strides(size)
    return np.array([len(lengths), *lengths, *strides], np.int64)


def write_chunk(sizes: np.ndarray, multiprocessors: int) -> int:
    """Elements of a chunk of the stages that write: many cost fewer looks at the table, few keep all multiprocessors busy."""
    wanted = multiprocessors * CHUNKS_EACH
    return max((chunk for chunk in WRITE_CHUNKS if int((-(-sizes // chunk)).sum()) >= wanted), default=WRITE_CHUNKS[0])


def chunk_table(sizes: np.ndarray, chunk: int) -> np.ndarray:
    """(parameter, number) of every chunk; empty parameters have one too, so that their block arrives."""
    counts = np.maximum(1, -(-sizes // chunk))
    parameters = np.repeat(np.arange(len(sizes)), counts)
    numbers = np.arange(len(parameters)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([parameters, numbers], axis=1).astype(np.int32)
