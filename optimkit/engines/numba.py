"""The numba engine: one compiled call runs a stage for all parameters of a bucket.

Kernels are generated text (`numba_text`), compiled once for a rule's structure and dtype, and kept
on disk as object code with a checksum. Workers claim chunks of 16,384 elements from a counter.
Small buckets run on the calling thread with the GIL held: giving it up can cost 5 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.resources
import linecache
import pickle
import platform
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from optimkit.engines import cache as disk
from optimkit.engines import threads
from optimkit.engines.canonical import LANES, UNIT
from optimkit.engines.numba_text import (
    ABSENT,
    CHUNK,
    COPY,
    ENTRY,
    FINISH,
    GATHER_G,
    GATHER_W,
    JOB,
    SCRATCH,
    ZERO_G,
    entry_words,
    kernel_text,
)
from optimkit.engines.runner import Member, Tables, counters
from optimkit.fusion.stages import Plan, Stage

SMALL = 1 << 20  # elements; below, one thread is faster than waking another
OPERATIONS = {"sum": 0, "sum_of_squares": 0, "max": 1, "min": 2}

_compiled: dict[tuple[str, int], Kernel] = {}
_compile_lock = threading.RLock()


class Kernel:
    """Compiled code: `free` gives up the GIL while it runs, `held` keeps it."""

    def __init__(self, address: int, words: int, keep: Any) -> None:
        kinds = [ctypes.c_int64] * words
        self.address, self._keep = address, keep
        self.free: Callable[..., None] = ctypes.CFUNCTYPE(None, *kinds)(address)
        self.held: Callable[..., None] = ctypes.PYFUNCTYPE(None, *kinds)(address)


def available() -> str:
    """Why numba can't be used here; empty if it can."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"numba can't be imported ({error}); pip install 'optimkit[numba]'"
    except Exception as error:  # numba refuses NumPy versions that it does not know with various errors
        return f"numba does not work with this NumPy {np.__version__}: {error}"
    return ""


@cache
def _environment() -> str:
    """All that object code depends on besides its text: versions, processor, our helpers."""
    import llvmlite
    import numba
    from llvmlite import binding

    helpers = importlib.resources.files("optimkit.engines").joinpath("numba_runtime.py").read_text()
    features = binding.get_host_cpu_features().flatten()
    versions = (numba.__version__, llvmlite.__version__, platform.python_version(), np.__version__, platform.machine())
    return "\n".join((*versions, binding.get_host_cpu_name(), features, helpers))


def compile_text(text: str, words: int = 1) -> Kernel:
    """The kernel of a text: from memory, from disk, or compiled."""
    with _compile_lock:
        kernel = _compiled.get((text, words))
        if kernel is None:
            key = disk.digest(text, _environment(), str(words))
            kernel = _load(key, words) or _compile(text, key, words)
            _compiled[text, words] = kernel
        return kernel


def _load(key: str, words: int) -> Kernel | None:
    """A kernel from disk; None if there is none, or not one that can be trusted."""
    payload = disk.kept(f"{key}.kernel")
    if payload is None:
        return None
    try:
        from numba.core.registry import cpu_target

        name, state = pickle.loads(payload)
        library = cpu_target.target_context.codegen().unserialize_library(state)
        kernel = Kernel(library.get_pointer_to_function(name), words, library)
    except (ImportError, AttributeError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError):
        return None
    counters.cache_hits += 1
    return kernel


def _compile(text: str, key: str, words: int) -> Kernel:
    import numba

    counters.compiles += 1
    filename = f"<optimkit kernel {key}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    scope: dict[str, Any] = {"__name__": f"optimkit_kernel_{key}"}
    exec(compile(text, filename, "exec"), scope)
    for name in ("merge", "swap", "sink"):  # what kernels call
        if name in scope:
            scope[name] = numba.njit(error_model="numpy")(scope[name])
    signature = numba.void(*[numba.int64] * words)
    function = numba.cfunc(signature, error_model="numpy")(scope["kernel"])
    with contextlib.suppress(AttributeError, RuntimeError):  # numba keeps these names private; without them, memory
        state = function._library.serialize_using_object_code()
        disk.keep(f"{key}.kernel", pickle.dumps((function._wrapper_name, state)))
    return Kernel(function.address, words, function)


class _Reductions:
    """What a stage that reads ends in: its operations and their results, and the words of a job that name them."""

    def __init__(self, members: int, stage: Stage) -> None:
        self.operations = np.array([OPERATIONS[node.op] for node in stage.reductions], np.int64)
        self.results = np.zeros((members, len(stage.reductions)))
        self.words = self.results.ctypes.data, self.operations.ctypes.data, len(self.operations)


