"""An `Entry`: a parameter in an optimizer: its Param, where it stands in the caller's container, its count and its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.arrays import DTYPES, DType, MemoryOrder
from optimkit.containers.param import Param
from optimkit.containers.tree import Leaf, data_of
from optimkit.driver.entries.group import Group
from optimkit.rules.chain import SlotKey
from optimkit.rules.slots import Slot


@dataclass(eq=False, repr=False)
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
    starts: dict[SlotKey, float] = field(default_factory=dict)  # of slots that were not updated yet: what they start as
    order: MemoryOrder = field(init=False)
    view: Any = field(init=False)
    taken: Any = field(init=False)  # the Param's array when it was last looked at
    changeable: Any = field(init=False)  # and what could be changed of it in place, as it was then
    kept: MemoryOrder | None = None  # that of the array that this one is a copy of: sums go in it
    handed_out: bool = False  # the caller has seen `param`, and may set its data

    def __post_init__(self) -> None:
        self.take_data()

    @property
    def anchor(self) -> Any:
        return self.leaf.value

    @property
    def dtype(self) -> DType:
        return DTYPES[self.param.dtype]

    @property
    def library(self) -> arrays.Library:
        return arrays.named(self.param.library)

    @property
    def bucket_key(self) -> tuple[Any, ...]:
        """What one call of an engine has in common, beside the chain."""
        return self.param.library, self.param.device, self.param.dtype

    def take_data(self) -> bool:
        """Look at the Param's array again; True if its memory order changed: the slots are brought into it."""
        data = self.param.data
        view = arrays.view(data)
        now = {"taken": data, "view": view, "changeable": self.library.changeable([data])[0]}
        if "taken" in self.__dict__:  # it was replaced
            now["kept"] = None
        return self._take_order(MemoryOrder.of(view), now)

    def settle_order(self, sums: bool) -> None:
        """Take the memory order of the array that this one is a copy of, where `sums` are formed in it; else its own."""
        if self.kept is not None:
            self._take_order(self.kept if sums else MemoryOrder.of(self.view), {})

    def _take_order(self, order: MemoryOrder, now: dict[str, Any]) -> bool:
        """Bring the slots into another order, with what else is new; whether it is another one."""
        old = self.__dict__.get("order")
        now["order"] = order
        if old is not None and old != order:
            shaped = {key: old.restore(flat, self.param.shape) for key, flat in self.slots.items()}
            now["slots"] = {key: _flat(order.apply(x)) for key, x in shaped.items()}
        self.__dict__.update(now)  # at once
        return "slots" in now

    def is_another(self, data: Any) -> bool:
        """Whether an array is not the one that was looked at, or not as it was then."""
        return data is not self.taken or bool(self.library.changeable([data])[0] != self.changeable)

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
        self.__dict__.update({name: getattr(fresh, name) for name in ("view", "order", "kept", "taken", "changeable")})

    # ---- arrays in memory order

    def in_order(self, x: Any) -> Any:
        """An array of the weight's shape, or a slot, seen in memory order of the weight."""
        return self.order.apply(x)

    def in_shape(self, x: Any) -> Any:
        """An array in memory order, flat or not, seen in the weight's shape."""
        return self.order.restore(x, self.param.shape)

    def in_memory_shape(self, flat: Any) -> Any:
        """A flat array in memory order, with the axes of the weight in that order."""
        shape = self.order.shape(self.param.shape)
        return flat if shape == tuple(flat.shape) else arrays.library_of(flat).reshape(flat, shape)

    # ---- state

    def ensure_slots(self, declared: Mapping[SlotKey, Slot]) -> bool:
        """Make the state that is declared and that this entry does not have yet; whether there was any.

        Until its first update a slot starts as it is declared now, whether or not it was looked at; one that was filled stays.
        """
        made = False
        for key, slot in declared.items():
            if slot.extent == "optimizer":
                continue
            found: dict[SlotKey, Any] = self.uniforms if slot.extent == "parameter" else self.slots
            if key not in found:
                made = True
                found[key] = np.full((), slot.value) if slot.extent == "parameter" else self.make_flat(slot)
            elif self.t == 0 and self._starts_otherwise(key, slot) and (arrays.to_numpy(found[key]) == self.starts[key]).all():
                found[key][...] = slot.value
            self.starts[key] = slot.value
        return made

    def _starts_otherwise(self, key: SlotKey, slot: Slot) -> bool:
        return key in self.starts and self.starts[key] != slot.value

    def make_flat(self, slot: Slot) -> Any:
        """An array for a slot, as it starts: flat, in memory order."""
        library, dtype = arrays.library_of(self.view), self.dtype.of_slot(slot.is_real)
        if slot.kind == "copy_of_weight":
            return library.flat_copy(self.in_order(self.view), dtype)
        return library.full(self.param.size, slot.value, dtype, self.view)

    def value(self, key: SlotKey) -> Any:
        """A live view of a slot: in the weight's shape and library, or 0-d float64; a new one each time, never our array."""
        if key in self.uniforms:
            return self.uniforms[key][...]
        return arrays.from_view(self.in_shape(self.slots[key]), self.param.data)

    def set_value(self, key: SlotKey, new: Any) -> None:
        """Fill a slot with an array of the weight's shape, or a number."""
        if key in self.uniforms:
            self.uniforms[key][...] = float(new)
        else:
            seen = self.in_shape(self.slots[key])
            seen[...] = arrays.view(arrays.copy_of(new, self.param.data))

    def put_slot(self, key: SlotKey, value: Any) -> None:
        """Have a slot of one's own with these values, of the weight's shape."""
        self.slots[key] = _flat(self.in_order(arrays.view(arrays.copy_of(value, self.param.data))))


def _flat(x: Any) -> Any:
    """A flat copy of an array that is seen in memory order."""
    return arrays.library_of(x).flat_copy(x, arrays.dtype_name(x))
