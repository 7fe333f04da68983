"""The table of a bucket's parameters: as the host knows it, and the copies of it in device memory.

    table.moved(shifts)                       # or changed(p, member), presence(active): what the driver says
    table.find(row_of, changed, stream)       # the address of a table that says so, uploaded where there is none

Gradients come and go in sets: the two buffers of a loop that takes turns, the layers that are trained now. The tables of
the sets seen lately stay on the device, so that a set that comes back is an address, and no upload.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from optimkit.arrays import DType, Placement
from optimkit.engines.canonical import UNIT
from optimkit.engines.cuda.job import FLAGS, READ_CHUNK, layout_words
from optimkit.engines.cuda.upload import uploader
from optimkit.engines.protocol import Member
from optimkit.engines.tables import Entry
from optimkit.fusion.stages import GRADIENT, WEIGHT

ABSENT, VECTOR, ZERO_G = (FLAGS[name] for name in ("ABSENT", "VECTOR", "ZERO_G"))
ALIGNMENT = 16  # bytes of what a thread reads at a time where a parameter's arrays are all dense and aligned
LATELY = 8  # sets of gradients whose tables stay on the device


class MemberTable:
    """One entry per member of a bucket: its size, where its arrays lie, and the row of its numbers."""

    def __init__(self, columns: Entry, dtype: DType, sizes: Sequence[int], device: int) -> None:
        self.columns, self.dtype, self.sizes = columns, dtype, sizes
        n, lengths = len(sizes), np.array(sizes, np.int64)
        units = -(-lengths // UNIT)
        self.words = np.zeros((n, len(columns)), np.int64)
        self.words[:, columns.size] = lengths
        self.words[:, columns.first_unit] = np.cumsum(units) - units
        self.words[:, columns.blocks] = np.maximum(1, -(-lengths // READ_CHUNK))
        self.units = int(units.sum())
        self.gradients = self.words[:, columns.address[GRADIENT]]  # their addresses: those of the last ones, where absent
        self.flags, self.slot_bits = np.zeros(n, np.int64), np.zeros(n, np.int64)  # bits that stay while arrays only move
        self.present, self.dense = np.zeros(n, bool), np.zeros(n, bool)
        self.layouts: dict[tuple[int, Hashable], np.ndarray] = {}
        self._uploader = uploader(device)
        self._found: int | None = None  # the address of the table as it is now
        self._lately: dict[bytes, Any] = {}  # tables on the device, by the set that they tell of; the latest last
        self._spare: list[Any] = []  # others, to be written anew
        self._captured: dict[bytes, Any] = {}  # those that CUDA graphs read too, by the same
        self._of_graphs: list[Any] = []  # all that were captured: nothing else is ever written there
        self.order: Any = None  # of the device

    # ---- what the driver says

    def set_places(self, places: Sequence[int]) -> None:
        """Where the members stand among all parameters of the optimizer."""
        self.words[:, self.columns.place] = places
        self._forget()

    def place(self, p: int, key: Hashable, where: Placement) -> int:
        """An array lies there; the bit of the flags by which it is strided, or 0."""
        self.words[p, self.columns.address[key]] = where.address
        if where.geometry is None:
            return 0
        self.layouts[p, key] = layout_words(where, self.sizes[p])
        return self.columns.bit[key]

    def place_slot(self, p: int, key: Hashable, where: Placement) -> None:
        """A slot or an input lies there, for good."""
        self.slot_bits[p] |= self.place(p, key, where)

    def changed(self, p: int, member: Member) -> None:
        """The weight or the gradient of a member is another array."""
        where = Placement.of(member.gradient)
        strided = int(self.slot_bits[p]) | self.place(p, WEIGHT, Placement.of(member.weight)) | self.place(p, GRADIENT, where)
        self.flags[p] = strided | (ZERO_G if member.zero_in_pass else 0)
        self.words[p, self.columns.g_dtype] = where.dtype.code
        others = [column for key, column in self.columns.address.items() if key != GRADIENT]
        aligned = not (self.words[p, others] % ALIGNMENT).any()
        self.dense[p] = aligned and not strided and where.dtype is self.dtype
        self._forget()

    def moved(self, shifts: np.ndarray) -> None:
        """The gradients lie elsewhere, by so many bytes."""
        self.gradients += shifts
        self._found = None

    def presence(self, active: np.ndarray) -> None:
        """These members have a gradient."""
        self.present = active
        self._found = None

    def _forget(self) -> None:
        self._found = None
        self._spare += self._lately.values()
        self._lately.clear()
        self._captured.clear()

    # ---- on the device

    def known(self, row_of: np.ndarray, changed: bool) -> bool:
        """Whether a table with these rows is on the device; `changed`: they are others than in the last step."""
        if self._found is not None and not changed:
            return True
        wanted = self._set(row_of)
        return wanted in self._lately or wanted in self._captured

    def find(self, row_of: np.ndarray, changed: bool, stream: Any) -> int:
        """The address of the table with these rows, uploaded where it is not on the device."""
        if self._found is None or changed:
            wanted = self._set(row_of)
            table = self._lately.pop(wanted, None)
            if table is None:
                table = self._captured.get(wanted)
            if table is None:
                table = self._send(row_of, stream)
            self._lately[wanted] = table
            self._found = int(table.data.ptr)
        return self._found

    def capture(self) -> None:
        """A CUDA graph goes on reading the table of this step, and a step with the same set finds it again."""
        wanted, table = next(reversed(self._lately.items()))
        if wanted not in self._captured:
            self._captured[wanted] = table
            self._of_graphs.append(table)

    def _set(self, row_of: np.ndarray) -> bytes:
        """What tells a set of gradients, and their rows, from others."""
        return (self.gradients * self.present).tobytes() + self.present.tobytes() + row_of.tobytes()

    def _send(self, row_of: np.ndarray, stream: Any) -> Any:
        present, columns = self.present, self.columns
        vector = VECTOR * (self.dense & (self.gradients % ALIGNMENT == 0))
        self.words[:, columns.flags] = np.where(present, self.flags | vector, self.flags | ABSENT)
        self.words[:, columns.row] = row_of
        table = self._space(self.words.size + sum(map(len, self.layouts.values())))
        offset = self.words.size
        for (p, key), layout in self.layouts.items():
            self.words[p, columns.layout[key]] = table.data.ptr + 8 * offset
            offset += len(layout)
        self._uploader.send(table.data.ptr, np.concatenate([self.words.reshape(-1), *self.layouts.values()]), stream)
        return table

    def _space(self, words: int) -> Any:
        """Device memory for a table: where there are many, that of the set not seen for longest.

        None is given back while the bucket is there, as a launch under way may read it; so there are few sizes.
        """
        import cupy

        captured = set(map(id, self._of_graphs))
        if len(self._lately) >= LATELY:
            self._spare.append(self._lately.pop(next(iter(self._lately))))
        self._spare = [table for table in self._spare if id(table) not in captured]
        for place, table in enumerate(self._spare):
            if len(table) >= words:
                return self._spare.pop(place)
        if self.order is not None:
            self.order.allocates()
        return cupy.empty(1 << (words - 1).bit_length(), np.int64)
