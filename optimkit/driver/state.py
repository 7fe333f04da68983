"""State: live views of it, copies of it by name, and optimizers in copies and pickles.

    opt.state["psi"]["m"]            # the array that the next step reads
    opt.state_dict()                 # a copy; `driver.loading` takes it over again
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.build import chain_of
from optimkit.driver.chain import Chain, SlotKey
from optimkit.driver.entries import Entry

FORMAT = 1


class SlotView(Mapping[str, Any]):
    """The slots of one parameter, live: `view["m"]` is an array; `view.t` counts its updates."""

    def __init__(self, optimizer: Any, entry: Entry, chain: Chain) -> None:
        entry.ensure_slots(chain)
        self._optimizer, self._entry = optimizer, entry
        self._keys = {chain.slot_label(key): key for key, slot in chain.slots().items() if slot.extent != "optimizer"}

    @property
    def t(self) -> int:
        """How many updates this parameter has had."""
        self._optimizer._store_counts()
        return self._entry.t

    def key(self, name: str) -> SlotKey:
        """Which rule's slot has this name."""
        return self._keys[name]

    def __getitem__(self, name: str) -> Any:
        if name not in self._keys:
            known = ", ".join(self._keys) or "none"
            raise KeyError(f"there is no slot {name!r}; there are {known}; those per optimizer are in opt.state.shared")
        return self._entry.value(self._keys[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"<state of {self._entry.name!r}: t={self.t}, slots {', '.join(self._keys) or 'none'}>"


class StateView(Mapping[str, SlotView]):
    """The state of all parameters, live, by name. `view.shared` has the slots per optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def shared(self) -> dict[str, Any]:
        """The slots that the optimizer has once, 0-d float64 arrays."""
        chain = _chain(self._optimizer, None)
        return {chain.slot_label(key): value for key, value in _shared(self._optimizer).items()}

    def __getitem__(self, name: str) -> SlotView:
        entry = self._optimizer._entry(name)
        return SlotView(self._optimizer, entry, _chain(self._optimizer, entry))

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizer.names)

    def __len__(self) -> int:
        return len(self._optimizer.names)

    def __repr__(self) -> str:
        return f"<state of {len(self)} parameters: {', '.join(self)}>"


def _chain(optimizer: Any, entry: Entry | None) -> Chain:
    group = entry.group if entry is not None else optimizer._groups[0]
    return chain_of(type(optimizer), group, optimizer._links, entry, optimizer.maximize)


def _shared(optimizer: Any) -> dict[tuple[int, str], np.ndarray]:
    """The slots per optimizer, made if they are not there yet."""
    for key, slot in _chain(optimizer, None).slots().items():
        if slot.extent == "optimizer":
            optimizer._shared.setdefault(key, np.full((), slot.value))
    return optimizer._shared  # type: ignore[no-any-return]


def state_dict(optimizer: Any) -> dict[str, Any]:
    """A copy of everything that a later run needs; plain dicts, lists, numbers and arrays."""
    with optimizer._lock:
        view = optimizer.state
        return {
            "format": FORMAT,
            "optimizer": type(optimizer).__name__,
            "count": optimizer.count,
            "groups": [
                {
                    "params": [entry.name for entry in optimizer._entries if entry.group is group],
                    "numbers": _numbers(group.values, optimizer),
                    "structure": _structure(group.values, optimizer),
                }
                for group in optimizer._groups
            ],
            "links": [
                {
                    "class": type(link).__name__,
                    "numbers": _numbers(link.__dict__, link),
                    "structure": _structure(link.__dict__, link),
                }
                for link in optimizer._links
            ],
            "shared": {name: float(value) for name, value in view.shared.items()},
            "state": {
                name: {
                    "t": slots.t,
                    "frozen": optimizer._entry(name).frozen,
                    "slots": {slot: _copy(value) for slot, value in slots.items()},
                }
                for name, slots in view.items()
            },
        }


def _numbers(values: Mapping[str, Any], rule: Any) -> dict[str, Any]:
    """The numbers that are no schedules; those are code, and stay the caller's."""
    found = {}
    for name in rule._numbers:
        value = values[name]
        parts = value if isinstance(value, tuple) else (value,)
        if all(part is None or isinstance(part, float) for part in parts):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _structure(values: Mapping[str, Any], rule: Any) -> dict[str, Any]:
    """The structure, as far as it is plain: what a saved state must agree with."""
    found = {name: values[name] for name in rule._kernel_fields()}
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float | str | None)}


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return float(value) if value.ndim == 0 and value.dtype == np.float64 and value.base is None else np.array(value)
    return arrays.as_library(value, value)


_KEPT = ("_links", "_groups", "_roots", "_shared", "_count", "_ever")


def pack(optimizer: Any) -> dict[str, Any]:
    """What a copy or a pickle of an optimizer holds; slots in the shape of their weights."""
    with optimizer._lock:
        optimizer._store_counts()
        fields = (*_KEPT, *optimizer._numbers, *optimizer._structure)
        packed = {name: optimizer.__dict__[name] for name in fields if name in optimizer.__dict__}
        packed["_entries"] = [
            {
                "name": entry.name,
                "param": entry.param,
                "group": entry.group,
                "leaf": entry.leaf,
                "t": entry.t,
                "frozen": entry.frozen,
                "slots": {key: np.array(arrays.to_numpy(entry.value(key))) for key in entry.slots},
                "uniforms": {key: value.copy() for key, value in entry.uniforms.items()},
            }
            for entry in optimizer._entries
        ]
        return packed


def unpack(optimizer: Any, packed: Mapping[str, Any]) -> None:
    """The other half of `pack`."""
    entries = []
    for own in packed["_entries"]:
        entry = Entry(**{**own, "slots": {}})
        for key, value in own["slots"].items():
            seen = arrays.view(arrays.as_library(value, entry.param.data))
            entry.slots[key] = entry.layout.apply(seen).copy().reshape(-1)
        entries.append(entry)
    optimizer.__dict__.update({name: value for name, value in packed.items() if name != "_entries"})
    optimizer.__dict__.update(_entries=entries, _lock=threading.RLock(), _stepping=False)
    optimizer.__dict__.update(_buckets=None, _gradients=None, _sources=None, _versions=0, _captured=[])
