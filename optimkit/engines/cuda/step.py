"""A warm step of CuPy arrays: one compiled call looks at the gradients, places them in the table and fills the rows of numbers.

    step = CudaStep(before, now, present, gradients, ranges)           # as `engines/cpu/step.py`
    step.serve(buckets, shared, checked, steps)
    step.run(standing, values, zero)                                   # 0: something is new, and nothing was launched

What is left to Python is to find the table on the device, where it is not carried by the launch, and to launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from optimkit.arrays import DTYPES
from optimkit.engines.atomic import at_once
from optimkit.engines.cpu.kernels import available, compile_text
from optimkit.engines.cpu.look import ANSWERS, COUNT, ONLY_LOOK, PREPARE, TOLD, Look, look_text, names_text
from optimkit.engines.cpu.rows import ROW_OF, rows_text
from optimkit.engines.cuda.job import FLAGS, MOVING
from optimkit.engines.cuda.objects import ANY_DEVICE, cupy_objects
from optimkit.engines.cuda.table import ALIGNMENT
from optimkit.engines.tables import Columns

JOB = Columns(*TOLD, *ANSWERS, "buckets", "n_buckets", "steps")
BUCKET = Columns(
    "members", "places", "table", "entry_bytes", "gradient", "flags", "row", "bits", "dense", "counting", "counts", "groups",
    "n_groups", "numbers", "number_bytes", "rows", "row_bytes", "wide", "wide_bytes", "fill_row", "row_group", "row_count",
    "sets", "n_sets", "n_rows", "changed", "found",
)  # fmt: skip

_ANSWERS = slice(BUCKET.n_rows, BUCKET.found + 1)  # rows, changed, found

_TEXT = """\
# a warm step on a device: gradients in the table, rows of host values, counts
from optimkit.engines.cpu.language import call, int64, load_int64 as word, store_int64 as put

{names}


{look}

def gradients_of(job, bucket) -> int64:
    # how many parameters of the bucket have a gradient
    here, places, found = word(job, JOB_HERE), word(bucket, PLACES), 0
    for p in range(word(bucket, MEMBERS)):
        found += word(here, word(places, p))
    return found


{rows}

def prepare(job, bucket):
    # entries of the parameters' table, and a row of host values for each (group, count) that occurs
    now, before, here, places = word(job, JOB_NOW), word(job, JOB_BEFORE), word(job, JOB_HERE), word(bucket, PLACES)
    table, entry_bytes = word(bucket, TABLE), word(bucket, ENTRY_BYTES)
    gradient, flags_at, row_at = word(bucket, GRADIENT), word(bucket, FLAGS), word(bucket, ROW)
    bits, dense, groups, counts = word(bucket, BITS), word(bucket, DENSE), word(bucket, GROUPS), word(bucket, COUNTS)
    row_group, row_count = word(bucket, ROW_GROUP), word(bucket, ROW_COUNT)
    rows = row = changed = 0
    if word(bucket, COUNTING) == 0:
        rows = word(bucket, N_GROUPS)
        for group in range(rows):
            fill_row(bucket, group, group, 1)
    for p in range(word(bucket, MEMBERS)):
        place, entry, flags = word(places, p), table + p * entry_bytes, word(bits, p)
        address = word(entry, gradient)
        if word(here, place):
            address += word(now, place) - word(before, place)
            if word(dense, p) and address % {alignment} == 0:
                flags = flags + {vector}
            group = word(groups, p)
            if word(bucket, COUNTING):
                count = word(counts, p) + 1
                if rows == 0 or word(row_group, row) != group or word(row_count, row) != count:
                    row = row_of(bucket, rows, group, count)
                    rows = max(rows, row + 1)
            else:
                row = group
            own = row
        else:
            flags, own = flags + {absent}, 0  # its row is not used, but must exist
        changed += word(entry, flags_at) != flags or word(entry, gradient) != address or word(entry, row_at) != own
        put(entry, flags_at, flags)
        put(entry, row_at, own)
        put(entry, gradient, address)
    put(bucket, N_ROWS, rows)
    put(bucket, CHANGED, word(bucket, CHANGED) + changed)
    if word(bucket, CHANGED):
        put(bucket, FOUND, known_set(bucket))


