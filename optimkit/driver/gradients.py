"""Gradients of a step: found, and checked where they were replaced.

Nothing here keeps an array alive: what was seen last is remembered by weak references.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from operator import call, is_
from typing import Any

from optimkit import arrays
from optimkit.driver.entries import Entry
from optimkit.params import Tree, gradient_of, match_gradients


def _nothing() -> None:
    return None


class Gradients:
    """The gradients of the entries of an optimizer, step by step.

    `values` are those of the current step, by entry; cleared when the step is over.
    """

    def __init__(self, entries: Sequence[Entry], roots: Sequence[Tree], ever: bool = False) -> None:
        self.entries, self.roots = list(entries), list(roots)
        self.seen: list[Callable[[], Any]] = [lambda: self] * len(self.entries)  # equal to no gradient
        self.ever = ever
        self._keys = self._flat_keys()

    def _flat_keys(self) -> list[Any] | None:
        """The keys of a flat dict, or the places of a flat list, in the order of the entries; else None."""
        if len(self.roots) != 1 or self.roots[0].kind not in ("dict", "list"):
            return None
        branches = self.roots[0].branches
        return list(branches) if all(branch.kind == "leaf" for branch in branches.values()) else None

    def collect(self, grads: Any) -> tuple[list[Any], list[int]]:
        """The gradients by entry (None for none), and which of them were replaced since the last step."""
        values = self._own() if grads is None else self._passed(grads)
        for number, entry in enumerate(self.entries):
            if entry.frozen:
                values[number] = None
        if all(map(is_, map(call, self.seen), values)):
            return values, []
        return values, [number for number, value in enumerate(values) if self.seen[number]() is not value]

    def remember(self, number: int, gradient: Any) -> None:
        """This gradient was checked; the same object needs no check again."""
        if gradient is None:
            self.seen[number] = _nothing
            return
        try:
            self.seen[number] = weakref.ref(gradient, partial(self._died, number))
        except TypeError:  # a library whose arrays know no weak references: checked each step
            self.seen[number] = lambda: self

    def _died(self, number: int, reference: Callable[[], Any]) -> None:
        """A gradient is gone; its dead reference would equal None, no gradient."""
        if self.seen[number] is reference:
            self.seen[number] = lambda: self

    def _own(self) -> list[Any]:
        values = [own_gradient(entry) for entry in self.entries]
        self.ever = self.ever or any(value is not None for value in values)
        if not self.ever:
            raise TypeError(
                "step() found no gradients: the parameters have none in .grad. Pass them, opt.step(grads), "
                "or set them, opt['name'].grad = array"
            )
        return values

    def _passed(self, grads: Any) -> list[Any]:
        self.ever = True
        keys = self._keys
        if keys is not None and len(keys) == len(grads if isinstance(grads, dict | list | tuple) else ()):
            try:
                values = [grads[key] for key in keys]
            except (KeyError, TypeError, IndexError):
                values = None
            if values is not None and all(value is None or arrays.is_plain(value) for value in values):
                return values
        found: dict[str, Any] = {}
        self._match(grads, found)
        return [found.get(entry.name) for entry in self.entries]

    def _match(self, grads: Any, found: dict[str, Any]) -> None:
        if len(self.roots) == 1:
            match_gradients(self.roots[0], grads, found)
            return
        if isinstance(grads, dict):
            branches = {key: branch for root in self.roots for key, branch in root.branches.items() if root.kind == "dict"}
            by_name = {leaf.name: Tree("leaf", None, {}, leaf) for root in self.roots for leaf in root.leaves()}
            match_gradients(Tree("dict", None, {**by_name, **branches}), grads, found)
            return
        if not isinstance(grads, list | tuple) or len(grads) != len(self.roots):
            raise ValueError(
                f"the optimizer has {len(self.roots)} groups of parameters: pass a list of as many gradient containers, "
                "or a dict by parameter name"
            )
        for root, group in zip(self.roots, grads, strict=True):
            match_gradients(root, group["params"] if isinstance(group, dict) and "params" in group else group, found)


def own_gradient(entry: Entry) -> Any:
    """The gradient that stands at the parameter itself: `.grad` of its tensor, holder or Param."""
    found = getattr(entry.anchor, "grad", None)
    return entry.param.grad if found is None else found


def check_gradient(entry: Entry, gradient: Any) -> Any:
    """The view of a gradient that engines work on.

    Raises
    ------
    TypeError
        If it is no array, of another library, an integer, boolean or complex.
    ValueError
        If it has another shape, or lies on another device.
    """
    what, param = f"gradient of {entry.name!r}", entry.param
    if not arrays.is_array(gradient):
        raise TypeError(f"{what} is {arrays.describe(gradient)}, not an array")
    if arrays.library(gradient) != param.library:
        raise TypeError(
            f"{what} is a {arrays.describe(gradient)}, its weight a {param.library} array; convert it to {param.library}"
        )
    if tuple(gradient.shape) != param.shape:
        raise ValueError(
            f"{what} has shape {tuple(gradient.shape)}, its weight {param.shape}; nothing is broadcast: reshape or sum it"
        )
    if arrays.device(gradient) != param.device:
        raise ValueError(f"{what} is on {arrays.device(gradient)}, its weight on {param.device}; move it there")
    if arrays.dtype_name(gradient) not in arrays.SUPPORTED:
        raise TypeError(
            f"{what} is {arrays.dtype_name(gradient)}; it must be real floating, one of {', '.join(arrays.SUPPORTED)}"
        )
    arrays.check_dtype(what, gradient)
    return arrays.view(gradient)
