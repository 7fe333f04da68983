"""Gradients of a step: found, and checked where they are not what they were.

Nothing here keeps an array alive: what was seen is remembered as a look and an address (`looks`). A step asks

    values, _ = gradients.collect(grads)                # by parameter, None for none
    views = gradients.check(values, zero_grad, False)   # what engines have not seen yet
    ... hand them over ...
    gradients.settle()

and what raises in between is looked at anew in the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver import overlaps
from optimkit.driver.entries import Entry
from optimkit.driver.looks import UNSEEN, Looks, MakeCompiled
from optimkit.driver.spans import Spans
from optimkit.engines.runner import counters
from optimkit.params import Param, Tree, check_gradient, match_gradients


class Gradients:
    """The gradients of the entries of an optimizer, step by step.

    `apart` are the places of gradients that share memory, which no pass may zero while it reads.
    """

    def __init__(self, entries: Sequence[Entry], roots: Sequence[Tree], ever: bool = False) -> None:
        self.entries, self.roots = list(entries), list(roots)
        self.ever, self.passed = ever, False
        self.settled = False
        self.make: MakeCompiled | None = None  # compares in compiled code, where all arrays are NumPy's
        self.frozen: list[int] | None = None
        self.apart: frozenset[int] = frozenset()
        self.spans = Spans(self.entries)
        self.looks = Looks(self.spans)
        self._holders = [
            place for place, entry in enumerate(entries) if not isinstance(entry.anchor, Param | np.ndarray)
        ]
        self._shapes = _shapes(self.entries, self.roots)
        self._plain: set[type] = {type(None), np.ndarray}

    # ---- what there is

    def collect(self, grads: Any) -> tuple[list[Any], list[Any]]:
        """The gradients by entry, None for none, and those of frozen parameters, which take no part.

        Raises
        ------
        TypeError, ValueError, KeyError
            If they do not mirror the parameters, or there never were any.
        """
        self.passed = grads is not None
        values = self._own() if grads is None else self._passed(grads)
        if self.frozen is None:
            self.frozen = [place for place, entry in enumerate(self.entries) if entry.frozen]
        aside = [values[place] for place in self.frozen]
        for place in self.frozen:
            values[place] = None
        return values, aside

    def _own(self) -> list[Any]:
        values = [entry.param.grad for entry in self.entries]
        for place in self._holders:
            found = getattr(self.entries[place].anchor, "grad", None)
            values[place] = values[place] if found is None else found
        self.ever = self.ever or any(value is not None for value in values)
        if not self.ever:
            raise TypeError(
                "step() found no gradients: the parameters have none in .grad. Pass them, opt.step(grads), "
                "or set them, opt['name'].grad = array"
            )
        return values

    def _passed(self, grads: Any) -> list[Any]:
        self.ever = True
        values = _mirror(self._shapes, grads)
        if values is not None and self._are_plain(values):
            return values
        found: dict[str, Any] = {}
        self._match(grads, found)
        return [found.get(entry.name) for entry in self.entries]

    def _are_plain(self, values: list[Any]) -> bool:
        """Whether all are arrays, or None. That is a matter of their classes, which are few."""
        unknown = set(map(type, values)) - self._plain
        if unknown:
            self._plain |= {type(x) for x in values if type(x) in unknown and arrays.is_array(x)}
        return unknown <= self._plain

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
            match_gradients(root, _of_group(group), found)

    # ---- what is new

    def replaced_weight(self, place: int) -> None:
        """A weight is another array: its gradient, and what memory they share, is looked at anew."""
        self.looks.keep(place, UNSEEN)
        self.spans.keep_weight(place)

    def check(self, values: list[Any], zero: bool, anew: bool) -> dict[int, Any]:
        """The views, by place, of gradients that engines have not seen; the rest only moved.

        `zero` says that they will be written, `anew` that engines have seen none. An array that shares memory with a
        weight is copied.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit its weight, or weights share memory. Nothing is handed over.
        """
        compared = self.settled = self.settled and not anew
        if compared and self.make is not None and self.looks.compiled is None:
            self.looks.compile(self.make)
        others = self.looks.compare(values) if compared else list(range(len(values)))
        if zero:
            self._check_writable(values, compared)
        if not others and compared and not self.looks.moved:
            return {}
        views = {place: self._view(place, values[place]) for place in others}
        self.settled = False
        for place, view in views.items():
            self.looks.keep(place, values[place], self.spans.keep_gradient(place, view))
        if self.apart or self.looks.meet(compared and not others):
            views = self._separate(values, views)
        return views

    def _view(self, place: int, value: Any) -> Any:
        if value is None:
            return None
        counters.gradients_checked += 1
        check_gradient(self.entries[place].name, self.entries[place].param, value)
        return arrays.view(value)

    def _check_writable(self, values: list[Any], compared: bool) -> None:
        for place in self.looks.read_only(values, compared):
            raise ValueError(
                f"gradient of {self.entries[place].name!r} is read-only and can't be zeroed; pass a writable array, "
                "or leave out zero_grad=True"
            )

    def _separate(self, values: list[Any], views: dict[int, Any]) -> dict[int, Any]:
        """All views, where some may share memory: those that do so with a weight as copies."""
        every = {place: views[place] if place in views else arrays.view(x) for place, x in enumerate(values) if x is not None}
        copies, shared = overlaps.gradient_conflicts(self.entries, [every.get(place) for place in range(len(values))])
        for place in copies:
            every[place] = every[place].copy()
            self.looks.keep(place, UNSEEN)
        self.apart = frozenset(copies | shared)
        return {**dict.fromkeys(range(len(values))), **every}

    def settle(self) -> None:
        """Engines have what `check` gave and know what moved."""
        self.looks.settle()
        self.settled = True


def own_gradient(entry: Entry) -> Any:
    """The gradient that stands at the parameter itself: `.grad` of its tensor, holder or Param."""
    found = getattr(entry.anchor, "grad", None)
    return entry.param.grad if found is None else found


def _of_group(group: Any) -> Any:
    return group["params"] if isinstance(group, dict) and "params" in group else group


# A tree of parameters, prepared to read gradients that mirror it: (kind, keys, the shapes below or None, leaves).
_Shape = tuple[str, Any, list[Any] | None, int]


def _shapes(entries: Sequence[Entry], roots: Sequence[Tree]) -> list[_Shape] | None:
    """The shapes of the roots; None where their leaves are not the entries, in order."""
    leaves = [leaf.name for root in roots for leaf in root.leaves()]
    return [_shape(root) for root in roots] if leaves == [entry.name for entry in entries] else None


def _shape(tree: Tree) -> _Shape:
    below = [_shape(branch) for branch in tree.branches.values()]
    count = 1 if tree.kind == "leaf" else sum(shape[3] for shape in below)
    return tree.kind, tree.branches.keys(), below if any(shape[0] != "leaf" for shape in below) else None, count


def _mirror(shapes: list[_Shape] | None, grads: Any) -> list[Any] | None:
    """The leaves of gradients that mirror the parameters plainly; None where they have to be matched one by one."""
    values: list[Any] = []
    if shapes is None:
        return None
    if len(shapes) == 1:
        return values if _gather(shapes[0], grads, values) else None
    if not isinstance(grads, list | tuple) or len(grads) != len(shapes):
        return None
    plain = all(_gather(shape, _of_group(group), values) for shape, group in zip(shapes, grads, strict=True))
    return values if plain else None


def _gather(shape: _Shape, grads: Any, values: list[Any]) -> bool:
    kind, keys, below, count = shape
    if grads is None:
        values += [None] * count
    elif kind == "leaf":
        values.append(grads)
    elif kind == "dict" and type(grads) is dict and grads.keys() <= keys:
        if below is not None:
            return all(_gather(each, grads.get(key), values) for key, each in zip(keys, below, strict=True))
        values += map(grads.get, keys)
    elif kind == "list" and isinstance(grads, list | tuple) and len(grads) == len(keys):
        if below is not None:
            return all(_gather(each, x, values) for x, each in zip(grads, below, strict=True))
        values += grads
    else:
        return False
    return True
