"""Buckets: parameters that one compiled call serves.

They share library, device, dtype and the structure of their chain. Groups, rates and step counts
are rows of the scalar table, one for each distinct (group, t).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from optimkit import arrays
from optimkit.driver.entries.entry import Entry
from optimkit.driver.entries.group import Group
from optimkit.driver.steps.numbers import Numbers, Value
from optimkit.engines.protocol import Call, DeviceRunner, Engine, HostRunner, Member, Tables
from optimkit.fusion.stages import GRADIENT, WEIGHT, Plan
from optimkit.rules.chain import Chain, SlotKey
from optimkit.rules.slots import Slot, zeros

SMALL = 1 << 16  # elements of a parameter whose slots may lie beside those of others
LINE = 16  # elements at least in a line of the cache: where the next one's slot may start


class Bucket:
    """Some entries, their plan, and the engine at work on them."""

    def __init__(self, entries: Sequence[Entry], places: Sequence[int], chain: Chain, plan: Plan, engine: Engine) -> None:
        self.entries, self.chain, self.plan, self.engine = list(entries), chain, plan, engine
        self.library = entries[0].library
        self.places = np.array(places, np.int64)  # of the entries among all of the optimizer's
        self.members = self._make_members()
        self.runner: HostRunner | DeviceRunner = engine.runner(plan, entries[0].dtype, self.members)
        self.t = np.array([entry.t for entry in entries], np.int64)
        self.groups: list[Group] = list(dict.fromkeys(entry.group for entry in entries))
        self.group_of = np.array([self.groups.index(entry.group) for entry in entries], np.int64)
        self.active, self.n_active = np.zeros(len(entries), bool), 0
        self.classes: list[tuple[int, int]] = []
        n = len(entries)
        self.tables = Tables(np.zeros((0, len(plan.hosts))), np.zeros(n, np.int64), np.zeros((n, len(plan.uniforms))))
        self.counts_on_device = False
        self.numbers = Numbers(chain, self.groups, plan.numbers, entries[0].dtype.compute)
        self._filled = 0  # the version of the numbers that the rows are of
        self._sorted = False
        self._number_of = {place: number for number, place in enumerate(places)}
        self._lent: list[Member] = []  # members that hold a gradient, until the step ends

    def _make_members(self) -> list[Member]:
        own = {key: slot for key, slot in self.chain.slots().items() if slot.extent == "element"}
        starts: dict[Group, Mapping[SlotKey, Slot]] = {}  # a slot may start from a number, which groups have for themselves
        for entry in self.entries:
            if entry.group not in starts:
                rule = entry.group.rule(type(self.chain.optimizer))
                starts[entry.group] = self.chain._replace(optimizer=rule).slots()
        _share_slots(self.entries, own, starts)
        members = []
        for entry in self.entries:
            entry.ensure_slots(starts[entry.group])
            found: dict[Hashable, Any] = {WEIGHT: entry.in_order(entry.view)}
            for key, slot in own.items():
                kind = "input" if slot.is_constant else "slot"
                found[kind, *key, "element"] = entry.in_memory_shape(entry.slots[key])
            for name in self.plan.buffers:
                found[name] = entry.in_memory_shape(entry.make_flat(zeros))
            members.append(Member(entry.name, entry.param.size, found))
        return members

    @property
    def first_place(self) -> int:
        """Where the first member with a gradient stands among all parameters."""
        return int(self.places[np.argmax(self.active)])

    # ---- arrays that come and go

    def lend(self, views: Mapping[int, Any], shifts: np.ndarray, present: np.ndarray, sharing: Collection[int]) -> None:
        """Lend the engine the gradients that it has not seen, by place; the others moved by so many bytes.

        They are checked, in the weight's shape. `present` says which places have one. Those in `sharing` share memory: no
        pass may zero them.
        """
        if self.runner.keeps_addresses:
            self.runner.gradients_moved(shifts[self.places])
        numbers = []
        for place, view in views.items():
            number = self._number_of.get(place)
            if number is not None:
                numbers.append(number)
                self._lend(number, view)
                self.members[number].zero_in_pass = place not in sharing
        if numbers:
            self.runner.arrays_changed(numbers)
        self.set_active(present[self.places])

    def set_active(self, active: np.ndarray) -> None:
        """Which members have a gradient, (members,) bool."""
        if not np.array_equal(active, self.active):
            self.active, self.n_active, self._sorted = active, int(active.sum()), False
            self.runner.presence_changed(active)

    def lend_all(self, values: Sequence[Any]) -> None:
        """Lend all gradients, to who keeps no addresses: an eager engine, or a call of whole arrays."""
        for number, place in enumerate(self.places.tolist()):
            if self.members[number].gradient is None and values[place] is not None:
                self._lend(number, arrays.view(values[place]))

    def _lend(self, number: int, view: Any) -> None:
        member = self.members[number]
        self._lent.append(member)
        member.arrays[GRADIENT] = self.entries[number].in_order(view)

    def take_back(self) -> None:
        """The step is over: hold no gradient any more."""
        for member in self._lent:
            member.arrays.pop(GRADIENT, None)
        self._lent.clear()

    def adopt(self, place: int) -> None:
        """A weight is another array of the same memory order. The engine is told with its gradient, in the same step."""
        number = self._number_of.get(place)
        if number is not None:
            self.members[number].arrays[WEIGHT] = self.entries[number].in_order(self.entries[number].view)

    # ---- numbers and counts

    def fill_rows(self, value: Value) -> None:
        """Compute the host values of this step: one row per distinct (group, t)."""
        self.numbers.refresh(value)
        if not self._sorted:
            self._sort_rows()
        if self.counts_on_device and self._filled == self.numbers.version:
            return
        host, numbers = self.plan.host, self.numbers.table.tolist()
        self.tables.rows[:] = [host(numbers[group], t + 1) for group, t in self.classes]
        self.tables.rows_changed, self._filled = True, self.numbers.version

    def _sort_rows(self) -> None:
        """Which rows there are, and which of them each member reads."""
        tables, count = self.tables, len(self.groups)
        if self.counts_on_device:  # all groups have rows, whoever is active: a CUDA graph goes on reading them
            pairs = self.group_of
        else:
            pairs = self.t * count + self.group_of
            pairs[~self.active] = pairs[self.active.argmax()]  # their row is not read, but must exist
        if (pairs == pairs[0]).all():
            classes, tables.row_of = pairs[:1], np.zeros(len(pairs), np.int64)
        else:
            classes, row_of = np.unique(pairs, return_inverse=True)
            tables.row_of = row_of.astype(np.int64)
        self.classes = [(pair % count, pair // count) for pair in classes.tolist()]
        tables.rows = np.zeros((len(classes), len(self.plan.hosts)))
        tables.row_of_changed, self._sorted, self._filled = True, True, 0

    def stepped_elsewhere(self, present: np.ndarray) -> None:
        """Steps were taken in compiled code: counts have changed, and which places have a gradient."""
        self.active = present[self.places]
        self.n_active, self._sorted = int(self.active.sum()), False
        self.runner.presence_changed(self.active)

    def count_up(self) -> list[Call]:
        """What counts one more update for each parameter that takes part, where that is not done on the device."""
        if self.counts_on_device:
            return []
        self._sorted = False
        return [partial(np.add, self.t, self.active, self.t)]

    def counted(self) -> None:
        """The step was applied: rows are of the same parameters, with other counts."""
        if not self.counts_on_device:
            self.classes = [(group, t + 1) for group, t in self.classes]
            self._sorted = True

    def written(self) -> list[Any]:
        """The weights that a step wrote, as the caller has them."""
        return [entry.param.data for entry, active in zip(self.entries, self.active, strict=True) if active]

    def counts(self) -> np.ndarray:
        """The update counts, as they are now."""
        if self.counts_on_device:
            self.t = cast(DeviceRunner, self.runner).get_counts()
        return self.t

    def store_counts(self) -> None:
        """Write the update counts back to the entries."""
        for entry, t in zip(self.entries, self.counts().tolist(), strict=True):
            entry.t = t


def _share_slots(
    entries: Sequence[Entry], slots: Mapping[SlotKey, Slot], starts: Mapping[Group, Mapping[SlotKey, Slot]]
) -> None:
    """Make the slots of small parameters side by side, one array for each slot.

    A step over a thousand small parameters then walks through memory in order: a tenth less time (measured).
    """
    for key, slot in slots.items():
        small = [entry for entry in entries if entry.param.size <= SMALL and arrays.library(entry.view) == "numpy"]
        new = [entry for entry in small if key not in entry.slots]
        if len(new) < 2 or slot.kind == "copy_of_weight":
            continue
        stops = np.cumsum([-(-entry.param.size // LINE) * LINE for entry in new])
        dtype = new[0].dtype.of_slot(slot.is_real)
        shared = np.zeros(stops[-1], dtype)
        for entry, start in zip(new, [0, *stops.tolist()[:-1]], strict=True):
            own = entry.slots[key] = shared[start : start + entry.param.size]
            if starts[entry.group][key].value:
                own[...] = starts[entry.group][key].value
