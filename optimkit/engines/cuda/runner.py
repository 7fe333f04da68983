"""The CUDA engine: one launch runs a stage for all parameters of a bucket.

What a launch needs is a `Job`, passed by value: addresses of tables in device memory, and the scalar
rows while they fit. It is filled where something changed. In a warm step a launch is one call of the driver with
arguments made before; nothing moves, and nothing waits for the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.arrays import DType, Placement, StreamOrder
from optimkit.counting import counters
from optimkit.engines.cuda import compile as cuda_compile
from optimkit.engines.cuda.context import check_device, ready_thread
from optimkit.engines.cuda.job import (
    CONTROL,
    MOVING,
    READ_CHUNK,
    READ_THREADS,
    ROWS,
    STRIDED,
    WRITE_THREADS,
    chunk_table,
    entry_columns,
    job_dtype,
    room_by_value,
    write_chunk,
)
from optimkit.engines.cuda.results import Result, Results
from optimkit.engines.cuda.table import MemberTable
from optimkit.engines.cuda.text import module_text
from optimkit.engines.cuda.uniform import FINISH_THREADS, UniformText
from optimkit.engines.cuda.upload import uploader
from optimkit.engines.protocol import Call, Member, Shared, Tables
from optimkit.fusion.graph import Node
from optimkit.fusion.stages import Plan

MOST_SLOTS = 64  # per optimizer: the bits of `write_shared`


class CudaRunner:
    """The stages of one plan on the members of one bucket, on one device."""

    keeps_addresses, threaded = True, False
    result: Result  # of the last step

    def __init__(self, plan: Plan, dtype: DType, members: Sequence[Member]) -> None:
        self.plan, self.dtype, self.members = plan, dtype, members
        self.device = check_device(members[0].weight.device)
        self.others = {key: [Placement.of(member.arrays[key]) for member in members] for key in plan.arrays[2:]}
        strided = [key for key, found in self.others.items() if any(where.geometry for where in found)]
        self.strided = (*STRIDED, *strided)
        self.columns = entry_columns(plan, self.strided)
        self.contributes = False
        self.first_place = 0  # of the first member with a gradient, among all parameters
        self._told: dict[str, int] = {}  # words of the job that change from step to step, as they are
        self._kept: dict[str, Any] = {}  # the arrays behind the job's addresses
        self._outgrown: list[Any] = []  # others, which launches under way may read
        self._uploader = uploader(self.device.id)
        self._sent_rows = np.zeros(0)
        self.stream: Any = None  # of the step under way
        self.elsewhere = False  # another device is the current one

    def connect(self, launches: Any, place: int, shared: Shared, places: Sequence[int], contributions: Any, slots: Any) -> None:
        """Take the place among the buckets of the optimizer, make the tables, and compile. `place` is that of the device."""
        if len(shared.slots) > MOST_SLOTS:
            raise ValueError(
                f"an optimizer can have {MOST_SLOTS} slots with extent 'optimizer' on a CUDA device, not {len(shared.slots)}"
            )
        self.launches, self.alone = weakref.ref(launches), len(launches.runners) == 1
        self.shared, self.places = shared, np.array(places, np.int64)
        name = arrays.device(self.members[0].weight)
        self.order = shared.orders.get(name) or StreamOrder(self.device, self)
        self.uniform = UniformText(self.plan, shared.labels, list(shared.slots))
        by_value = room_by_value(0 if shared.capturable else len(MOVING) * len(self.members))
        options = shared.device_count, shared.skip, self.strided, by_value
        self.text = module_text(self.plan, self.dtype, shared.labels, list(shared.slots), *options)
        self.job = np.zeros((), job_dtype(by_value))
        self._rows = self.job["rows"]
        self._arguments = np.array([self.job.ctypes.data], np.uint64)  # a launch takes the address of this
        self._argument = self._arguments.ctypes.data
        carried = self.job["moving"] if by_value else None
        self.table = MemberTable(self.columns, self.dtype, [member.size for member in self.members], self.order, carried)
        self.table.set_places(places)
        for key, found in self.others.items():
            for p, where in enumerate(found):
                self.table.place_slot(p, key, where)
        self._keep("contributions", contributions)
        self._keep("shared", slots)
        self.job["entries"], self.job["labels"] = shared.entries, shared.totals
        self.job["devices"], self.job["device"] = len(launches.devices), place
        with self.device:
            self.module = cuda_compile.load(self.text, self.device.id)
            self.order.allocates()
            self._make_tables()
            self.results = Results(self.order, shared.capturable)
        reading, writing = (len(self._kept["read_chunks"]), READ_THREADS), (len(self._kept["chunks"]), WRITE_THREADS)
        # Kernels by the number of their stage: those that reduce, those that write what calls are given; by round.
        self.passes = {number: self._kernel(f"read_stage_{number}", *reading) for number in self.plan.reducing}
        self.passes |= {number: self._kernel(f"fill_stage_{number}", *writing) for number in self.plan.filling}
        self.finishing = {number: self._kernel(f"finish_{number}", 1, FINISH_THREADS) for number in self.uniform.numbers}
        self.last = self._kernel("write_stage", *writing)

    def _make_tables(self) -> None:
        """Tables in device memory, made once."""
        import cupy

        sizes = np.array(self.table.sizes, np.int64)
        most = max((len(stage.reductions) for stage in self.plan.stages), default=0)
        n = len(sizes)
        chunk = write_chunk(sizes, self.device.attributes["MultiProcessorCount"])
        self.job["chunk"] = chunk
        self._keep("chunks", cupy.asarray(chunk_table(sizes, chunk)))
        self._keep("read_chunks", cupy.asarray(chunk_table(sizes, READ_CHUNK)))
        self._keep("uniforms", cupy.zeros(n * self.uniform.width))
        self._keep("by_row", cupy.zeros(n * self.uniform.row_width))
        self._keep("slots", cupy.zeros((n, len(self.uniform.slots))))
        self._keep("counts", cupy.zeros(n, np.int64))
        self._keep("next_counts", cupy.zeros(n, np.int64))
        self._keep("arrived", cupy.zeros(n, np.uint32))
        self._keep("control", cupy.zeros(len(CONTROL), np.uint32))
        self._keep("partials", cupy.empty(self.table.units * most))
        if self.shared.capturable:
            self._keep("more_rows", cupy.zeros(max(1, n * len(self.plan.hosts))))
        self.job["members"] = n

    def _keep(self, name: str, array: Any) -> Any:
        self._kept[name] = array
        self.job[name] = array.data.ptr
        return array

    def _tell(self, name: str, value: int) -> None:
        """A word of the job, written where it is another one."""
        if self._told.get(name) != value:
            self.job[name] = self._told[name] = value

    def _kernel(self, name: str, blocks: int, threads: int) -> Callable[..., None]:
        """What launches a kernel, but for the stream and the address of the arguments.

        CuPy's own way to launch copies them every time, which takes longer than the launch.
        """
        import cupy

        function = self.module.get_function(name)
        return partial(cupy.cuda.driver.launchKernel, function.ptr, blocks, 1, 1, threads, 1, 1, 0)

    # ---- what the driver says

    def arrays_changed(self, numbers: Sequence[int]) -> None:
        for p in numbers:
            self.table.changed(p, self.members[p])

    def presence_changed(self, active: np.ndarray) -> None:
        self.table.presence(active)
        self.first_place = int(self.places[active.argmax()])

    def compile_ahead(self) -> None:
        pass

    def gradients_moved(self, shifts: np.ndarray) -> None:
        if shifts.any():
            self.table.moved(shifts)

    def refuse_capture(self, tables: Tables) -> None:
        """Raise if this step needs what a CUDA graph would repeat with old values."""
        changed = tables.rows.tobytes() != self._sent_rows.tobytes()
        if changed or not self.table.known(tables.row_of, tables.row_of_changed):
            why = "a number changed" if changed and len(self._sent_rows) else "an array was replaced, or is new"
            raise RuntimeError(
                f"this step needs an upload ({why}), which a CUDA graph would repeat with old values; "
                "run one step with these arrays before the capture"
            )

    def begin(self, tables: Tables, stream: Any, alone: bool, capturing: bool) -> None:
        """Bring the tables of this step to the device, which is the current one."""
        if not capturing:  # a thread that captures has a context
            ready_thread(self.device.id)
        self._tell("table", self.table.find(tables.row_of, tables.row_of_changed, stream))
        tables.row_of_changed = False
        if capturing:
            self.table.capture()
        if tables.rows_changed:
            self.send_rows(tables.rows, stream)
            tables.rows_changed = False
        self._begin(stream, alone, capturing)

    def _begin(self, stream: Any, alone: bool, capturing: bool) -> None:
        self.stream = stream
        self._tell("finish", alone)
        self.contributes = bool(self.shared.labels)
        if self.plan.program.gradient_norm is not None:
            self.result = self.results.take(stream, capturing)
            self._tell("result", self.result.array.data.ptr)

    def begin_warm(self, rows: int, changed: int, found: int, stream: Any) -> None:
        """The same, where compiled code has filled the table, perhaps found its like, and filled rows of `host_rows`."""
        ready_thread(self.device.id)
        if changed:
            self._tell("table", self.table.find_filled(stream, found))
        if not self._rows_in_job:
            self.send_rows(self._host_rows[:rows], stream)
        else:
            self._tell("row_count", rows)
            self._tell("more_rows", 0)
        self._begin(stream, self.alone, False)

    def host_rows(self, groups: int) -> np.ndarray:
        """Where compiled code may put the rows of a step: as many as there are groups, or members; in the job, if they fit."""
        most, hosts = groups if self.shared.device_count else len(self.members), len(self.plan.hosts)
        self._rows_in_job = most * hosts <= ROWS and not self.shared.capturable
        if self._rows_in_job:
            self._host_rows = self._rows[: most * hosts].reshape(most, hosts)
        else:
            self._host_rows = np.zeros((most, hosts))
        return self._host_rows

    def send_rows(self, rows: np.ndarray, stream: Any) -> None:
        """The scalar rows of a step: by value where they fit, else to device memory if they changed."""
        flat = rows.reshape(-1)
        self._tell("row_count", len(rows))
        if flat.size <= ROWS and not self.shared.capturable:
            self._rows[: flat.size] = flat
            self._tell("more_rows", 0)
        else:
            self._send_rows(flat, stream)

    def _send_rows(self, flat: np.ndarray, stream: Any) -> None:
        import cupy

        buffer = self._kept.get("more_rows")
        if buffer is None or buffer.size < flat.size:
            self._outgrown.append(buffer)
            self.order.allocates()
            buffer, self._sent_rows = self._keep("more_rows", cupy.empty(2 * flat.size)), np.zeros(0)
        self._tell("more_rows", int(buffer.data.ptr))
        if flat.tobytes() != self._sent_rows.tobytes():
            self._uploader.send(buffer.data.ptr, flat, stream)
            self._sent_rows = flat.copy()

    # ---- launches

    def bound(self, kernel: Callable[..., None], stream: Any) -> Callable[[], None]:
        """A launch on a stream, as a call of compiled code."""
        return partial(kernel, stream.ptr, self._argument, 0)

    def launch(self, kernel: Callable[..., None]) -> None:
        """Launch a kernel of this runner's, in the step under way."""
        if self.elsewhere:
            with self.device:
                kernel(self.stream.ptr, self._argument, 0)
        else:
            kernel(self.stream.ptr, self._argument, 0)
        counters.launches += 1

    def clear_contributions(self) -> None:
        """Take no part in the totals until the next step of this bucket."""
        self._kept["contributions"][int(self.job["device"]), :, self.places] = 0.0
        self.contributes = False

    def write(self, zero: bool, slots: int) -> list[Call]:
        """What runs the last stage; `slots` are the bits of those per optimizer that this bucket writes."""
        self.tell_write(zero, slots)
        counters.launches += 1
        launch = self.bound(self.last, self.stream)
        if not self.elsewhere:
            return [launch]
        import cupy

        here, use = cupy.cuda.runtime.getDevice(), cupy.cuda.runtime.setDevice
        return [partial(use, self.device.id), launch, partial(use, here)]

    def tell_write(self, zero: bool, slots: int) -> None:
        """What the last stage does besides."""
        self._tell("zero", zero)
        self._tell("write_shared", slots)

    # ---- what the driver asks; each of these waits for the device

    def uniform_values(self, node: Node) -> np.ndarray:
        """A uniform value of the last step, one per member."""
        with self.device:
            values = self._kept["uniforms"].get().reshape(len(self.members), -1)
        return values[:, self.uniform.columns[node]]  # type: ignore[no-any-return]

    def get_counts(self) -> np.ndarray:
        with self.device:
            return self._kept["counts"].get()  # type: ignore[no-any-return]

    def set_counts(self, counts: np.ndarray) -> None:
        with self.device:
            self._kept["counts"].set(np.ascontiguousarray(counts, np.int64))

    def place_slots(self, values: np.ndarray) -> Any:
        with self.device:
            self._kept["slots"].set(np.ascontiguousarray(values, np.float64))
        return self._kept["slots"]

    @property
    def slot_keys(self) -> Sequence[Hashable]:
        return self.uniform.slots
