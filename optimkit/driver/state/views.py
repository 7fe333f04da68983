"""Live views of the state: `opt.state["psi"]["m"]` is the array that the next step reads, a new view each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimkit.driver.entries.entry import Entry
from optimkit.driver.run import Run
from optimkit.rules.chain import SlotKey
from optimkit.rules.slots import Slot

_Declared = tuple[Mapping[SlotKey, Slot], dict[str, SlotKey]]


class SlotView(Mapping[str, Any]):
    """The slots of one parameter, live: `view["m"]` is an array; `view.t` counts its updates.

    An array that was read is live until the state is made anew: by `reset`, `replace`, or a weight that is replaced by
    one in another memory order.
    """

    def __init__(self, run: Run, entry: Entry, known: _Declared | None = None) -> None:
        declared, self._keys = known or _declared(run, entry)
        with run.touching():
            if entry.ensure_slots(declared):
                run.orders.enter(allocates=True)
        self._run, self._entry = run, entry

    @property
    def t(self) -> int:
        """How many updates this parameter has had."""
        self._run.store_count(self._entry)
        return self._entry.t

    def key(self, name: str) -> SlotKey:
        """Which rule's slot has this name."""
        return self._keys[name]

    def __getitem__(self, name: str) -> Any:
        if name not in self._keys:
            known = ", ".join(self._keys) or "none"
            raise KeyError(f"there is no slot {name!r}; there are {known}; those per optimizer are in opt.state.shared")
        with self._run.touching():
            self._run.show_slots()
            return self._entry.value(self._keys[name])

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError(f"a slot is filled in place: write opt.state[{self._entry.name!r}][{name!r}][...] = array")

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"<state of {self._entry.name!r}: t={self.t}, slots {', '.join(self._keys) or 'none'}>"


def _declared(run: Run, entry: Entry) -> _Declared:
    """The slots of a parameter, and their keys by what they are called."""
    chain = run.chain(entry)
    declared = chain.slots()
    return declared, {chain.slot_label(key): key for key, slot in declared.items() if slot.extent != "optimizer"}


class StateView(Mapping[str, SlotView]):
    """The state of all parameters, live, by name. `view.shared` has the slots per optimizer."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def shared(self) -> dict[str, Any]:
        """The slots that the optimizer has once, 0-d float64 arrays."""
        chain = self._run.chain()
        self._run.shared.ensure(chain.slots(), fresh=not self._run.count)
        with self._run.touching():
            self._run.show_slots()
            return {chain.slot_label(key): value[...] for key, value in self._run.shared.items()}

    def all(self) -> list[tuple[Entry, SlotView]]:
        """All parameters, with their counts as they are now, and the views of their slots."""
        run, known = self._run, dict[Any, _Declared]()
        run.store_counts()
        alike = all(link.where is None for link in run.links)  # then parameters of a group have the same chain
        for entry in run.entries if alike else ():
            if entry.group not in known:
                known[entry.group] = _declared(run, entry)
        return [(entry, SlotView(run, entry, known.get(entry.group))) for entry in run.entries]

    def __getitem__(self, name: str) -> SlotView:
        return SlotView(self._run, self._run.entry(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._run.names)

    def __len__(self) -> int:
        return len(self._run.names)

    def __repr__(self) -> str:
        return f"<state of {len(self)} parameters: {', '.join(self)}>"
