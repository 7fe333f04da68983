"""The CPU engine: one compiled call runs a stage for all parameters of a bucket.

Workers claim chunks of 16,384 elements from a counter. Small buckets run on the calling thread with the GIL
held: giving it up can cost 5 ms.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np

from optimkit.arrays import DTYPES, DType, Placement
from optimkit.engines import threads
from optimkit.engines.atomic import at_once
from optimkit.engines.canonical import LANES, UNIT
from optimkit.engines.cpu.copies import FINISH, OPERATIONS, copy_text, layout_words
from optimkit.engines.cpu.kernels import Kernel, Loops, compile_text
from optimkit.engines.cpu.text import ABSENT, CHUNK, JOB, STRIDED, WORD, ZERO_G, entry_columns, kernel_text, scratch_bytes
from optimkit.engines.protocol import Call, Member, Tables
from optimkit.fusion.stages import GRADIENT, WEIGHT, Plan, Stage

SMALL = 1 << 20  # elements; below, one thread is faster than waking another


class _Reductions:
    """What a stage that reduces ends in: its operations and their results, and the words of a job that name them."""

    def __init__(self, members: int, stage: Stage) -> None:
        self.operations = np.array([OPERATIONS[node.op] for node in stage.reductions], np.int64)
        self.results = np.zeros((members, len(stage.reductions)))
        self.words = self.results.ctypes.data, self.operations.ctypes.data, len(self.operations)


class CpuRunner:
    """The stages of one plan on the members of one bucket."""

    keeps_addresses = True

    def __init__(self, plan: Plan, dtype: DType, members: Sequence[Member]) -> None:
        self.plan, self.dtype, self.members = plan, dtype, members
        self.compute = np.dtype(dtype.compute)
        self.layouts: dict[tuple[int, Hashable], np.ndarray] = {}
        self.copies: dict[DType, Kernel] = {}  # what the layouts have the addresses of
        others = {key: [Placement.of(member.arrays[key]) for member in members] for key in plan.arrays[2:]}
        self.strided = (*STRIDED, *(key for key, found in others.items() if any(where.geometry for where in found)))
        self.columns = entry_columns(plan, self.strided)
        texts = [kernel_text(plan, number, dtype, self.strided) for number in range(len(plan.stages))]
        loops: list[Loops] = ["unrolled" if stage.reductions else "vectorized" for stage in plan.stages]
        self.kernels = [compile_text(text, loops=each) for text, each in zip(texts, loops, strict=True)]
        self.finish = compile_text(FINISH, loops="vectorized") if plan.reducing else None
        sizes = [member.size for member in members]
        self.threaded = sum(sizes) >= SMALL
        units = [-(-size // UNIT) for size in sizes]
        self.table = np.zeros((len(members), len(self.columns)), np.int64)
        self.table[:, self.columns.size] = sizes
        self.table[:, self.columns.first_unit] = np.cumsum([0, *units[:-1]])
        chunks = [(p, start) for p, size in enumerate(sizes) for start in range(0, size, CHUNK)]
        self.chunks = np.array(chunks, np.int64).reshape(-1, 2)
        self.counter = np.zeros(1, np.int64)
        self.rows = np.zeros((len(members), len(plan.hosts)), self.compute)  # at most one for each member
        self.uniforms = np.zeros((len(members), len(plan.uniforms)), self.compute)
        most = max((len(stage.reductions) for stage in plan.stages), default=0)
        self.partials = np.zeros((sum(units), most))
        self.scratch: list[np.ndarray] = []
        self.scratch_words = max(most, 1) * LANES + scratch_bytes(self.strided) // WORD
        self.jobs: list[np.ndarray] = []
        self.stage_jobs: list[np.ndarray] = []
        self.addresses: list[int] = []
        self.workers = 1
        self.helpers = threads.Helpers()
        self._make_job(0)
        self.reductions = {number: _Reductions(len(members), plan.stages[number]) for number in plan.reducing}
        self.gathered = np.zeros(len(members), np.int64)  # bits of the flags that stay: those of slots
        for key, found in others.items():
            for p, where in enumerate(found):
                self.gathered[p] |= self._place(p, key, where)
        self.table[:, self.columns.flags] = ABSENT  # until a gradient is lent

    def _place(self, p: int, key: Hashable, where: Placement) -> int:
        """Say in the table where an array lies; the bit of the flags by which it is gathered, or 0."""
        self.table[p, self.columns.address[key]] = where.address
        if where.geometry is None and (where.dtype is self.dtype or key not in (WEIGHT, GRADIENT)):
            return 0  # what is of our own making has the dtype that the kernel expects
        layout = self.layouts[p, key] = layout_words(where, self.members[p].size, self._copy(where.dtype))
        self.table[p, self.columns.layout[key]] = layout.ctypes.data
        return self.columns.bit[key]

    def _copy(self, stored: DType) -> int:
        """The address of what copies arrays of a dtype to and from scratch memory."""
        kernel = self.copies[stored] = compile_text(copy_text(stored, DTYPES[self.dtype.compute]), 6, "vectorized")
        return kernel.address

    def arrays_changed(self, numbers: Sequence[int]) -> None:
        for p in numbers:
            member = self.members[p]
            flags = int(self.gathered[p]) | (ZERO_G if member.zero_in_pass else 0)
            flags |= int(self.table[p, self.columns.flags]) & ABSENT
            flags |= self._place(p, WEIGHT, Placement.of(member.weight))
            flags |= self._place(p, GRADIENT, Placement.of(member.gradient))
            self.table[p, self.columns.flags] = flags

    def presence_changed(self, active: np.ndarray) -> None:
        flags = self.table[:, self.columns.flags]
        self.table[:, self.columns.flags] = (flags & ~ABSENT) | ABSENT * ~active

    def compile_ahead(self) -> None:
        for name in self.dtype.gradients:
            self._copy(DTYPES[name])

    def gradients_moved(self, shifts: np.ndarray) -> None:
        self.table[:, self.columns.address[GRADIENT]] += shifts

    def prepare(self, tables: Tables) -> None:
        if tables.rows_changed:
            with np.errstate(all="ignore"):
                self.rows[: len(tables.rows)] = tables.rows
        if tables.row_of_changed:
            self.table[:, self.columns.row] = tables.row_of
        tables.rows_changed = tables.row_of_changed = False
        self.ready_threads()

    def ready_threads(self) -> None:
        """A job for each thread that the next call may use."""
        at_once(self.helpers.waits)  # where a step was interrupted before it waited for them
        self.workers = 1 if not self.threaded else min(threads.get_num_threads(), len(self.chunks))
        for thread in range(len(self.jobs), self.workers):
            self._make_job(thread)

    def job_of(self, number: int) -> np.ndarray:
        """A job of its own for a stage that reduces, on this thread."""
        job = self.jobs[0].copy()
        job[JOB.results], job[JOB.operations], job[JOB.count] = self.reductions[number].words
        return job

    def _make_job(self, thread: int) -> None:
        """The words of a thread's job that do not change from stage to stage."""
        if len(self.scratch) <= thread:
            self.scratch.append(np.zeros(self.scratch_words))
        job = np.zeros(len(JOB), np.int64)
        job[JOB.chunks], job[JOB.n_chunks] = self.chunks.ctypes.data, len(self.chunks)
        job[JOB.counter], job[JOB.scratch] = self.counter.ctypes.data, self.scratch[thread].ctypes.data
        job[JOB.table], job[JOB.n_params] = self.table.ctypes.data, len(self.members)
        job[JOB.entry_bytes] = WORD * len(self.columns)
        job[JOB.rows], job[JOB.uniforms] = self.rows.ctypes.data, self.uniforms.ctypes.data
        job[JOB.partials] = self.partials.ctypes.data
        self.jobs.append(job)
        self.addresses.append(job.ctypes.data)

    def _calls(self, number: int, zero: bool = False) -> list[Call]:
        """What runs a stage, on as many threads as there is work for."""
        kernel, addresses = self.kernels[number], self.addresses
        self.counter[0] = 0
        for job in self.jobs:
            job[JOB.zero] = zero
        if self.workers == 1:
            return [partial(kernel.free if self.threaded else kernel.held, addresses[0])]
        self.helpers = threads.Helpers([partial(kernel.free, address) for address in addresses[1 : self.workers]])
        return [*self.helpers.starts, partial(kernel.free, addresses[0]), *self.helpers.waits]

    def reduce(self, number: int, tables: Tables) -> np.ndarray:
        self._take_uniforms(tables)
        at_once(self._calls(number))
        reductions = self.reductions[number]
        job = self.jobs[0]
        job[JOB.results], job[JOB.operations], job[JOB.count] = reductions.words
        assert self.finish is not None
        self.finish.held(self.addresses[0])
        return reductions.results

    def fill(self, number: int, tables: Tables) -> None:
        self._take_uniforms(tables)
        at_once(self._calls(number))

    def commit(self, tables: Tables, zero: bool) -> list[Call]:
        self._take_uniforms(tables)
        return self.commit_warm(zero)

    def committed(self) -> None:
        pass

    def commit_warm(self, zero: bool) -> list[Call]:
        """The same, where compiled code has prepared the step."""
        return self._calls(len(self.kernels) - 1, zero)

    def _take_uniforms(self, tables: Tables) -> None:
        if self.plan.uniforms:
            with np.errstate(all="ignore"):
                self.uniforms[...] = tables.uniforms
