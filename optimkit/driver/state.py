"""State: live views of it, copies of it by name, and optimizers in files and copies."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.build import chain_of
from optimkit.driver.chain import Chain
from optimkit.driver.entries import Entry

FORMAT = 1


class SlotView(Mapping[str, Any]):
    """The slots of one parameter, live: `view["m"]` is an array; `view.t` counts its updates."""

    def __init__(self, entry: Entry, chain: Chain) -> None:
        entry.ensure_slots(chain)
        self._entry = entry
        self._keys = {chain.slot_label(key): key for key, slot in chain.slots().items() if slot.extent != "optimizer"}

    @property
    def t(self) -> int:
        """How many updates this parameter has had."""
        return self._entry.t

    def __getitem__(self, name: str) -> Any:
        if name not in self._keys:
            raise KeyError(f"there is no slot {name!r}; there are {', '.join(self._keys) or 'none'}")
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
        return SlotView(entry, _chain(self._optimizer, entry))

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizer.names)

    def __len__(self) -> int:
        return len(self._optimizer.names)


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
        groups = [
            {"params": [entry.name for entry in optimizer._entries if entry.group is group], **_plain(group.values, optimizer)}
            for group in optimizer._groups
        ]
        return {
            "format": FORMAT,
            "optimizer": type(optimizer).__name__,
            "count": optimizer.count,
            "groups": groups,
            "links": [{"class": type(link).__name__, **_plain(link.__dict__, link)} for link in optimizer._links],
            "shared": {name: float(value) for name, value in view.shared.items()},
            "state": {
                name: {"t": slots.t, "slots": {slot: _copy(value) for slot, value in slots.items()}}
                for name, slots in view.items()
            },
        }


def _plain(values: Mapping[str, Any], rule: Any) -> dict[str, Any]:
    """The numbers that are no schedules; those are code, and stay the caller's."""
    found = {}
    for name in rule._numbers:
        value = values[name]
        parts = value if isinstance(value, tuple) else (value,)
        if all(part is None or isinstance(part, float) for part in parts):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return float(value) if value.ndim == 0 and value.dtype == np.float64 and value.base is None else np.array(value)
    return arrays.as_library(value, value)


