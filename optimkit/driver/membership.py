"""Which parameters an optimizer has: they are bound, added, removed, replaced, reset and frozen.

Everything is checked before anything is changed; afterwards the driver sorts its buckets anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optimkit.containers.param import Param, Where
from optimkit.driver.members import changes
from optimkit.driver.members.replace import replace_array
from optimkit.driver.rates import Rates
from optimkit.driver.state.loading import load_state_dict
from optimkit.driver.state.pickling import pack, unpack
from optimkit.driver.state.saving import state_dict
from optimkit.driver.state.views import StateView


class Membership(Rates, base=True):
    """Parameters and state of an optimizer; `Optimizer` adds the step."""

    def bind(self, params: Any) -> Any:
        """Give an optimizer that was built without parameters its parameters; returns the optimizer.

        Raises
        ------
        ValueError
            If it has parameters already, if there are none in `params`, or two of them share memory.
        TypeError
            If something in `params` is no parameter.
        """
        with self._run.lock:
            if self._run.entries:
                raise ValueError(f"{type(self).__name__} has parameters already; use opt.add(...) for more")
            changes.attach(self._run, params, {}, self._make_group)
            return self

    def add(self, params: Any, **values: Any) -> None:
        """Add parameters, to the first group, or with values of their own: `opt.add(new, lr=1e-4)`.

        Parameters
        ----------
        params : parameters
            New ones, or a container that the optimizer knows, to which new ones were added.
        **values
            Hyperparameters of the new parameters.
        """
        with self._run.lock:
            changes.attach(self._run, params, values, self._make_group)

    def remove(self, name: str) -> None:
        """Remove a parameter and its state. Its container may go on holding it, or not."""
        with self._run.lock:
            changes.remove(self._run, name)

    def replace(self, name: str, new: Any, state: str | Callable[[Any], Any] = "keep") -> None:
        """Put another array in a parameter's place, of another shape or dtype too.

        Parameters
        ----------
        name : str
            The parameter.
        new : array
            The new weight. It is put into the caller's dict or list.
        state : {"keep", "reset"} or callable
            What becomes of the slots: kept (same shape), started anew with the count of updates, or
            each one, a NumPy array of the old weight's shape, mapped by a function to one of the new shape. Slots
            that are `constant` are the caller's: "reset" keeps them where the shape is the same, and warns where it is not.

        Raises
        ------
        ValueError
            If the state can't be kept, or `new` shares memory with another parameter.
        TypeError
            If `new` can't be trained, or its container can't be changed. Nothing is changed then.
        """
        with self._run.touching(allocates=True):
            replace_array(self._run, self._run.entry(name), new, state)

    def reset(self, where: Where = None) -> None:
        """Forget the state and the update counts of parameters: all, or those that `where` selects.

        Slots that are `constant` are the caller's, and stay.
        """
        with self._run.lock:
            changes.reset(self._run, where)

    def freeze(self, where: Where = None) -> None:
        """Leave parameters as they are, as if they had no gradient: all, or those that `where` selects."""
        with self._run.lock:
            changes.set_frozen(self._run, where, True)

    def unfreeze(self, where: Where = None) -> None:
        """Undo `freeze`."""
        with self._run.lock:
            changes.set_frozen(self._run, where, False)

    # ---- looking up

    @property
    def names(self) -> list[str]:
        """The names of the parameters, in order."""
        return self._run.names

    @property
    def count(self) -> int:
        """How often `step` was called; what schedules are called with."""
        return self._run.count

    def __getitem__(self, name: str) -> Param:
        entry = self._run.entry(name)
        if not entry.handed_out and not isinstance(entry.anchor, Param):
            entry.handed_out = True
            if self._run.watch is not None:
                self._run.watch.watch(entry)
        return entry.param

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    # ---- state

    @property
    def state(self) -> StateView:
        """A live view of the state: `opt.state["psi"]["m"]` is an array that the next step reads."""
        return StateView(self._run)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state and the numbers, by name.

        Returns
        -------
        dict
            Plain dicts, lists, numbers and arrays. Schedules and functions are code and not in it.
        """
        with self._run.touching():
            return state_dict(self._run)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over a copy of a saved state: slots, counts, frozen parameters, numbers and groups.

        Numbers that are schedules here stay schedules.

        Raises
        ------
        ValueError
            If it does not fit; the message lists every difference, and nothing is changed.
        """
        with self._run.touching(allocates=True):
            before = self._run.links
            load_state_dict(self._run, saved)
            self._links_changed(dict(zip(map(id, before), self._run.links, strict=True)))

    def _links_changed(self, now: Mapping[int, Any]) -> None:
        """Links were replaced by others, by id: show these."""
        own = self.__dict__
        own["transforms"] = tuple(now[id(link)] for link in own["transforms"])
        own["penalty"] = now.get(id(own["penalty"]))

    def __copy__(self) -> Any:
        """An optimizer of its own, over the same arrays, in the same containers."""
        trees = [tree for root in self._run.roots for tree in root.trees()]
        entries = self._run.entries
        kept = [*(tree.source for tree in trees), *(entry.anchor for entry in entries), *(entry.param for entry in entries)]
        kept += [entry.param.data for entry in entries]
        return copy.deepcopy(self, {id(x): x for x in kept})

    def __getstate__(self) -> dict[str, Any]:
        fields = {name: self.__dict__[name] for name in (*self._numbers, *self._structure) if name in self.__dict__}
        with self._run.touching():
            return {"fields": fields, "run": pack(self._run)}

    def __setstate__(self, packed: dict[str, Any]) -> None:
        self.__dict__.update(packed["fields"])
        self.__dict__["_run"] = unpack(packed["run"])
