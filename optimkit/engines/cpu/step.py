"""A warm step in one compiled call: look at the gradients, fill the rows of host values, run the kernels, count.

    step = CompiledStep(before, now, present, gradients, ranges)       # `Tables`
    step.keep(place, fingerprint)                                      # a gradient was checked, and looks so
    step.serve([part], shared, checked, steps)                         # `program.Part`: the buckets that it runs
    step.expect(ids)                                                   # of what has to stand in the containers
    step.run(standing, values, zero)                                   # 0: something is new, and nothing was written

Nothing of Python runs in between, so a step happened or it did not, whatever interrupts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from optimkit.engines.cpu import text
from optimkit.engines.cpu.kernels import compile_text
from optimkit.engines.cpu.look import (
    ANSWERS,
    COUNT,
    NUMPY,
    ONLY_LOOK,
    PREPARE,
    RUN,
    TOLD,
    Look,
    lists_are_known,
    look_text,
    names_text,
)
from optimkit.engines.cpu.program import CALL, Part, Program
from optimkit.engines.cpu.rows import ROW_OF, rows_text
from optimkit.engines.tables import Columns
from optimkit.fusion.stages import GRADIENT

JOB = Columns(*TOLD, *ANSWERS, "buckets", "n_buckets", "program", "n_reads", "n_program", "checked", "norm", "steps")
BUCKET = Columns(
    "members", "places", "table", "entry_bytes", "gradient", "counts", "groups", "numbers", "number_bytes",
    "rows", "row_bytes", "wide", "wide_bytes", "fill_row", "row_group", "row_count", "write_job",
)  # fmt: skip

_TEXT = """\
# a warm step: gradients, rows of host values, kernels, counts
from optimkit.engines.cpu.language import call, int64, load_float64, load_int64 as word, store_int64 as put

{names}


{look}

{rows}

def prepare(job, bucket):
    # entries of the parameters' table, and a row of host values for each (group, count) that occurs
    now, before, here = word(job, JOB_NOW), word(job, JOB_BEFORE), word(job, JOB_HERE)
    table, entry_bytes, gradient = word(bucket, TABLE), word(bucket, ENTRY_BYTES), word(bucket, GRADIENT)
    places, counts, groups = word(bucket, PLACES), word(bucket, COUNTS), word(bucket, GROUPS)
    row_group, row_count = word(bucket, ROW_GROUP), word(bucket, ROW_COUNT)
    rows = row = 0
    for p in range(word(bucket, MEMBERS)):
        place, entry = word(places, p), table + p * entry_bytes
        flags = word(entry, FLAGS)
        flags = flags - (flags & {absent})
        if word(here, place):
            put(entry, gradient, word(entry, gradient) + word(now, place) - word(before, place))
            put(entry, FLAGS, flags)
            group, count = word(groups, p), word(counts, p) + 1
            if rows == 0 or word(row_group, row) != group or word(row_count, row) != count:
                row = row_of(bucket, rows, group, count)
                rows = max(rows, row + 1)
            put(entry, ROW, row)
        else:
            put(entry, FLAGS, flags + {absent})


def run(program, first, last):
    for k in range(first, last):
        each = program + k * {call_bytes}
        put(word(each, CALL_COUNTER), 0, 0)
        call(word(each, FUNCTION), word(each, CALL_JOB))


def kernel(job, standing, values, mode, zero) -> int64:
    # 1 where the step is taken, or may be; 0 where something is new, and nothing was changed
    buckets, program, n = word(job, JOB_BUCKETS), word(job, JOB_PROGRAM), word(job, JOB_N)
    if mode != {counting}:
        if mode != {looking} and not same_objects(job, standing):
            return 0
        look(job, values)
        if mode == {looking} or word(job, JOB_OTHER) or word(job, JOB_MEET) or not word(job, JOB_ACTIVE):
            return 0
        if (zero and word(job, JOB_READ_ONLY)) or not same_weights(job):
            return 0
        for b in range(word(job, JOB_N_BUCKETS)):
            prepare(job, buckets + b * {bucket_bytes})
        for i in range(n):
            put(word(job, JOB_BEFORE), i, word(word(job, JOB_NOW), i))
            put(word(job, JOB_PRESENT), i, word(word(job, JOB_HERE), i))
        if mode == {preparing}:
            return 1
        run(program, 0, word(job, JOB_N_READS))
        norm = load_float64(word(job, JOB_NORM), 0)
        if word(job, JOB_CHECKED) and norm - norm != 0.0:
            return 0
        for b in range(word(job, JOB_N_BUCKETS)):
            put(word(buckets + b * {bucket_bytes}, WRITE_JOB), {zero}, zero)
        run(program, word(job, JOB_N_READS), word(job, JOB_N_PROGRAM))
    for b in range(word(job, JOB_N_BUCKETS)):
        count_up(job, buckets + b * {bucket_bytes})
    put(word(job, JOB_STEPS), 0, word(word(job, JOB_STEPS), 0) + 1)
    return 1
