"""Uniform values on the host: what is known of each parameter once its reductions, and the totals, are known."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from operator import setitem
from typing import Any, cast

import numpy as np

from optimkit.driver.steps.bucket import Bucket
from optimkit.engines.eager.whole import uniform_value
from optimkit.engines.protocol import Call
from optimkit.fusion.graph import REDUCTIONS, Level, Node
from optimkit.rules.chain import SlotKey
from optimkit.rules.slots import Slot

Shared = dict[SlotKey, np.ndarray]


class SharedSlots(dict[SlotKey, Any]):
    """The slots that an optimizer has once, 0-d float64 arrays, and what those not updated yet started from."""

    def __init__(self, values: Mapping[SlotKey, Any] | None = None, starts: Mapping[SlotKey, float] | None = None) -> None:
        super().__init__(values or {})
        self.starts = dict(starts or {})

    def ensure(self, declared: Mapping[SlotKey, Slot], fresh: bool) -> None:
        """Make those that are declared and not there yet; those of an optimizer that took no step start as they are now."""
        for key, slot in declared.items():
            if slot.extent != "optimizer":
                continue
            if key not in self:
                self[key] = np.full((), slot.value)
            elif fresh and self.starts.get(key, slot.value) != slot.value and self[key] == self.starts[key]:
                self[key][...] = slot.value
            self.starts[key] = slot.value

    def copied(self) -> SharedSlots:
        """The same, in arrays of their own."""
        return SharedSlots({key: value.copy() for key, value in self.items()}, self.starts)

    def __reduce__(self) -> Any:
        return SharedSlots, (dict(self), self.starts)


class Uniforms:
    """The uniform values of one bucket in a step: a float, or one per member; those that kernels read go to its table."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket, self.plan, self.tables = bucket, bucket.plan, bucket.tables
        self.values: dict[Node, Any] = {}
        self.columns = {node: column for column, node in enumerate(self.plan.uniforms)}
        self.host_columns = {node: column for column, node in enumerate(self.plan.hosts)}
        rounds = self.plan.uniform_rounds
        self.totals = {number: [node for node in rounds[number] if node.op == "total"] for number in rounds}
        self.following = {number: [node for node in rounds[number] if node.op not in REDUCTIONS] for number in rounds}

    def start(self, shared: Shared) -> None:
        """What is known before any pass: sizes and slots."""
        self.values.clear()
        members, entries = self.bucket.members, self.bucket.entries
        for node in self.plan.uniform_rounds.get(0, ()):
            if node.op == "size":
                value: Any = np.array([float(member.size) for member in members])
            elif node.op == "slot":
                index, name, extent = cast(tuple[int, str, str], node.key)
                if extent == "optimizer":
                    value = float(shared[index, name])
                else:
                    value = np.array([float(entry.uniforms[index, name]) for entry in entries])
            else:
                value = self._compute(node)
            self.keep(node, value)

    def keep(self, node: Node, value: Any) -> None:
        """A value is known now."""
        self.values[node] = value
        column = self.columns.get(node)
        if column is not None:
            self.tables.uniforms[:, column] = value

    def finish(self, number: int, totals: Mapping[Hashable, float]) -> None:
        """Compute the values of a round, whose reductions and totals are known."""
        for node in self.following.get(number, ()):
            self.keep(node, totals[node.key] if node.op == "total" else self._compute(node))

    def _compute(self, node: Node) -> Any:
        return uniform_value(node.op, [self.value(arg) for arg in node.args])

    def value(self, node: Node) -> Any:
        """A host or uniform value: a float, or one per member."""
        if node.op == "constant":
            return float(node.key) if node.kind == "real" else node.key  # type: ignore[arg-type]
        if node.level is Level.HOST:
            column = self.tables.rows[:, self.host_columns[node]]
            return float(column[0]) if len(column) == 1 else column[self.tables.row_of]
        return self.values[node]

    def contributions(self, number: int) -> dict[Hashable, np.ndarray]:
        """What each member adds to the totals of a round: its value, or 0 where it takes no part."""
        active = self.bucket.active
        return {node.key: np.where(active, self.value(node.args[0]), 0.0) for node in self.totals.get(number, ())}

    def gradient_norm(self) -> float:
        """The norm of all gradients of the step, where the program computes it."""
        assert self.plan.program.gradient_norm is not None
        value = self.value(self.plan.program.gradient_norm)
        return float(value if np.ndim(value) == 0 else value[0])

    def write_slots(self, shared: Shared) -> list[Call]:
        """What writes the slots per parameter and per optimizer."""
        active, writes = self.bucket.active, []
        for key, node in self.plan.slot_outputs.items():
            _, index, name, extent = cast(tuple[str, int, str, str], key)
            value = self.value(node)
            if extent == "optimizer":
                writes.append((shared[index, name], value if np.ndim(value) == 0 else value[int(np.argmax(active))]))
            else:
                for number in np.flatnonzero(active):
                    target = self.bucket.entries[number].uniforms[index, name]
                    writes.append((target, value if np.ndim(value) == 0 else value[number]))
        return [partial(setitem, target, ..., value) for target, value in writes]
