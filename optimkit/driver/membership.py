"""Which parameters an optimizer has: they are bound, added, removed, replaced, reset and frozen.

Everything is checked before anything is changed; afterwards the driver sorts its buckets anew.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optimkit.driver import loading, state
from optimkit.driver.containers import Growth, grow, prune
from optimkit.driver.entries import Entry, Group
from optimkit.driver.gradients import own_gradient
from optimkit.driver.hyperparameters import Hyperparameters
from optimkit.driver.joining import make_entry, replace_array, split_groups
from optimkit.driver.overlaps import check_weights
from optimkit.params import Param, Where, check_names


class Membership(Hyperparameters, base=True):
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
        with self._lock:
            if self._entries:
                raise ValueError(f"{type(self).__name__} has parameters already; use opt.add(...) for more")
            self._attach(params, {})
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
        with self._lock:
            self._attach(params, values)

    def _attach(self, params: Any, values: Mapping[str, Any]) -> None:
        specifications = split_groups(params)
        found: list[tuple[Group, Growth]] = []
        for number, (source, own) in enumerate(specifications):
            merged = {**values, **own}
            group = self._make_group(merged) if merged else self._groups[0]
            name = str(number) if len(specifications) > 1 and not isinstance(source, Mapping) else ""
            found.append((group, grow(self._roots, source, name)))
            if len(specifications) > 1 and not found[-1][1].leaves():
                why = "its container is empty, or an iterator that was already used up"
                raise ValueError(f"group {number} has no parameters: {why}")
        leaves = [leaf for _, growth in found for leaf in growth.leaves()]
        check_names([*(entry.leaf for entry in self._entries), *leaves] if leaves else [])
        added = [make_entry(leaf, group) for group, growth in found for leaf in growth.leaves()]
        check_weights({entry.name: entry.param.data for entry in [*self._entries, *added]})
        for entry in added:
            entry.param.placed(entry.name)
        for _, growth in found:
            growth.apply()
        self.__dict__["_entries"] = [*self._entries, *added]
        self.__dict__["_roots"] = [*self._roots, *(root for _, growth in found for root in growth.roots)]
        self.__dict__["_groups"] = list(dict.fromkeys(entry.group for entry in self._entries))
        _living[id(self)] = self
        self._forget()

    def remove(self, name: str) -> None:
        """Remove a parameter and its state. Its container may go on holding it, or not."""
        with self._lock:
            entry = self._entry(name)
            self._forget()
            self.__dict__["_entries"] = [other for other in self._entries if other is not entry]
            self.__dict__["_roots"] = [root for root in self._roots if prune(root, entry.leaf)]
            used = list(dict.fromkeys(each.group for each in self._entries))
            self.__dict__["_groups"] = used or self._groups[:1]

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
            each one, a NumPy array of the old weight's shape, mapped by a function to one of the new shape.

        Raises
        ------
        ValueError
            If the state can't be kept, or `new` shares memory with another parameter.
        TypeError
            If `new` can't be trained, or its container can't be changed. Nothing is changed then.
        """
        with self._lock:
            entry = self._entry(name)
            replace_array(self, entry, new, state)

    def reset(self, where: Where = None) -> None:
        """Forget the state and the update counts of parameters: all, or those that `where` selects."""
        with self._lock:
            chosen = self._select(where)
            self._forget()
            for entry in chosen:
                entry.slots.clear()
                entry.uniforms.clear()
                entry.t = 0
            if where is None:
                self._shared.clear()

    def freeze(self, where: Where = None) -> None:
        """Leave parameters as they are, as if they had no gradient: all, or those that `where` selects."""
        self._set_frozen(where, True)

    def unfreeze(self, where: Where = None) -> None:
        """Undo `freeze`."""
        self._set_frozen(where, False)

    def _set_frozen(self, where: Where, frozen: bool) -> None:
        with self._lock:
            for entry in self._select(where):
                entry.frozen = frozen
            if self._gradients is not None:
                self._gradients.frozen = None

    # ---- looking up

    @property
    def names(self) -> list[str]:
        """The names of the parameters, in order."""
        return [entry.name for entry in self._entries]

    @property
    def count(self) -> int:
        """How often `step` was called; what schedules are called with."""
        return int(self._count)

    def __getitem__(self, name: str) -> Param:
        entry = self._entry(name)
        entry.handed_out = True
        if self._sources is not None:
            self._sources.watch(entry)
        return entry.param

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def _entry(self, name: str) -> Entry:
        self._store_counts()
        for entry in self._entries:
            if entry.name == name:
                return entry  # type: ignore[no-any-return]
        raise KeyError(f"there is no parameter {name!r}; there are {', '.join(self.names) or 'none yet'}")

    def _require_entries(self) -> None:
        if not self._entries:
            raise RuntimeError(f"{type(self).__name__} has no parameters yet; call opt.bind(params)")

    # ---- what changes invalidate

    def _relayout(self, entry: Entry) -> None:
        """The weight has another memory order now: bring its slots into it."""
        self._forget()
        entry.reorder_slots()

    def _forget(self) -> None:
        """Structure changed: buckets and lists are made anew at the next step."""
        self._store_counts()
        if self._gradients is not None:
            self.__dict__["_ever"] = self._gradients.ever
        self.__dict__.update(_buckets=None, _gradients=None, _sources=None)

    def _store_counts(self) -> None:
        for bucket in self._buckets or ():
            bucket.store_counts()

    # ---- gradients at the parameters

    def _zero_own(self, set_to_none: bool) -> None:
        self._require_entries()
        found = [(entry, own_gradient(entry)) for entry in self._entries]
        nothing = all(gradient is None for _, gradient in found)
        if nothing and not set_to_none and self._gradients is not None and self._gradients.passed:
            raise RuntimeError(
                "zero_grad() found no gradients in .grad; gradients passed to step(grads) are the caller's: "
                "use step(grads, zero_grad=True)"
            )
        for entry, gradient in found:
            if gradient is None:
                continue
            if not set_to_none:
                gradient[...] = 0.0
            elif entry.param.grad is gradient:
                entry.param.grad = None
            else:
                entry.anchor.grad = None

    # ---- state

    @property
    def state(self) -> state.StateView:
        """A live view of the state: `opt.state["psi"]["m"]` is an array that the next step reads."""
        return state.StateView(self)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state and the numbers, by name.

        Returns
        -------
        dict
            Plain dicts, lists, numbers and arrays. Schedules and functions are code and not in it.
        """
        return state.state_dict(self)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over a copy of a saved state: slots, counts, frozen parameters, numbers and groups.

        Numbers that are schedules here stay schedules.

        Raises
        ------
        ValueError
            If it does not fit; the message lists every difference, and nothing is changed.
        """
        loading.load_state_dict(self, saved)

    def __getstate__(self) -> dict[str, Any]:
        return state.pack(self)

    def __setstate__(self, packed: dict[str, Any]) -> None:
        state.unpack(self, packed)
        _living[id(self)] = self


_living: weakref.WeakValueDictionary[int, Membership] = weakref.WeakValueDictionary()


def _renew_locks() -> None:
    """A thread that held a lock when the process was forked is not there in the child."""
    for optimizer in list(_living.values()):
        optimizer.__dict__.update(_lock=threading.RLock(), _stepping=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