"""


@cache
def _text() -> str:
    look = look_text(NUMPY)
    names = names_text(JOB, look + ROW_OF + _TEXT, BUCKET, CALL, Columns(*text.ENTRY))
    return _TEXT.format(
        names=names, look=look, rows=ROW_OF, absent=text.ABSENT,
        counting=COUNT, looking=ONLY_LOOK, preparing=PREPARE, bucket_bytes=8 * len(BUCKET), call_bytes=8 * len(CALL),
        zero=text.JOB.zero,
    )  # fmt: skip


class CompiledStep(Look):
    """The steps of an optimizer where nothing but the addresses of its gradients is new."""

    def __init__(self, *known: np.ndarray) -> None:
        super().__init__(_text(), JOB, NUMPY, *known)
        self.parts: Sequence[Part] = ()

    def serve(
        self, buckets: Sequence[tuple[Any, ...]], shared: Mapping[Any, np.ndarray], checked: bool, steps: np.ndarray
    ) -> bool:
        """Run steps of these buckets, given as `Part`, from now on; False where that can't be.

        `shared` are the slots of the optimizer. `checked`: a step is not taken where the norm of the gradients is not
        finite. Steps are counted in `steps`.
        """
        parts = [Part(*bucket) for bucket in buckets]
        rows = [rows_text(part.runner.plan, part.runner.dtype) for part in parts]
        program = Program(parts, self.tables.present, shared)
        if any(text is None for text in rows) or not program.possible():
            return False
        program.lay_out()
        self.program, self.steps = program, steps
        self.fill_rows = [compile_text(text, 4) for text in rows if text is not None]
        self.scratch = [np.zeros((2, len(part.places)), np.int64) for part in parts]
        self.buckets = np.array([self._bucket_words(number) for number in range(len(parts))], np.int64)
        job = self.job
        job[JOB.buckets], job[JOB.n_buckets] = self.buckets.ctypes.data, len(parts)
        job[JOB.program], job[JOB.n_program] = program.calls.ctypes.data, len(program.calls)
        job[JOB.n_reads], job[JOB.checked] = program.n_reads, checked and program.has_norm
        job[JOB.norm], job[JOB.steps] = program.norm.ctypes.data, steps.ctypes.data
        return True

    def _bucket_words(self, number: int) -> list[int]:
        part, wide, scratch = self.program.parts[number], self.program.wide[number], self.scratch[number]
        runner = part.runner
        told = {"members": len(part.places), "gradient": runner.columns.address[GRADIENT]}
        told |= {"fill_row": self.fill_rows[number].address, "entry_bytes": runner.table.strides[0]}
        told |= {"number_bytes": part.numbers.strides[0], "row_bytes": runner.rows.strides[0], "wide_bytes": wide.strides[0]}
        tables = {"places": part.places, "table": runner.table, "counts": part.counts, "groups": part.groups}
        tables |= {"numbers": part.numbers, "rows": runner.rows, "wide": wide, "write_job": runner.jobs[0]}
        tables |= {"row_group": scratch[0], "row_count": scratch[1]}
        told |= {name: table.ctypes.data for name, table in tables.items()}
        return [told[name] for name in BUCKET.names]

    @property
    def norm(self) -> float | None:
        """The norm of all gradients of the latest step, where it was computed."""
        return float(self.program.norm[0]) if self.program.has_norm else None

    def run(self, standing: list[Any], values: list[Any], zero: bool) -> int:
        """Take a step with these gradients; 0, and nothing is written, where something is new, or there is none."""
        return self.kernel(self.address, id(standing), id(values), RUN, zero)

    def prepare(self, standing: list[Any], values: list[Any], zero: bool) -> int:
        """The same, but for the kernels, which the caller runs: on several threads. Then `count` follows."""
        return self.kernel(self.address, id(standing), id(values), PREPARE, zero)

    @property
    def count(self) -> Callable[[], int]:
        """What counts, where the kernels have run: a call of compiled code."""
        return partial(self.kernel, self.address, 0, 0, COUNT, False)


@cache
def works() -> bool:
    """Whether lists and arrays lie in memory as `LIST` and `NUMPY` have it: tried on some arrays."""
    if not lists_are_known():
        return False
    plain, other = np.zeros((3, 5), np.float32), np.zeros((5, 3), np.float32).T
    values = [plain, plain.astype(np.float64), None, plain[:, ::-1], np.float32(1), other]
    n = len(values)
    step = CompiledStep(*np.zeros((3, n), np.int64), np.zeros((n, 2), np.int64), np.zeros((2 * n, 2), np.int64))
    for place in range(n):
        step.keep(place, (np.ndarray, plain.dtype, plain.shape, plain.strides))
    different = step.compare(values)
    return different == [1, 3, 4, 5] and step.tables.now[0] == plain.ctypes.data and step.read_only