def known_set(bucket) -> int64:
    # which of the tables that are on the device tells the same; -1 for none
    n, sets, table = word(bucket, MEMBERS), word(bucket, SETS), word(bucket, TABLE)
    entry_bytes, gradient = word(bucket, ENTRY_BYTES), word(bucket, GRADIENT)
    flags_at, row_at = word(bucket, FLAGS), word(bucket, ROW)
    for k in range(word(word(bucket, N_SETS), 0)):
        known, p = sets + k * 24 * n, 0
        while p < n:
            entry = table + p * entry_bytes
            flags = word(entry, flags_at)
            there = 1 - (flags & {absent}) // {absent}
            if word(entry, gradient) * there != word(known, p) or flags != word(known, n + p):
                break
            if word(entry, row_at) * there != word(known, 2 * n + p):
                break
            p += 1
        if p == n:
            return k
    return -1


def kernel(job, standing, values, mode, zero) -> int64:
    # 1 where the step can be launched, or was counted; 0 where something is new, and nothing was changed
    buckets, n = word(job, JOB_BUCKETS), word(job, JOB_N)
    if mode == {counting}:
        for b in range(word(job, JOB_N_BUCKETS)):
            if word(buckets + b * {bucket_bytes}, COUNTING):
                count_up(job, buckets + b * {bucket_bytes})
        put(word(job, JOB_STEPS), 0, word(word(job, JOB_STEPS), 0) + 1)
        return 1
    if mode != {looking} and not same_objects(job, standing):
        return 0
    look(job, values)
    if mode == {looking} or word(job, JOB_OTHER) or word(job, JOB_MEET) or not same_weights(job):
        return 0
    for b in range(word(job, JOB_N_BUCKETS)):
        if not gradients_of(job, buckets + b * {bucket_bytes}):
            return 0
    for b in range(word(job, JOB_N_BUCKETS)):
        prepare(job, buckets + b * {bucket_bytes})
    for i in range(n):
        put(word(job, JOB_BEFORE), i, word(word(job, JOB_NOW), i))
        put(word(job, JOB_PRESENT), i, word(word(job, JOB_HERE), i))
    return 1
