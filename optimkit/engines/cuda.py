"""The CUDA engine: one launch runs a stage for all parameters of a bucket.

What a launch needs is a `Job`, passed by value: addresses of tables in device memory, and the scalar
rows while they fit. The table of the parameters is uploaded when an array was replaced; nothing
else moves in a warm step, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from optimkit.engines import cuda_compile
from optimkit.engines.canonical import UNIT
from optimkit.engines.cuda_memory import uploader
from optimkit.engines.cuda_text import (
    ABSENT,
    ENTRY,
    OTHER_G,
    READ_CHUNK,
    READ_THREADS,
    ROWS,
    STRIDED_G,
    STRIDED_W,
    TABLE,
    VECTOR,
    WRITE_CHUNK,
    WRITE_THREADS,
    ZERO_G,
    module_text,
)
from optimkit.engines.cuda_together import CudaTogether
from optimkit.engines.cuda_uniform import FINISH_THREADS, UniformText
from optimkit.engines.runner import Member, Shared, Tables, counters
from optimkit.fusion.graph import Node
from optimkit.fusion.stages import GRADIENT, WEIGHT, Plan

_POINTERS: tuple[str, ...] = (
    "table",
    "chunks",
    "read_chunks",
    "more_rows",
    "uniforms",
    "slots",
    "shared",
    "counts",
    "arrived",
    "control",
)
_POINTERS += ("partials", "contributions", "result", "write_shared")
_INTEGERS: tuple[str, ...] = (
    "members",
    "present",
    "entries",
    "labels",
    "devices",
    "device",
    "zero",
    "finish",
)
JOB = np.dtype(
    [*((name, np.uint64) for name in _POINTERS), *((name, np.int32) for name in _INTEGERS), ("rows", np.float64, ROWS)]
)


class CudaRunner:
    """The stages of one plan on the members of one bucket, on one device."""

    name = "cuda"
    together = CudaTogether
    keeps_addresses = True

    def __init__(self, plan: Plan, dtype: str, members: Sequence[Member]) -> None:
        self.plan, self.dtype, self.members = plan, dtype, members
        self.device = _check_device(members[0].weight.device)
        self.uniform = UniformText(plan, TABLE, len(ENTRY) + len(plan.arrays))
        self.job = np.zeros(1, JOB)[0]
        self.layouts: dict[tuple[int, int], np.ndarray] = {}
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
        self.members_changed(range(len(members)))

    def _make_tables(self) -> None:
        """Tables in device memory, made once."""
        import cupy

        sizes = np.array([member.size for member in self.members], np.int64)
        units = -(-sizes // UNIT)
        self.table = np.zeros((len(sizes), len(ENTRY) + len(self.plan.arrays)), np.int64)
        self.table[:, 0] = sizes
        self.table[:, 3] = np.cumsum(units) - units
        self.table[:, 4] = np.maximum(1, -(-sizes // READ_CHUNK))
        for column, key in enumerate(self.plan.arrays, len(ENTRY)):
            if key not in (WEIGHT, GRADIENT):
                self.table[:, column] = [member.slots[key].data.ptr for member in self.members]
        most = max((len(stage.reductions) for stage in self.plan.reading), default=0)
        n = len(sizes)
        self._keep("chunks", cupy.asarray(_chunks(sizes, WRITE_CHUNK)))
        self._keep("read_chunks", cupy.asarray(_chunks(sizes, READ_CHUNK)))
        self._keep("uniforms", cupy.zeros(n * self.uniform.width))
        self._keep("slots", cupy.zeros((n, len(self.uniform.slots))))
        self._keep("counts", cupy.zeros(n, np.int64))
        self._keep("arrived", cupy.zeros(n, np.int32))
        self._keep("control", cupy.zeros(2, np.int32))
        self._keep("partials", cupy.empty(int(units.sum()) * most))
        self._keep("result", cupy.zeros(2))
        self.job["members"] = n

    def _keep(self, name: str, array: Any) -> Any:
        self._kept[name] = array
        self.job[name] = array.data.ptr
        return array

    def connect(self, shared: Shared, places: Sequence[int], device: int, devices: int, contributions: Any, slots: Any) -> None:
        """Take the place among the buckets of the optimizer, and compile."""
        import cupy

        if len(shared.slots) > 64:
            raise ValueError(
                f"an optimizer can have 64 slots with extent 'optimizer' on a CUDA device, not {len(shared.slots)}"
            )
        self.shared = shared
        self.table[:, 5] = places
        self._keep("contributions", contributions)
        self._keep("shared", slots)
        for name, value in (
            ("entries", shared.entries),
            ("labels", len(shared.labels)),
            ("devices", devices),
            ("device", device),
        ):
            self.job[name] = value
        names = shared.labels, list(shared.slots)
        self.text = module_text(self.plan, self.dtype, *names, shared.device_count, shared.skip)
        self.uniform = UniformText(self.plan, TABLE, self.table.shape[1], *names)
        with self.device:
            module = cuda_compile.load(self.text, self.device.id)
        self.read_functions = [module.get_function(f"read_stage_{number}") for number in range(len(self.plan.reading))]
        self.finish_functions = {number: module.get_function(f"finish_{number}") for number in self.uniform.numbers}
        self.write_function = module.get_function("write_stage")
        self.dirty = True
        if shared.capturable:
            with self.device:
                self._keep("more_rows", cupy.zeros(max(1, len(self.members) * len(self.plan.hosts))))
                self._of_graphs = cupy.zeros(2)  # the result of steps that graphs repeat

    # ---- what the driver says

    def members_changed(self, numbers: Sequence[int]) -> None:
        table, first = self.table, len(ENTRY)
        for p in numbers:
            member = self.members[p]
            weight, gradient = member.weight, member.gradient
            flags = ZERO_G if member.zero_in_pass else 0
            table[p, first] = weight.data.ptr
            if not weight.flags.c_contiguous:
                flags |= STRIDED_W
                self._set_layout(p, 6, weight)
            self.present[p] = gradient is not None
            if gradient is None:
                flags |= ABSENT
            else:
                table[p, first + 1] = gradient.data.ptr
                if gradient.dtype != weight.dtype:
                    flags |= OTHER_G
                if not gradient.flags.c_contiguous:
                    flags |= STRIDED_G
                    self._set_layout(p, 7, gradient)
            table[p, 2] = flags
        self._mark_aligned()

    def gradients_moved(self, shifts: np.ndarray) -> None:
        if shifts.any():
            self.table[:, len(ENTRY) + 1] += shifts
            self._mark_aligned()

    def _mark_aligned(self) -> None:
        """Parameters whose arrays are all dense and aligned are read and written in 128 bits at a time."""
        flags = self.table[:, 2]
        dense = (flags & (ABSENT | STRIDED_W | STRIDED_G | OTHER_G)) == 0
        aligned = ~(self.table[:, len(ENTRY) :] % 16).any(axis=1)
        self.table[:, 2] = (flags & ~VECTOR) | VECTOR * (dense & aligned)
        self.dirty = True

    def _set_layout(self, p: int, column: int, x: Any) -> None:
        shape, strides = (x.shape, x.strides) if x.ndim else ((1,), (0,))
        self.layouts[p, column] = np.array([len(shape), *shape, *strides], np.int64)

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
            self.table[:, 1] = tables.row_of
            self._send_table(stream)
            self.dirty = False
        self.send_rows(tables.rows, stream)
        self.job["present"] = int(self.present.sum())
        self.first_present = int(self.table[np.argmax(self.present), 5])  # its place among all parameters
        self.job["finish"], self.contributes = alone, bool(self.shared.labels)
        if self.plan.program.gradient_norm is not None:
            self._keep("result", self._of_graphs if capturing else cupy.empty(2))  # no allocation in a capture

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
        for (p, column), layout in self.layouts.items():
            self.table[p, column] = blob.data.ptr + 8 * offset
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
        """Run a reading stage."""
        self._launch(self.read_functions[number], len(self._kept["read_chunks"]), READ_THREADS, stream)

    def clear_contributions(self) -> None:
        """Take no part in the totals until the next step of this bucket."""
        self._kept["contributions"][int(self.job["device"]), :, self.table[:, 5]] = 0.0
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


def _chunks(sizes: np.ndarray, chunk: int) -> np.ndarray:
    """(parameter, number) of every chunk; empty parameters have one too, so that their block arrives."""
    counts = np.maximum(1, -(-sizes // chunk))
    parameters = np.repeat(np.arange(len(sizes)), counts)
    numbers = np.arange(len(parameters)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([parameters, numbers], axis=1).astype(np.int32)
