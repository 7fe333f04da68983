"""Buckets: parameters that one compiled call serves.

They share library, device, dtype and the structure of their chain. Groups, rates and step counts
are rows of the scalar table, one for each distinct (group, t).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from optimkit import arrays
from optimkit.driver.chain import Chain, SlotKey
from optimkit.driver.entries import Entry, Group
from optimkit.engines.eager import uniform_value
from optimkit.engines.runner import DeviceRunner, Member, Runner, Tables
from optimkit.fusion.graph import REDUCTIONS, Level, Node
from optimkit.fusion.stages import Plan
from optimkit.rule import Slot

Shared = dict[tuple[int, str], np.ndarray]

SMALL = 1 << 16  # elements of a parameter whose slots may lie beside those of others
LINE = 16  # elements at least in a line of the cache: where the next one's slot may start


class Bucket:
    """Some entries, their plan, and the engine at work on them."""

    def __init__(self, entries: Sequence[Entry], places: Sequence[int], chain: Chain, plan: Plan, engine: type[Runner]) -> None:
        self.entries, self.chain, self.plan = list(entries), chain, plan
        self.places = np.array(places, np.int64)  # of the entries among all of the optimizer's
        self.members = self._make_members()
        self.runner = engine(plan, entries[0].param.dtype, self.members)
        self.t = np.array([entry.t for entry in entries], np.int64)
        self.groups: list[Group] = list(dict.fromkeys(entry.group for entry in entries))
        self.group_of = np.array([self.groups.index(entry.group) for entry in entries], np.int64)
        self.active, self.n_active = np.zeros(len(entries), bool), 0
        self.classes: list[tuple[int, int]] = []
        n = len(entries)
        self.tables = Tables(np.zeros((0, len(plan.hosts))), np.zeros(n, np.int64), np.zeros((n, len(plan.uniforms))))
        self.values: dict[Node, Any] = {}
        self._sorted = False
        self.device: Any = None  # the DeviceSteps that it takes part in
        self._number_of = {place: number for number, place in enumerate(places)}
        self._lent: list[Member] = []  # members that hold a gradient, until the step ends

    @property
    def on_device(self) -> bool:
        """Whether its arrays live on a device, where steps run while the host goes on."""
        return self.runner.together is not None

    @property
    def counts_on_device(self) -> bool:
        return self.device is not None and self.device.device_count

    def _make_members(self) -> list[Member]:
        slots = self.chain.slots()
        keys = {key: ("slot", *key, "element") for key, slot in slots.items() if slot.extent == "element"}
        _share_slots(self.entries, {key: slots[key] for key in keys})
        members = []
        for entry in self.entries:
            entry.ensure_slots(self.chain)
            own: dict[Hashable, Any] = {name: entry.slots[key] for key, name in keys.items()}
            members.append(Member(entry.name, entry.layout.apply(entry.view), own, entry.param.size))
        return members

    @property
    def first_place(self) -> int:
        """Where the first member with a gradient stands among all parameters."""
        return int(self.places[np.argmax(self.active)])

    def lend(self, views: Mapping[int, Any], shifts: np.ndarray, apart: Collection[int]) -> None:
        """Lend the engine the gradients that it has not seen, by place; the others moved by so many bytes.

        They are checked, in the weight's shape, None for none. Those `apart` share memory: no pass may zero them.
        """
        if self.runner.keeps_addresses:
            self.runner.gradients_moved(shifts[self.places])
        numbers = []
        for place, view in views.items():
            number = self._number_of.get(place)
            if number is None:
                continue
            numbers.append(number)
            self._lend(number, view)
            self.members[number].zero_in_pass = place not in apart
            if self.active[number] != (view is not None):
                self.active[number] = view is not None
                self.n_active += 1 if view is not None else -1
                self._sorted = False
        if numbers:
            self.runner.members_changed(numbers)

    def lend_all(self, values: Sequence[Any]) -> None:
        """Lend all gradients, to an engine that keeps no addresses."""
        for number, place in enumerate(self.places.tolist()):
            if self.members[number].gradient is None and values[place] is not None:
                self._lend(number, arrays.view(values[place]))

    def _lend(self, number: int, view: Any) -> None:
        member = self.members[number]
        member.gradient = None if view is None else self.entries[number].layout.apply(view)
        self._lent.append(member)

    def take_back(self) -> None:
        """The step is over: hold no gradient any more."""
        for member in self._lent:
            member.gradient = None
        self._lent.clear()

    def adopt(self, place: int) -> None:
        """A weight is another array of the same memory order. The engine is told with its gradient, in the same step."""
        number = self._number_of.get(place)
        if number is not None:
            self.members[number].weight = self.entries[number].layout.apply(self.entries[number].view)

    def fill_rows(self, value: Callable[[Group, Hashable], float]) -> None:
        """Compute the host values of this step: one row per distinct (group, t)."""
        tables, plan = self.tables, self.plan
        if not self._sorted:
            pairs = self.t * (len(self.groups) * (not self.counts_on_device)) + self.group_of
            if not self.counts_on_device:  # there, all groups have rows: a CUDA graph goes on reading them
                pairs[~self.active] = pairs[np.argmax(self.active)]  # their row is not read, but must exist
            classes, row_of = np.unique(pairs, return_inverse=True)
            self.classes = [(pair % len(self.groups), pair // len(self.groups)) for pair in classes.tolist()]
            tables.row_of = row_of.astype(np.int64)
            tables.rows = np.zeros((len(classes), len(plan.hosts)))
            tables.row_of_changed, self._sorted = True, True
        tables.rows_changed = True
        numbers: dict[int, list[float]] = {}
        for row, (group, t) in enumerate(self.classes):
            if group not in numbers:
                numbers[group] = [value(self.groups[group], key) for key in plan.numbers]
            tables.rows[row] = plan.host(numbers[group], t + 1)

    def start_uniforms(self, shared: Shared) -> None:
        """Uniform values that are known before any pass: sizes and slots."""
        self.values.clear()
        for node in self.plan.uniform_rounds.get(0, ()):
            if node.op == "size":
                self.values[node] = np.array([float(member.size) for member in self.members])
            elif node.op == "slot":
                index, name, extent = cast(tuple[int, str, str], node.key)
                if extent == "optimizer":
                    self.values[node] = float(shared[index, name])
                else:
                    self.values[node] = np.array([float(entry.uniforms[index, name]) for entry in self.entries])
            else:
                self.values[node] = self._compute(node)
            self._store(node)

    def reduce(self, number: int) -> None:
        """Run a reading stage and keep its values."""
        results = self.runner.reduce(number, self.tables)
        for column, node in enumerate(self.plan.stages[number].reductions):
            self.values[node] = results[:, column]
            self._store(node)

    def finish_round(self, number: int, totals: dict[Hashable, float]) -> None:
        """Compute the uniform values of a round, whose reductions and totals are known."""
        for node in self.plan.uniform_rounds.get(number, ()):
            if node.op in REDUCTIONS:
                continue
            self.values[node] = totals[node.key] if node.op == "total" else self._compute(node)
            self._store(node)

    def _compute(self, node: Node) -> Any:
        return uniform_value(node.op, [self.uniform(arg) for arg in node.args])

    def uniform(self, node: Node) -> Any:
        """A host or uniform value: a float, or one per member."""
        if node.op == "constant":
            return float(node.key) if node.kind == "real" else node.key  # type: ignore[arg-type]
        if node.level is Level.HOST:
            column = self.tables.rows[:, self.plan.hosts.index(node)]
            return float(column[0]) if len(column) == 1 else column[self.tables.row_of]
        return self.values[node]

    def _store(self, node: Node) -> None:
        if node in self.plan.uniforms:
            self.tables.uniforms[:, self.plan.uniforms.index(node)] = self.values[node]

    def contribution(self, node: Node) -> np.ndarray:
        """What each member adds to a total: its value, or 0 where it takes no part."""
        value = self.uniform(node)
        return np.where(self.active, value, 0.0)

    def commit(self, zero: bool, shared: Shared) -> None:
        """Write weights, slots, uniform slots and counts."""
        self.runner.commit(self.tables, zero)
        for key, node in self.plan.slot_outputs.items():
            _, index, name, extent = cast(tuple[str, int, str, str], key)
            value = self.uniform(node)
            if extent == "optimizer":
                first = int(np.argmax(self.active))
                shared[index, name][...] = value if np.ndim(value) == 0 else value[first]
            else:
                for number in np.flatnonzero(self.active):
                    self.entries[number].uniforms[index, name][...] = value if np.ndim(value) == 0 else value[number]
        self.count_up()
        if self.entries[0].param.library == "torch":
            arrays.bump_versions([e.param.data for e, on in zip(self.entries, self.active, strict=True) if on])

    def count_up(self) -> None:
        """The step was applied: one more update for each parameter that took part."""
        self.t += self.active
        self.classes = [(group, t + 1) for group, t in self.classes]

    def store_counts(self) -> None:
        """Write the update counts back to the entries."""
        if self.counts_on_device:
            self.t = cast(DeviceRunner, self.runner).get_counts()
        for entry, t in zip(self.entries, self.t.tolist(), strict=True):
            entry.t = t


def _share_slots(entries: Sequence[Entry], slots: Mapping[SlotKey, Slot]) -> None:
    """Make the slots of small parameters side by side, one array for each slot.

    A step over a thousand small parameters then walks through memory in order: a tenth less time (measured).
    """
    for key, slot in slots.items():
        small = [entry for entry in entries if entry.param.size <= SMALL and isinstance(entry.view, np.ndarray)]
        new = [entry for entry in small if key not in entry.slots]
        if len(new) < 2 or slot.kind == "copy_of_weight":
            continue
        stops = np.cumsum([-(-entry.param.size // LINE) * LINE for entry in new])
        shared = np.full(stops[-1], slot.value, new[0].view.dtype) if slot.value else np.zeros(stops[-1], new[0].view.dtype)
        for entry, start in zip(new, [0, *stops.tolist()[:-1]], strict=True):
            entry.slots[key] = shared[start : start + entry.param.size]
