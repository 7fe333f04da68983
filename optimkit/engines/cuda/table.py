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

from optimkit.arrays import DType, Placement, StreamOrder
from optimkit.engines.canonical import UNIT
from optimkit.engines.cuda.job import FLAGS, MOVING, READ_CHUNK, layout_words
from optimkit.engines.cuda.upload import uploader
from optimkit.engines.protocol import Member
from optimkit.engines.tables import Entry
from optimkit.fusion.stages import GRADIENT, WEIGHT

ABSENT, VECTOR, ZERO_G = (FLAGS[name] for name in ("ABSENT", "VECTOR", "ZERO_G"))
ALIGNMENT = 16  # bytes of what a thread reads at a time where a parameter's arrays are all dense and aligned
LATELY = 8  # sets of gradients whose tables stay on the device


class MemberTable:
    """One entry per member of a bucket: its size, where its arrays lie, and the row of its numbers.

    What changes from step to step is `moving`: where gradients are, flags, rows. With `carried`, words of the job, it goes
    along with each launch, and the table on the device stays; else tables of the sets seen lately do.
    """

    def __init__(
        self, columns: Entry, dtype: DType, sizes: Sequence[int], order: StreamOrder, carried: np.ndarray | None = None
    ) -> None:
        self.columns, self.dtype, self.sizes, self.order = columns, dtype, sizes, order
        n, lengths = len(sizes), np.array(sizes, np.int64)
        units = -(-lengths // UNIT)
        self.carried = carried is not None
        self.words = np.zeros((n, len(columns)), np.int64)
        self.moving = np.zeros((n, len(MOVING)), np.int64) if carried is None else carried[: n * len(MOVING)].reshape(n, -1)
        self.words[:, columns.size] = lengths
        self.words[:, columns.first_unit] = np.cumsum(units) - units
        self.words[:, columns.blocks] = np.maximum(1, -(-lengths // READ_CHUNK))
        self.units = int(units.sum())
        self.gradients = self.moving[:, MOVING.gradient]  # their addresses: those of the last ones, where absent
        self.flags, self.slot_bits = np.zeros(n, np.int64), np.zeros(n, np.int64)  # bits that stay while arrays only move
        self.present, self.dense = np.zeros(n, bool), np.zeros(n, np.int64)
        self.layouts: dict[tuple[int, Hashable], np.ndarray] = {}
        self._uploader = uploader(order.device.id)
        self._found: int | None = None  # the address of the table as it is now
        self._table: Any = None  # the only one, where `moving` is carried
        self.sets = np.zeros((LATELY, 3, n), np.int64)  # what tables on the device tell of,
        self.n_sets = np.zeros(1, np.int64)  # how many do, which compiled code reads too,
        self._lately: list[Any] = []  # these tables,
        self._used: list[int] = []  # and their places, the latest last
        self._spare: list[Any] = []  # others, to be written anew
        self._captured: list[tuple[np.ndarray, Any]] = []  # those that CUDA graphs read too
        self._of_graphs: list[Any] = []  # all that were captured: nothing else is ever written there

    # ---- what the driver says

    def set_places(self, places: Sequence[int]) -> None:
        """Where the members stand among all parameters of the optimizer."""
        self.words[:, self.columns.place] = places
        self._forget()

    def place(self, p: int, key: Hashable, where: Placement) -> int:
        """An array lies there; the bit of the flags by which it is strided, or 0."""
        if key == GRADIENT:
            self.gradients[p] = where.address
        else:
            self.words[p, self.columns.address[key]] = where.address
        if where.geometry is None:
            self.layouts.pop((p, key), None)
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
        self._spare += self._lately if self._table is None else [self._table]
        self._lately, self._used, self._table = [], [], None
        self.n_sets[0] = 0
        self._captured.clear()

    # ---- on the device

    def known(self, row_of: np.ndarray, changed: bool) -> bool:
        """Whether a table with these rows is on the device; `changed`: they are others than in the last step."""
        if self._found is not None and not changed:
            return True
        self._fill(row_of)
        wanted = self._set()
        return self._place_of(wanted) is not None or self._find_captured(wanted) is not None

    def find(self, row_of: np.ndarray, changed: bool, stream: Any) -> int:
        """The address of the table with these rows, uploaded where it is not on the device."""
        if self._found is None or changed:
            self._fill(row_of)
            self._found = self.find_filled(stream)
        return self._found

    def find_filled(self, stream: Any, place: int | None = None) -> int:
        """The same, as `moving` tells; compiled code may have found the place of its like, or -1."""
        if self.carried:
            self._table = self._send(stream) if self._table is None else self._table
            return int(self._table.data.ptr)
        if place is None:
            place = self._place_of(self._set())
        if place is None or place < 0:
            wanted = self._set()
            table = self._find_captured(wanted)
            place = self._keep(wanted, table if table is not None else self._send(stream))
        self._used.remove(place)
        self._used.append(place)
        return int(self._lately[place].data.ptr)

    def _keep(self, told: np.ndarray, table: Any) -> int:
        """A place for a table that is on the device: that of the one not used for longest, where there are many."""
        if len(self._lately) < LATELY:
            place = len(self._lately)
            self._lately.append(table)
            self._used.append(place)
            self.n_sets[0] = place + 1
        else:
            place = self._used[0]
            self._spare.append(self._lately[place])
            self._lately[place] = table
        self.sets[place] = told
        return place

    def _place_of(self, wanted: np.ndarray) -> int | None:
        """Where a table that tells of a set is; most differ in their first address."""
        for place in self._used:
            if self.sets[place, 0, 0] == wanted[0, 0] and (self.sets[place] == wanted).all():
                return place
        return None

    def _find_captured(self, wanted: np.ndarray) -> Any:
        return next((table for told, table in self._captured if (told == wanted).all()), None)

    def capture(self) -> None:
        """A CUDA graph goes on reading the table of this step, and a step with the same set finds it again."""
        place = self._used[-1]
        if all(table is not self._lately[place] for _, table in self._captured):
            self._captured.append((self.sets[place].copy(), self._lately[place]))
            self._of_graphs.append(self._lately[place])

    def _set(self) -> np.ndarray:
        """What tells a set of gradients, and their rows, from others: (3, members)."""
        told = self.moving.T.copy()
        absent = (told[1] & ABSENT) != 0
        if absent.any():
            told[::2, absent] = 0
        return told

    def _fill(self, row_of: np.ndarray) -> None:
        """The words that change from step to step; compiled code fills them in the same way (`step`)."""
        vector = VECTOR * (self.dense * (self.gradients % ALIGNMENT == 0))
        self.moving[:, MOVING.flags] = np.where(self.present, self.flags | vector, self.flags | ABSENT)
        self.moving[:, MOVING.row] = row_of

    def _send(self, stream: Any) -> Any:
        columns = self.columns
        self.words[:, [columns.address[GRADIENT], columns.flags, columns.row]] = self.moving
        table = self._space(self.words.size + sum(map(len, self.layouts.values())))
        offset = self.words.size
        for (p, key), layout in self.layouts.items():
            self.words[p, self.columns.layout[key]] = table.data.ptr + 8 * offset
            offset += len(layout)
        words = np.concatenate([self.words.reshape(-1), *self.layouts.values()]) if self.layouts else self.words
        self._uploader.send(table.data.ptr, words, stream)
        return table

    def _space(self, words: int) -> Any:
        """Device memory for a table: where there are many, one that tells of a set not seen lately.

        None is given back while the bucket is there, as a launch under way may read it; so there are few sizes.
        """
        import cupy

        captured = set(map(id, self._of_graphs))
        self._spare = [table for table in self._spare if id(table) not in captured]
        for place, table in enumerate(self._spare):
            if len(table) >= words:
                return self._spare.pop(place)
        self.order.allocates()
        return cupy.empty(1 << (words - 1).bit_length(), np.int64)

