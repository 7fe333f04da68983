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
from typing import Any, Protocol

import numpy as np

from optimkit.arrays import UNSEEN, Fingerprint, fingerprint, is_read_only
from optimkit.driver.gradients.byte_ranges import ByteRanges


class Compiled(Protocol):
    """Looks and warm steps in compiled code, for NumPy arrays (`engines/cpu/step.py`)."""

    moved: bool
    meet: bool
    read_only: bool

    def keep(self, place: int, seen: Fingerprint) -> None: ...

    def compare(self, values: list[Any]) -> list[int]: ...

    def serve(
        self, buckets: Sequence[tuple[Any, ...]], shared: Mapping[Any, np.ndarray], checked: bool, steps: np.ndarray
    ) -> bool: ...

    @property
    def norm(self) -> float | None: ...

    def expect(self, ids: np.ndarray) -> None: ...

    def run(self, standing: list[Any], values: list[Any], zero: bool) -> int: ...

    def prepare(self, standing: list[Any], values: list[Any], zero: bool) -> int: ...

    def count(self) -> None: ...


class Fingerprints:
    """The fingerprints of gradients; their addresses and `ranges` say whether they share memory."""

    def __init__(self, ranges: ByteRanges) -> None:
        n = len(ranges.entries)
        self.ranges = ranges
        self.seen: list[Fingerprint] = [UNSEEN] * n
        self.before, self.now, self.present = (np.zeros(n, np.int64) for _ in range(3))
        self.moved = False  # whether some array with the same fingerprint has come, has gone, or is at another address
        self.compiled: Compiled | None = None

    def compile(self, make: Callable[..., Compiled]) -> Compiled:
        """Compare in compiled code from now on."""
        self.compiled = make(self.before, self.now, self.present, self.ranges.gradients, self.ranges.table)
        for place, seen in enumerate(self.seen):
            self.compiled.keep(place, seen)
        return self.compiled

    def compare(self, values: list[Any]) -> list[int]:
        """The places of the gradients with another fingerprint than before; `now` has the addresses of the rest."""
        if self.compiled is not None:
            others = self.compiled.compare(values)
            self.moved = self.compiled.moved
            self.present[:] = [x is not None for x in values]
            return others
        now, others = self.before.tolist(), []
        for place, (before, x) in enumerate(zip(self.seen, values, strict=True)):
            seen, address = fingerprint(x)
            if x is None:
                continue
            if seen == before and seen is not UNSEEN:
                now[place] = address
            else:
                others.append(place)
        self.now[:] = now
        present = np.array([x is not None for x in values], np.int64)
        self.moved = bool((self.now != self.before).any() or (self.present != present).any())
        self.present[:] = present
        return others

    def all_new(self, values: list[Any]) -> list[int]:
        """The places of all gradients, where none is known to engines."""
        self.now[:] = self.before
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
        if self.compiled is not None:
            self.compiled.keep(place, seen)

    def settle(self) -> None:
        """Engines have the new addresses: they are those before, in the next step."""
        self.before[:] = self.now

    def read_only(self, values: Sequence[Any], compared: bool) -> list[int]:
        """The places of gradients that can't be zeroed, as far as their library says."""
        if compared and self.compiled is not None and not self.compiled.read_only:
            return []
        return [place for place, x in enumerate(values) if is_read_only(x)]