"""


@cache
def _text() -> str:
    objects = cupy_objects()
    assert objects is not None
    look = look_text(objects)
    return _TEXT.format(
        names=names_text(JOB, look + ROW_OF + _TEXT, BUCKET), look=look, rows=ROW_OF, alignment=ALIGNMENT,
        vector=FLAGS["VECTOR"], absent=FLAGS["ABSENT"], counting=COUNT, looking=ONLY_LOOK, bucket_bytes=8 * len(BUCKET),
    )  # fmt: skip


class CudaStep(Look):
    """The steps of an optimizer with all its arrays on one device, where nothing but gradients' addresses is new."""

    norm = None  # it is on the device: `StepResult` fetches it

    def __init__(self, *known: np.ndarray) -> None:
        objects = cupy_objects()
        assert objects is not None
        super().__init__(_text(), JOB, objects, *known)

    def device_of(self, seen: tuple[Any, ...]) -> int:
        return int(seen[4])

    def keep_weight(self, place: int, weight: Any, seen: tuple[Any, ...]) -> None:
        """The weight at a place is this array; one that was changed since it was checked is taken for another."""
        shape, dtype = seen
        same = weight.shape == shape and weight.dtype is dtype
        super().keep_weight(place, weight, (dtype, shape, weight.strides, id(weight.data) if same else -1))

    def serve(
        self, buckets: Sequence[tuple[Any, ...]], shared: Mapping[Any, Any], checked: bool, steps: np.ndarray
    ) -> bool:
        """Run steps of these buckets from now on: (runner, places, counts, groups, numbers, ...) of each.

        False where that can't be: a step has to wait for the device, make calls, or go to several devices.
        """
        runners = [bucket[0] for bucket in buckets]
        self.launches = runners[0].launches()
        rows = [rows_text(runner.plan, DTYPES["float64"]) for runner in runners]
        if any(text is None for text in rows) or not self.launches.can_be_warm(checked):
            return False
        self.runners, self.steps = runners, steps
        self.fill_rows = [compile_text(text, 4) for text in rows if text is not None]
        self.scratch = [np.zeros((2, len(bucket[1])), np.int64) for bucket in buckets]
        self.buckets = np.array([self._bucket_words(number, *bucket[:5]) for number, bucket in enumerate(buckets)], np.int64)
        job = self.job
        job[JOB.buckets], job[JOB.n_buckets], job[JOB.steps] = self.buckets.ctypes.data, len(buckets), steps.ctypes.data
        return True

    def _bucket_words(
        self, number: int, runner: Any, places: np.ndarray, counts: np.ndarray, groups: np.ndarray, numbers: np.ndarray
    ) -> list[int]:
        table, scratch = runner.table, self.scratch[number]
        rows = runner.host_rows(len(numbers))
        told = {"members": len(places), "gradient": MOVING.gradient, "flags": MOVING.flags, "row": MOVING.row}
        told |= {"entry_bytes": table.moving.strides[0], "number_bytes": numbers.strides[0], "row_bytes": rows.strides[0]}
        told |= {"fill_row": self.fill_rows[number].address, "n_groups": len(numbers), "wide_bytes": rows.strides[0]}
        told |= {"counting": not self.launches.shared.device_count, "n_rows": 0, "changed": 1, "found": -1}
        tables = {"places": places, "table": table.moving, "bits": table.flags, "dense": table.dense, "counts": counts}
        tables |= {"groups": groups, "numbers": numbers, "rows": rows, "row_group": scratch[0], "row_count": scratch[1]}
        tables |= {"wide": rows, "sets": table.sets, "n_sets": table.n_sets}  # rows are float64 as they are
        told |= {name: array.ctypes.data for name, array in tables.items()}
        return [int(told[name]) for name in BUCKET.names]

    def run(self, standing: list[Any], values: list[Any], zero: bool) -> int:
        """Take a step with these gradients; 0, and nothing is launched, where something is new, or there is none."""
        stream = self.launches.warm_stream()
        if stream is None or not self.kernel(self.address, id(standing), id(values), PREPARE, zero):
            return 0
        for runner, words in zip(self.runners, self.buckets, strict=True):
            rows, changed, found = words[_ANSWERS].tolist()
            runner.begin_warm(rows, changed, found, stream)
            if changed:
                words[BUCKET.changed] = 0
        at_once([*self.launches.warm(stream, zero), self.count])
        return 1

    prepare = run  # nothing is done on threads

    @property
    def count(self) -> Callable[[], int]:
        """What counts, where the kernels were launched: a call of compiled code."""
        return partial(self.kernel, self.address, 0, 0, COUNT, False)


@cache
def works() -> bool:
    """Whether there is a compiler, and CuPy's arrays lie in memory as we know: tried on some."""
    if available() or cupy_objects() is None:
        return False
    import cupy

    memory = cupy.cuda.UnownedMemory(1 << 20, 1 << 16, None, ANY_DEVICE)
    here = cupy.cuda.MemoryPointer(memory, 0)
    plain, other = cupy.ndarray((3, 5), np.float32, memptr=here), cupy.ndarray((5, 3), np.float32, memptr=here).T
    odd = cupy.ndarray((3, 5), np.float32, memptr=cupy.cuda.MemoryPointer(memory, 2))
    values = [plain, cupy.ndarray((3, 5), np.float64, memptr=here), None, plain[:, ::-1], np.float32(1), other, odd, plain[:2]]
    n = len(values)
    step = CudaStep(*np.zeros((3, n), np.int64), np.zeros((n, 2), np.int64), np.zeros((2 * n, 2), np.int64))
    for place in range(n):
        step.keep(place, (cupy.ndarray, plain.dtype, plain.shape, plain.strides, ANY_DEVICE))
    return step.compare(values) == [1, 3, 4, 5, 6, 7] and step.tables.now[0] == plain.data.ptr
