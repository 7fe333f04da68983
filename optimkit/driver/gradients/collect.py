"""Gradients of a step: found, and checked where they are not what they were.

Nothing here keeps an array alive: what was seen is remembered as a fingerprint and an address. A step asks

    found = gradients.collect(grads, zero_grad, anew)   # what there is, and what engines have not seen yet
    steps.lend(found)
    gradients.settle()

and what raises in between is looked at anew in the next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from operator import setitem
from typing import Any, NamedTuple

import numpy as np

from optimkit import arrays
from optimkit.arrays import UNSEEN
from optimkit.containers.mirror import Mirror
from optimkit.containers.param import Param, check_gradient
from optimkit.containers.tree import Tree
from optimkit.counting import counters
from optimkit.driver.entries.entry import Entry
from optimkit.driver.gradients import overlaps
from optimkit.driver.gradients.byte_ranges import ByteRanges
from optimkit.driver.gradients.fingerprints import Fingerprints
from optimkit.engines.protocol import Call


class Collected(NamedTuple):
    """The gradients of one step.

    Attributes
    ----------
    values : list
        By entry, None for none. `aside` are those of frozen parameters, which take no part.
    views : dict
        Those that engines have not seen, by place: checked, as engines see them, copies where they lie in what is written.
    present : array
        Which entries have one, (entries,) bool.
    shifts : array or None
        By how many bytes the others moved, (entries,) int64; None where engines know all that there is to know.
    sharing : set of int
        The places of gradients that share memory, with themselves too, which no pass may zero while it reads.
    """

    values: list[Any]
    aside: list[Any]
    views: dict[int, Any]
    present: np.ndarray
    shifts: np.ndarray | None
    sharing: frozenset[int]

    def zeroing(self, applied: bool) -> list[Call]:
        """What zeroes outside of a pass: those that it could not, those of frozen parameters, and all after a skipped step."""
        places: Iterable[int] = self.sharing if applied else range(len(self.values))
        found = (*(self.values[place] for place in places), *self.aside)
        return [partial(setitem, arrays.view(gradient), ..., 0.0) for gradient in found if gradient is not None]


class Gradients:
    """The gradients of the entries of an optimizer, step by step.

    `sharing` are the places of gradients that share memory with others, or with what a step writes, `folded` of those in
    which several elements are one: none of them may be zeroed in a pass that reads. `ever` says that there once was a
    gradient, `passed` that the latest were passed to `step`. `slots` are those that the caller may have views of.
    """

    def __init__(
        self, entries: Sequence[Entry], roots: Sequence[Tree], slots: Sequence[Any], ever: bool = False, passed: bool = False
    ) -> None:
        self.entries, self.slots = list(entries), list(slots)
        self.ever, self.passed = ever, passed
        self.settled = False
        self.find_frozen()
        self.sharing: frozenset[int] = frozenset()
        self.folded: set[int] = set()
        self.ranges = ByteRanges(self.entries, self.slots)
        self.fingerprints = Fingerprints(self.ranges)
        self.mirror = Mirror(roots, [entry.name for entry in self.entries])
        self._lockable = [(place, entry) for place, entry in enumerate(self.entries) if entry.library.locks]
        anchors = [entry.anchor for entry in self.entries]
        self._holders = [place for place, x in enumerate(anchors) if not isinstance(x, Param) and hasattr(x, "grad")]

    def collect(self, grads: Any, zero: bool, anew: bool) -> Collected:
        """The gradients of a step. `zero` says that they will be written, `anew` that engines have seen none.

        Raises
        ------
        TypeError, ValueError, KeyError
            If they do not mirror the parameters, one does not fit its weight, or there never were any. Nothing is
            handed over.
        """
        self.passed = grads is not None
        if self.passed:
            self.ever = True
        values = self.mirror.read(grads) if self.passed else self.own()
        frozen = self.frozen
        aside = [values[place] for place in frozen]
        if zero:
            self._refuse_read_only(place for place in frozen if arrays.is_read_only(values[place]))
        for place in frozen:
            values[place] = None
        self._refuse_read_only_weights(values)
        views = self._check(values, zero, anew)
        shifts = None if self.settled else self.fingerprints.now - self.fingerprints.before
        return Collected(values, aside, views, self.fingerprints.present != 0, shifts, self.sharing | self.folded)

    def find_frozen(self) -> None:
        """Which parameters are frozen now, by place."""
        self.frozen = [place for place, entry in enumerate(self.entries) if entry.frozen]

    def own(self) -> list[Any]:
        """The gradients that stand at the parameters themselves."""
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

    # ---- what is new

    def replaced_weight(self, place: int) -> None:
        """A weight is another array: its gradient, and what memory they share, is looked at anew."""
        self.fingerprints.keep(place, UNSEEN)
        self.fingerprints.keep_weight(place)

    def _check(self, values: list[Any], zero: bool, anew: bool) -> dict[int, Any]:
        """The views, by place, of gradients that engines have not seen; the rest only moved."""
        compared = self.settled = self.settled and not anew
        others = self.fingerprints.compare(values) if compared else self.fingerprints.all_new(values)
        if zero:
            self._refuse_read_only(self.fingerprints.read_only(values, compared))
        if not others and compared and not self.fingerprints.moved:
            return {}
        views = {place: self._view(place, values[place]) for place in others}
        self.settled = False
        for place, view in views.items():
            self.fingerprints.keep(place, values[place], self.ranges.keep_gradient(place, view))
            (self.folded.add if arrays.folds(view) else self.folded.discard)(place)
        if self.sharing or self.fingerprints.meet(compared and not others):
            views = self._separate(values, views)
        return views

    def _view(self, place: int, value: Any) -> Any:
        counters.gradients_checked += 1
        check_gradient(self.entries[place].name, self.entries[place].param, value)
        return arrays.view(value)

    def _refuse_read_only(self, places: Iterable[int]) -> None:
        for place in places:
            raise ValueError(
                f"gradient of {self.entries[place].name!r} is read-only and can't be zeroed; pass a writable array, "
                "or leave out zero_grad=True"
            )

    def _refuse_read_only_weights(self, values: Sequence[Any]) -> None:
        """Raise where a weight that has a gradient was made read-only. One that takes no part may be."""
        for place, entry in self._lockable:
            if values[place] is not None and arrays.is_read_only(entry.taken):
                entry.library.check_writable(f"parameter {entry.name!r}", entry.taken)

    def _separate(self, values: list[Any], views: dict[int, Any]) -> dict[int, Any]:
        """All views, where some may share memory: those that do so with what a step writes as copies."""
        every = {place: views[place] if place in views else arrays.view(x) for place, x in enumerate(values) if x is not None}
        found = [every.get(place) for place in range(len(values))]
        copies, shared = overlaps.gradient_conflicts(self.entries, self.slots, found)
        for place in copies:
            every[place] = every[place].copy()
            self.fingerprints.keep(place, UNSEEN)
        self.sharing = frozenset(copies | shared)
        return every

    def settle(self) -> None:
        """Engines have what `collect` gave and know what moved."""
        if not self.settled:
            self.fingerprints.settle()
            self.settled = True


def own_gradient(entry: Entry) -> Any:
    """The gradient that stands at the parameter itself: `.grad` of its tensor, holder or Param."""
    found = getattr(entry.anchor, "grad", None)
    return entry.param.grad if found is None else found
