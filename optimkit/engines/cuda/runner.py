"""The CUDA engine: one launch runs a stage for all parameters of a bucket.

What a launch needs is a `Job`, passed by value: addresses of tables in device memory, and the scalar
rows while they fit. The table of the parameters is uploaded when an array was replaced; nothing
else moves in a warm step, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from optimkit.arrays import DType, Placement
from optimkit.counting import counters
from optimkit.engines.canonical import UNIT
from optimkit.engines.cuda import compile as cuda_compile
from optimkit.engines.cuda.job import (
    CONTROL,
    FLAGS,
    JOB,
    READ_CHUNK,
    READ_THREADS,
    RESULT,
    ROWS,
    STRIDED,
    WRITE_CHUNK,
    WRITE_THREADS,
    chunk_table,
    entry_columns,
    layout_words,
)
from optimkit.engines.cuda.text import module_text
from optimkit.engines.cuda.uniform import FINISH_THREADS, UniformText
from optimkit.engines.cuda.upload import uploader
from optimkit.engines.protocol import Member, Shared, Tables
from optimkit.fusion.graph import Node
from optimkit.fusion.stages import GRADIENT, WEIGHT, Plan

ABSENT, VECTOR, ZERO_G = (FLAGS[name] for name in ("ABSENT", "VECTOR", "ZERO_G"))
MOST_SLOTS = 64  # per optimizer: the bits of `write_shared`


class CudaRunner:
    """The stages of one plan on the members of one bucket, on one device."""

    keeps_addresses = True

    def __init__(self, plan: Plan, dtype: DType, members: Sequence[Member]) -> None:
        self.plan, self.dtype, self.members = plan, dtype, members
        self.device = _check_device(members[0].weight.device)
        others = {key: [Placement.of(member.arrays[key]) for member in members] for key in plan.arrays[2:]}
        self.strided = (*STRIDED, *(key for key, found in others.items() if any(where.geometry for where in found)))
        self.columns = entry_columns(plan, self.strided)
        self.uniform = UniformText(plan, len(self.columns))
        self.job = np.zeros(1, JOB)[0]
        self.layouts: dict[tuple[int, Hashable], np.ndarray] = {}
        self.present = np.zeros(len(members), bool)
        self.dirty, self.contributes = True, False
        self._kept: dict[str, Any] = {}  # the arrays behind the job's addresses
        self._uploader = uploader(self.device.id)
        self._sent_rows = np.zeros(0)
        self._captured: list[Any] | None = None  # tables that a CUDA graph reads, once there was a capture
        self._of_graphs: Any = None
        self.stream: Any = None  # of the last step
        with self.device:
            self._make_tables()
        self.gathered = np.zeros(len(members), np.int64)  # bits of the flags that stay: those of slots
        for key, found in others.items():
            for p, where in enumerate(found):
                self.gathered[p] |= self._place(p, key, where)
        self.table[:, self.columns.flags] = ABSENT  # until a gradient is lent

    def _make_tables(self) -> None:
        """Tables in device memory, made once."""
        import cupy

        sizes = np.array([member.size for member in self.members], np.int64)
        units = -(-sizes // UNIT)
        columns = self.columns
        self.table = np.zeros((len(sizes), len(columns)), np.int64)
        self.table[:, columns.size] = sizes
        self.table[:, columns.first_unit] = np.cumsum(units) - units
        self.table[:, columns.blocks] = np.maximum(1, -(-sizes // READ_CHUNK))
        most = max((len(stage.reductions) for stage in self.plan.stages), default=0)
        n = len(sizes)
        self._keep("chunks", cupy.asarray(chunk_table(sizes, WRITE_CHUNK)))
        self._keep("read_chunks", cupy.asarray(chunk_table(sizes, READ_CHUNK)))
        self._keep("uniforms", cupy.zeros(n * self.uniform.width))
        self._keep("slots", cupy.zeros((n, len(self.uniform.slots))))
        self._keep("counts", cupy.zeros(n, np.int64))
        self._keep("arrived", cupy.zeros(n, np.int32))
        self._keep("control", cupy.zeros(len(CONTROL), np.int32))
        self._keep("partials", cupy.empty(int(units.sum()) * most))
        self._keep("result", cupy.zeros(len(RESULT)))
        self.job["members"] = n

    def _keep(self, name: str, array: Any) -> Any:
        self._kept[name] = array
        self.job[name] = array.data.ptr
        return array

    def connect(self, shared: Shared, places: Sequence[int], device: int, devices: int, contributions: Any, slots: Any) -> None:
        """Take the place among the buckets of the optimizer, and compile."""
        import cupy

        if len(shared.slots) > MOST_SLOTS:
            raise ValueError(
                f"an optimizer can have {MOST_SLOTS} slots with extent 'optimizer' on a CUDA device, not {len(shared.slots)}"
            )
        self.shared = shared
        self.table[:, self.columns.place] = places
        self._keep("contributions", contributions)
        self._keep("shared", slots)
        self.job["entries"], self.job["labels"] = shared.entries, len(shared.labels)
        self.job["devices"], self.job["device"] = devices, device
        names = shared.labels, list(shared.slots)
        self.text = module_text(self.plan, self.dtype, *names, shared.device_count, shared.skip, self.strided)
        self.uniform = UniformText(self.plan, len(self.columns), *names)
        with self.device:
            module = cuda_compile.load(self.text, self.device.id)
        self.read_functions = {number: module.get_function(f"read_stage_{number}") for number in self.plan.reducing}
        self.fill_functions = {number: module.get_function(f"fill_stage_{number}") for number in self.plan.filling}
        self.finish_functions = {number: module.get_function(f"finish_{number}") for number in self.uniform.numbers}
        self.write_function = module.get_function("write_stage")
        self.dirty = True
        if shared.capturable:
            with self.device:
                self._keep("more_rows", cupy.zeros(max(1, len(self.members) * len(self.plan.hosts))))
                self._of_graphs = cupy.zeros(len(RESULT))  # the result of steps that graphs repeat

    # ---- what the driver says

    def _place(self, p: int, key: Hashable, where: Placement) -> int:
        """Say in the table where an array lies; the bit of the flags by which it is strided, or 0."""
        self.table[p, self.columns.address[key]] = where.address
        if where.geometry is None:
            return 0
        self.layouts[p, key] = layout_words(where, self.members[p].size)
        return self.columns.bit[key]

    def arrays_changed(self, numbers: Sequence[int]) -> None:
        columns = self.columns
        for p in numbers:
            member = self.members[p]
            flags = int(self.gathered[p]) | (ZERO_G if member.zero_in_pass else 0)
            flags |= int(self.table[p, columns.flags]) & ABSENT
            flags |= self._place(p, WEIGHT, Placement.of(member.weight))
            where = Placement.of(member.gradient)
            flags |= self._place(p, GRADIENT, where)
            self.table[p, columns.g_dtype] = where.dtype.code
            self.table[p, columns.flags] = flags
        self._mark_aligned()

    def presence_changed(self, active: np.ndarray) -> None:
        self.present = active
        flags = self.table[:, self.columns.flags]
        self.table[:, self.columns.flags] = (flags & ~ABSENT) | ABSENT * ~active
        self._mark_aligned()

    def compile_ahead(self) -> None:
        pass

    def gradients_moved(self, shifts: np.ndarray) -> None:
        if shifts.any():
            self.table[:, self.columns.address[GRADIENT]] += shifts
            self._mark_aligned()

    def _mark_aligned(self) -> None:
        """Parameters whose arrays are all dense and aligned are read and written in 128 bits at a time."""
        flags = self.table[:, self.columns.flags]
        scalar = ABSENT | sum(self.columns.bit.values())
        dense = (flags & scalar == 0) & (self.table[:, self.columns.g_dtype] == self.dtype.code)
        aligned = ~(self.table[:, self.columns.first_address :] % 16).any(axis=1)
        self.table[:, self.columns.flags] = (flags & ~VECTOR) | VECTOR * (dense & aligned)
        self.dirty = True

    def refuse_capture(self, tables: Tables) -> None:
        """Raise if this step needs what a CUDA graph would repeat with old values."""
        changed = tables.rows.tobytes() != self._sent_rows.tobytes()
        if self.dirty or tables.row_of_changed or changed:
            why = "a number changed" if changed and len(self._sent_rows) else "an array was replaced, or is new"
            raise RuntimeError(
                f"this step needs an upload ({why}), which a CUDA graph would repeat with old values; "
                "run one step with these arrays before the capture"
            )

    def begin(self, tables: Tables, stream: Any, alone: bool, capturing: bool) -> None:
        """Bring the tables of this step to the device."""
        import cupy

        self.stream = stream
        if capturing and self._captured is None:
            self._captured = []
        if tables.row_of_changed:
            self.dirty = True
            tables.row_of_changed = False
        if self.dirty:
            self.table[:, self.columns.row] = tables.row_of
            self._send_table(stream)
            self.dirty = False
        self.send_rows(tables.rows, stream)
        self.job["present"] = int(self.present.sum())
        self.first_present = int(self.table[np.argmax(self.present), self.columns.place])  # its place among all parameters
        self.job["finish"], self.contributes = alone, bool(self.shared.labels)
        if self.plan.program.gradient_norm is not None:
            self._keep("result", self._of_graphs if capturing else cupy.empty(len(RESULT)))  # no allocation in a capture

    def _send_table(self, stream: Any) -> None:
        import cupy

        words = [self.table.reshape(-1), *self.layouts.values()]
        total = sum(map(len, words))
        blob = self._kept.get("table")
        if blob is not None and self._captured is not None:  # a graph goes on reading it
            self._captured.append(blob)
            blob = None
        if blob is None or len(blob) < total:
            blob = self._keep("table", cupy.empty(total, np.int64))
        offset = self.table.size
        for (p, key), layout in self.layouts.items():
            self.table[p, self.columns.layout[key]] = blob.data.ptr + 8 * offset
            offset += len(layout)
        self._uploader.send(blob.data.ptr, np.concatenate(words), stream)

    def send_rows(self, rows: np.ndarray, stream: Any) -> None:
        """The scalar rows of a step: by value where they fit, else to device memory if they changed."""
        flat = rows.reshape(-1)
        if flat.size <= ROWS and not self.shared.capturable:
            self.job["rows"][: flat.size] = flat
            self.job["more_rows"] = 0
            return
        import cupy

        buffer = self._kept.get("more_rows")
        if buffer is None or buffer.size < flat.size:
            buffer, self._sent_rows = self._keep("more_rows", cupy.empty(flat.size)), np.zeros(0)
        self.job["more_rows"] = buffer.data.ptr
        if flat.tobytes() != self._sent_rows.tobytes():
            self._uploader.send(buffer.data.ptr, flat, stream)
            self._sent_rows = flat.copy()

    # ---- launches

    def _launch(self, function: Any, blocks: int, threads: int, stream: Any) -> None:
        function((blocks, 1, 1), (threads, 1, 1), (self.job,), 0, stream)
        counters.launches += 1

    def read(self, number: int, stream: Any) -> None:
        """Run a stage that reduces."""
        self._launch(self.read_functions[number], len(self._kept["read_chunks"]), READ_THREADS, stream)

    def fill(self, number: int, stream: Any) -> None:
        """Run a stage that writes what calls are given."""
        self._launch(self.fill_functions[number], len(self._kept["chunks"]), WRITE_THREADS, stream)

    def clear_contributions(self) -> None:
        """Take no part in the totals until the next step of this bucket."""
        self._kept["contributions"][int(self.job["device"]), :, self.table[:, self.columns.place]] = 0.0
        self.contributes = False

    def finish(self, number: int, stream: Any) -> None:
        """Compute the uniform values of a round, in a launch of its own."""
        if number in self.finish_functions:
            self._launch(self.finish_functions[number], 1, FINISH_THREADS, stream)

    def write(self, zero: bool, slots: Sequence[Hashable], stream: Any) -> None:
        """Run the last stage; `slots` are those per optimizer that this bucket writes."""
        self.job["zero"] = zero
        self.job["write_shared"] = sum(1 << self.uniform.places[key] for key in slots)
        self._launch(self.write_function, len(self._kept["chunks"]), WRITE_THREADS, stream)

    # ---- what the driver asks; each of these waits for the device

    def uniform_values(self, node: Node) -> np.ndarray:
        """A uniform value of the last step, one per member."""
        with self.device:
            values = self._kept["uniforms"].get(stream=self.stream).reshape(len(self.members), -1)
        return values[:, self.uniform.columns[node]]  # type: ignore[no-any-return]

    def get_counts(self) -> np.ndarray:
        with self.device:
            return self._kept["counts"].get(stream=self.stream)  # type: ignore[no-any-return]

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

    @property
    def result(self) -> Callable[[], tuple[float, bool]]:
        """Fetches the norm of all gradients of this step, and whether it is finite."""
        device, stream, array = self.device, self.stream, self._kept["result"]

        def fetch() -> tuple[float, bool]:
            with device:
                norm, finite = array.get(stream=stream).tolist()
            return norm, bool(finite)

        return fetch


def refuse_capture() -> None:
    """Raise if the current stream is being captured: making buckets allocates, uploads and compiles."""
    import cupy

    if cupy.cuda.get_current_stream().is_capturing():
        raise RuntimeError(
            "the first step, and the first after a change of structure, can't be captured in a CUDA graph: it allocates and "
            "compiles; run one step with these arrays before the capture"
        )


def _check_device(device: Any) -> Any:
    """Raise ValueError if the device of an array is not there any more."""
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ValueError(f"the parameters are on {device}, but no CUDA device answers any more: {error}") from error
    if device.id >= count:
        raise ValueError(f"the parameters are on {device}, which is gone: there are {count} devices; move them with cupy")
    return device
