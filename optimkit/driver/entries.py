"""What the driver keeps for each parameter and each group.

An `Entry` is a parameter in an optimizer: its Param, where it stands in the caller's container,
its update count and its state. A `Group` is a set of values of the optimizer's fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.arrays import Layout
from optimkit.driver.chain import Chain, SlotKey
from optimkit.params import Leaf, Param, data_of
from optimkit.rule import Rule, Slot


@dataclass(eq=False)
class Group:
    """Values of all fields of the optimizer, shared by some parameters."""

    values: dict[str, Any]
    factors: dict[int, float] = field(default_factory=dict)

    def rule(self, cls: type[Rule]) -> Any:
        """A rule with this group's values: no parameters, no driver."""
        rule = object.__new__(cls)
        rule.__dict__.update(self.values)
        return rule


@dataclass(eq=False)
class Entry:
    """A parameter in an optimizer.

    `anchor` is what stands in the container (an array, a Param, a tensor, a holder). `slots` are flat
    arrays in memory order of the weight; `uniforms` are 0-d float64 arrays, the slots per parameter.
    """

    name: str
    param: Param
    group: Group
    leaf: Leaf
    t: int = 0
    frozen: bool = False
    slots: dict[SlotKey, Any] = field(default_factory=dict)
    uniforms: dict[SlotKey, np.ndarray] = field(default_factory=dict)
    layout: Layout = field(init=False)
    layout_before: Layout | None = None
    view: Any = field(init=False)
    taken: Any = field(init=False)  # the Param's array when it was last looked at
    pointer: int = 0
    handed_out: bool = False  # the caller has seen `param`, and may set its data

    def __post_init__(self) -> None:
        self.take_data()

    @property
    def anchor(self) -> Any:
        return self.leaf.value

    @property
    def bucket_key(self) -> tuple[Any, ...]:
        return self.param.library, self.param.device, self.param.dtype

    def take_data(self) -> bool:
        """Look at the Param's array again; True if its memory order changed."""
        old = getattr(self, "layout", None)
        self.taken = self.param.data
        self.view = arrays.view(self.param.data)
        self.layout = Layout.of(self.view)
        if self.param.library == "torch":
            self.pointer = self.param.data.data_ptr()
        if old is not None and old != self.layout:
            self.layout_before = old
            return True
        return False

    def adopt(self, now: Any) -> None:
        """What stands in the container now: another array, or another object with the same one; checked before."""
        if isinstance(now, Param):
            self.param = now
            now.placed(self.name)
        elif self.param is self.anchor:
            self.param = Param(data_of(now), None, self.name)
        else:
            self.param.take_same(data_of(now))
        self.leaf.value = now

    def renew(self, fresh: Entry, keep_counts: bool) -> None:
        """Take the array and the slots of another entry."""
        self.slots = fresh.slots
        if not keep_counts:
            self.uniforms, self.t = fresh.uniforms, 0
        self.layout_before = None
        self.view, self.layout, self.pointer, self.taken = fresh.view, fresh.layout, fresh.pointer, fresh.taken

    def reorder_slots(self) -> None:
        """Bring the slots into the memory order that the weight has now."""
        assert self.layout_before is not None
        for key, flat in self.slots.items():
            seen = self.layout_before.restore(flat, self.param.shape)
            self.slots[key] = self.layout.apply(seen).copy().reshape(-1)

    def ensure_slots(self, chain: Chain) -> None:
        """Make the state that the chain declares and this entry does not have yet."""
        for key, slot in chain.slots().items():
            if slot.extent == "parameter":
                self.uniforms.setdefault(key, np.full((), slot.value))
            elif slot.extent == "element" and key not in self.slots:
                self.slots[key] = self._make(slot)

    def _make(self, slot: Slot) -> Any:
        seen = self.layout.apply(self.view)
        xp = arrays.namespace(seen)
        if slot.kind == "copy_of_weight":
            return xp.reshape(xp.asarray(seen, copy=True), (-1,))
        if slot.value == 0.0:  # zeros come from untouched pages
            return xp.zeros((self.param.size,), dtype=seen.dtype, device=seen.device)
        return xp.full((self.param.size,), slot.value, dtype=seen.dtype, device=seen.device)

    def value(self, key: SlotKey) -> Any:
        """A live view of a slot: in the weight's shape and library, or 0-d float64."""
        if key in self.uniforms:
            return self.uniforms[key]
        return arrays.from_view(self.layout.restore(self.slots[key], self.param.shape), self.param.data)

    def set_value(self, key: SlotKey, new: Any) -> None:
        """Fill a slot with an array of the weight's shape, or a number."""
        if key in self.uniforms:
            self.uniforms[key][...] = float(new)
        else:
            seen = self.layout.restore(self.slots[key], self.param.shape)
            seen[...] = arrays.view(arrays.as_library(new, self.param.data))