class NumbaRunner:
    """The stages of one plan on the members of one bucket."""

    name = "numba"
    together = None
    keeps_addresses = True

    def __init__(self, plan: Plan, dtype: str, members: Sequence[Member]) -> None:
        self.plan, self.dtype, self.members = plan, dtype, members
        self.itemsize = np.dtype(dtype).itemsize
        self.kernels = [compile_text(kernel_text(plan, number, dtype)) for number in range(len(plan.stages))]
        self.finish = compile_text(FINISH) if plan.reading else None
        sizes = [member.size for member in members]
        self.total = sum(sizes)
        units = [-(-size // UNIT) for size in sizes]
        self.table = np.zeros((len(members), entry_words(plan)), np.int64)
        self.table[:, 0] = sizes
        self.table[:, 3] = np.cumsum([0, *units[:-1]])
        chunks = [(p, start) for p, size in enumerate(sizes) for start in range(0, size, CHUNK)]
        self.chunks = np.array(chunks, np.int64).reshape(-1, 2)
        self.counter = np.zeros(1, np.int64)
        self.rows = np.zeros((0, len(plan.hosts)), dtype)
        self.uniforms = np.zeros((len(members), len(plan.uniforms)), dtype)
        most = max((len(stage.reductions) for stage in plan.reading), default=0)
        self.partials = np.zeros((sum(units), most))
        self.layouts: dict[tuple[int, int], np.ndarray] = {}
        self.scratch: list[np.ndarray] = []
        self.scratch_bytes = max(most, 1) * LANES * 8 + SCRATCH
        self.jobs: list[np.ndarray] = []
        self.addresses: list[int] = []
        self.workers, self.copy = 1, 0
        self.reductions = [_Reductions(len(members), stage) for stage in plan.reading]
        self._fill_slots()
        self.members_changed(range(len(members)))

    def _fill_slots(self) -> None:
        for column, key in enumerate(self.plan.arrays):
            if isinstance(key, tuple):
                for p, member in enumerate(self.members):
                    self.table[p, len(ENTRY) + column] = member.slots[key].ctypes.data

    def members_changed(self, numbers: Sequence[int]) -> None:
        table, first = self.table, len(ENTRY)
        for p in numbers:
            member = self.members[p]
            flags = ZERO_G if member.zero_in_pass else 0
            table[p, first] = member.weight.__array_interface__["data"][0]
            if not member.weight.flags.c_contiguous:
                flags |= GATHER_W
                self._set_layout(p, 4, member.weight)
            gradient = member.gradient
            if gradient is None:
                flags |= ABSENT
            else:
                table[p, first + 1] = gradient.__array_interface__["data"][0]
                if gradient.dtype.itemsize != self.itemsize or not gradient.flags.c_contiguous:
                    flags |= GATHER_G
                    self._set_layout(p, 5, gradient)
            table[p, 2] = flags

    def gradients_moved(self, shifts: np.ndarray) -> None:
        self.table[:, len(ENTRY) + 1] += shifts

    def _set_layout(self, p: int, column: int, x: Any) -> None:
        """Describe a strided array to `copy`; see COPY."""
        bits = (x.dtype.itemsize == 8) | 2 * (self.itemsize == 8)
        shape, strides = (x.shape, x.strides) if x.ndim else ((1,), (0,))
        layout = np.array([len(shape), bits, *shape, *strides], np.int64)
        self.layouts[p, column] = layout
        self.table[p, column] = layout.ctypes.data
        if not self.copy:
            self.copy = compile_text(COPY, 6).address
            self.jobs.clear()

    def prepare(self, tables: Tables) -> None:
        if self.rows.shape != tables.rows.shape:
            self.rows = np.zeros(tables.rows.shape, self.dtype)
            self.jobs.clear()
            tables.rows_changed = True
        if tables.rows_changed:
            self.rows[...] = tables.rows
        if tables.row_of_changed:
            self.table[:, 1] = tables.row_of
        tables.rows_changed = tables.row_of_changed = False
        self.workers = 1 if self.total < SMALL else min(threads.get_num_threads(), len(self.chunks))
        while len(self.jobs) < self.workers:
            self.jobs.append(self._make_job(len(self.jobs)))
            self.addresses = [job.ctypes.data for job in self.jobs]

    def _make_job(self, thread: int) -> np.ndarray:
        """The words of a thread's job that do not change from stage to stage."""
        if len(self.scratch) <= thread:
            self.scratch.append(np.zeros(self.scratch_bytes // 8))
        job = np.zeros(len(JOB), np.int64)
        job[0], job[1], job[2] = self.chunks.ctypes.data, self.counter.ctypes.data, len(self.chunks)
        job[3], job[5] = self.table.ctypes.data, self.uniforms.ctypes.data
        job[6], job[7] = self.scratch[thread].ctypes.data, self.partials.ctypes.data
        job[4], job[10] = self.rows.ctypes.data, self.copy
        job[12], job[13] = len(self.members), 8 * self.table.shape[1]
        return job

    def _run(self, number: int, tables: Tables, zero: bool) -> None:
        if self.plan.uniforms:
            self.uniforms[...] = tables.uniforms
        kernel, addresses = self.kernels[number], self.addresses
        self.counter[0] = 0
        for job in self.jobs:
            job[11] = zero
        if self.workers == 1:
            (kernel.held if self.total < SMALL else kernel.free)(addresses[0])
        else:
            free = kernel.free
            threads.run(lambda thread: free(addresses[thread]), self.workers)

    def reduce(self, number: int, tables: Tables) -> np.ndarray:
        self._run(number, tables, False)
        reductions = self.reductions[number]
        job = self.jobs[0]
        job[8], job[9], job[14] = reductions.words
        assert self.finish is not None
        self.finish.held(self.addresses[0])
        return reductions.results

    def commit(self, tables: Tables, zero: bool) -> None:
        self._run(len(self.kernels) - 1, tables, zero)
