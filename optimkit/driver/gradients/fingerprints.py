"""Fingerprints of gradients: how a step sees which were replaced, without keeping any alive.

An array with the fingerprint of the one before, at another address, needs no check, only its address:

    others = fingerprints.compare(values)              # these have another one, and have to be checked
    fingerprints.now - fingerprints.before             # how far the rest moved
    fingerprints.present                               # which places have one at all

A place keeps its fingerprint while it has no gradient: sets of gradients that take turns are checked once. Every gradient
is looked at in every step: one that was freed, resized or given another shape in place is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress, repeat
from operator import is_not
from typing import Any, NamedTuple, Protocol

import numpy as np

from optimkit.arrays import UNSEEN, Fingerprint, fingerprint, is_read_only, itemsize
from optimkit.driver.gradients.byte_ranges import ByteRanges


class Compiled(Protocol):
    """Looks and warm steps in compiled code, for NumPy arrays (`engines/cpu/step.py`)."""

    moved: bool
    meet: bool
    read_only: bool

    def keep(self, place: int, seen: Fingerprint) -> None: ...

    def keep_weight(self, place: int, weight: np.ndarray, seen: tuple[Any, ...]) -> None: ...

    def compare(self, values: list[Any]) -> list[int]: ...

    def serve(
        self, buckets: Sequence[tuple[Any, ...]], shared: Mapping[Any, np.ndarray], checked: bool, steps: np.ndarray
    ) -> bool: ...

    @property
    def norm(self) -> float | None: ...

    def expect(self, ids: np.ndarray) -> None: ...

    def run(self, standing: list[Any], values: list[Any], zero: bool) -> int: ...

    def prepare(self, standing: list[Any], values: list[Any], zero: bool) -> int: ...

    @property
    def count(self) -> Callable[[], int]: ...


class _Look(NamedTuple):
    """What all gradients of a step look like: which places have one, and of these the fingerprints and addresses."""

    present: list[bool]
    seen: list[Fingerprint]
    addresses: list[int]


class Fingerprints:
    """The fingerprints of gradients; their addresses and `ranges` say whether they share memory."""

    def __init__(self, ranges: ByteRanges) -> None:
        n = len(ranges.entries)
        self.ranges = ranges
        self.seen: list[Fingerprint] = [UNSEEN] * n
        self.before, self.now, self.present, self.present_before = (np.zeros(n, np.int64) for _ in range(4))
        self.masks = np.zeros(n, np.int64)  # the bits of an address that are 0 where an array like the one seen is aligned
        self.moved = False  # whether some array with the same fingerprint has come, has gone, or is at another address
        self.compiled: Compiled | None = None
        libraries = {entry.library for entry in ranges.entries}
        self._getters = next(iter(libraries)).getters if len(libraries) == 1 else None
        self._look: _Look | None = None  # at the gradients of this step
        self._look_before: _Look | None = None  # at those that engines know

    def compile(self, make: Callable[..., Compiled]) -> Compiled:
        """Compare in compiled code from now on."""
        self.compiled = make(self.before, self.now, self.present_before, self.ranges.gradients, self.ranges.table)
        for place, seen in enumerate(self.seen):
            self.compiled.keep(place, seen)
            self._tell_weight(self.compiled, place)
        return self.compiled

    def compare(self, values: list[Any]) -> list[int]:
        """The places of the gradients with another fingerprint than before; `now` has the addresses of the rest."""
        if self.compiled is not None:
            others = self.compiled.compare(values)
            self.moved = self.compiled.moved
            self.present[:] = [x is not None for x in values]
            return others
        look = self._look = self._look_at(values)
        self.present[:] = look.present
        if look == self._look_before:
            self.moved = False
            return []
        places = list(compress(range(len(values)), look.present))
        others, found = [], self.before.tolist()
        for place, seen, address in zip(places, look.seen, look.addresses, strict=True):
            if seen == self.seen[place] and seen is not UNSEEN:
                found[place] = address
            else:
                others.append(place)
        self.now[:] = found
        self.moved = bool((self.now != self.before).any() or (self.present != self.present_before).any())
        if self.moved and (self.now & self.masks).any():
            others = sorted({*others, *np.flatnonzero(self.now & self.masks).tolist()})
        return others

    def _look_at(self, values: list[Any]) -> _Look:
        """What gradients look like, without a call of Python for each where their library has getters."""
        present = list(map(is_not, values, repeat(None)))
        there = list(compress(values, present))
        if self._getters is not None:
            try:
                return _Look(present, list(map(self._getters.fingerprint, there)), list(map(self._getters.address, there)))
            except AttributeError:  # an array of another library, which will be refused
                pass
        pairs = list(map(fingerprint, there))
        return _Look(present, [seen for seen, _ in pairs], [address for _, address in pairs])

    def all_new(self, values: list[Any]) -> list[int]:
        """The places of all gradients, where none is known to engines."""
        self.now[:], self._look = self.before, None
        self.present[:] = [x is not None for x in values]
        return np.flatnonzero(self.present).tolist()

    def meet(self, compared: bool) -> bool:
        """Whether some array's memory may be that of another gradient or weight."""
        if compared and self.compiled is not None:
            return self.compiled.meet
        return self.ranges.meet(self.now, self.present)

    def keep(self, place: int, x: Any, address: int = 0) -> None:
        """A gradient was checked: this is its fingerprint now. UNSEEN: check it again in the next step."""
        seen = self.seen[place] = UNSEEN if x is UNSEEN else fingerprint(x)[0]
        self.now[place] = address
        self.masks[place] = itemsize(x) - 1 if address else 0
        if seen is UNSEEN:
            self._look = self._look_before = None
        if self.compiled is not None:
            self.compiled.keep(place, seen)

    def keep_weight(self, place: int) -> None:
        """A weight is another array, or was changed in place."""
        self.ranges.keep_weight(place)
        if self.compiled is not None:
            self._tell_weight(self.compiled, place)

    def _tell_weight(self, compiled: Compiled, place: int) -> None:
        entry = self.ranges.entries[place]
        compiled.keep_weight(place, entry.taken, entry.changeable)

    def settle(self) -> None:
        """Engines have the new addresses: they are those before, in the next step."""
        self.before[:], self.present_before[:] = self.now, self.present
        self._look_before, self._look = self._look, None

    def read_only(self, values: Sequence[Any], compared: bool) -> list[int]:
        """The places of gradients that can't be zeroed, as far as their library says."""
        if compared and self.compiled is not None and not self.compiled.read_only:
            return []
        return [place for place, x in enumerate(values) if is_read_only(x)]