def load_state_dict(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Take over a copy of a saved state, or raise one ValueError with every difference, nothing changed."""
    with optimizer._lock:
        views = dict(optimizer.state)
        problems = _differences(optimizer, saved, views)
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            raise ValueError(f"the saved state does not fit this {type(optimizer).__name__}; nothing was changed:\n{listed}")
        for name, part in saved["state"].items():
            entry, view = views[name]._entry, views[name]
            for slot, value in part["slots"].items():
                entry.set_value(view._keys[slot], value)
            entry.t = int(part["t"])
        for group, own in zip(optimizer._groups, saved["groups"], strict=True):
            _restore(group.values, own, optimizer)
        for link, own in zip(optimizer._links, saved["links"], strict=True):
            _restore(link.__dict__, own, link)
        shared = optimizer.state.shared
        for name, value in saved["shared"].items():
            shared[name][...] = value
        optimizer.__dict__.update(_count=int(saved["count"]), _buckets=None, _gradients=None, _sources=None)


def _restore(values: dict[str, Any], own: Mapping[str, Any], rule: Any) -> None:
    for name, value in own.items():
        if name in rule._numbers and not callable(values[name]):
            values[name] = rule._numbers[name].coerce(tuple(value) if isinstance(value, list) else value)


def _differences(optimizer: Any, saved: Mapping[str, Any], views: Mapping[str, SlotView]) -> list[str]:
    """What does not fit, in words."""
    needed = ("format", "optimizer", "count", "groups", "links", "shared", "state")
    missing = [key for key in needed if not isinstance(saved, Mapping) or key not in saved]
    if missing:
        return [f"it is no state_dict of optimkit: it lacks {', '.join(missing)}"]
    problems = []
    if saved["format"] != FORMAT:
        problems.append(f"its format is {saved['format']!r}, this version reads {FORMAT}")
    if saved["optimizer"] != type(optimizer).__name__:
        problems.append(f"it was saved by {saved['optimizer']}")
    links = [type(link).__name__ for link in optimizer._links]
    if [each.get("class") for each in saved["links"]] != links:
        problems.append(f"it has the links {[each.get('class') for each in saved['links']]}, here are {links}")
    here = [[entry.name for entry in optimizer._entries if entry.group is group] for group in optimizer._groups]
    if [each.get("params") for each in saved["groups"]] != here:
        there = [each.get("params") for each in saved["groups"]]
        problems.append(f"its groups have the parameters {there}, here they have {here}")
    problems += [f"parameter {name!r} is missing in it" for name in views if name not in saved["state"]]
    problems += [f"parameter {name!r} is unknown here" for name in saved["state"] if name not in views]
    for name, view in views.items():
        if name in saved["state"]:
            problems += _slot_differences(name, view, saved["state"][name])
    known = set(optimizer.state.shared)
    if set(saved["shared"]) != known:
        problems.append(f"its shared slots are {sorted(saved['shared'])}, here are {sorted(known)}")
    problems += _number_differences(optimizer, saved)
    return problems


def _slot_differences(name: str, view: SlotView, part: Any) -> list[str]:
    problems = []
    if not isinstance(part, Mapping) or not isinstance(part.get("t"), int) or not isinstance(part.get("slots"), Mapping):
        return [f"the state of {name!r} has no t and slots"]
    slots = part["slots"]
    problems += [f"{name!r}: slot {slot!r} is missing in it" for slot in view if slot not in slots]
    problems += [f"{name!r}: slot {slot!r} is unknown here" for slot in slots if slot not in view]
    for slot in set(view) & set(slots):
        mine, theirs = view[slot], slots[slot]
        if tuple(np.shape(theirs)) != tuple(mine.shape):
            problems.append(f"{name!r}: slot {slot!r} has shape {tuple(np.shape(theirs))}, here {tuple(mine.shape)}")
        elif arrays.is_array(theirs) and arrays.dtype_name(theirs) != arrays.dtype_name(mine):
            dtypes = f"{arrays.dtype_name(theirs)}, here {arrays.dtype_name(mine)}"
            problems.append(f"{name!r}: slot {slot!r} is {dtypes}; convert it if that is meant")
    return sorted(problems)


def _number_differences(optimizer: Any, saved: Mapping[str, Any]) -> list[str]:
    problems = []
    rules = [(type(optimizer).__name__, optimizer, own) for own in saved["groups"]]
    rules += [(type(link).__name__, link, own) for link, own in zip(optimizer._links, saved["links"], strict=False)]
    for label, rule, own in rules:
        for name, value in own.items():
            if name in ("params", "class"):
                continue
            if name not in rule._numbers:
                problems.append(f"{label} has no number {name!r}")
                continue
            try:
                rule._numbers[name].coerce(tuple(value) if isinstance(value, list) else value)
            except (TypeError, ValueError) as error:
                problems.append(str(error))
    return problems


_TRANSIENT = ("_buckets", "_gradients", "_sources", "_lock", "_stepping", "_versions")


def pack(optimizer: Any) -> dict[str, Any]:
    """What a copy or a pickle of an optimizer holds; slots in the shape of their weights."""
    with optimizer._lock:
        optimizer._store_counts()
        packed = {name: value for name, value in optimizer.__dict__.items() if name not in (*_TRANSIENT, "_entries")}
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


def unpack(optimizer: Any, packed: dict[str, Any]) -> None:
    """The other half of `pack`."""
    entries = []
    for own in packed.pop("_entries"):
        slots = own.pop("slots")
        entry = Entry(**own)
        for key, value in slots.items():
            seen = arrays.view(arrays.as_library(value, entry.param.data))
            entry.slots[key] = entry.layout.apply(seen).copy().reshape(-1)
        entries.append(entry)
    optimizer.__dict__.update(packed)
    optimizer.__dict__.update(dict.fromkeys(_TRANSIENT), _lock=threading.RLock(), _versions=0, _entries=entries)
