"""The bytes that weights, slots and gradients span: a quick test whether any two may share memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.entries.entry import Entry

LATELY = 16  # sets of addresses that are known to be apart


class ByteRanges:
    """(first byte, first after the last) of weights and of gradients, these relative to their addresses.

    `slots` are those that a caller may have views of: a gradient could be one.
    """

    def __init__(self, entries: Sequence[Entry], slots: Sequence[Any] = ()) -> None:
        self.entries = entries
        fixed = len(entries) + len(slots)
        self.table = np.zeros((fixed + len(entries), 2), np.int64)  # the last ones are compiled code's, for gradients
        self.fixed, self.gradients = self.table[:fixed], np.zeros((len(entries), 2), np.int64)
        self._apart: set[bytes] = set()
        for row, slot in enumerate(slots, len(entries)):
            self.fixed[row] = arrays.bounds(slot)
        for place in range(len(entries)):
            self.keep_weight(place)

    def keep_weight(self, place: int) -> None:
        """A weight is another array."""
        self._apart.clear()
        self.fixed[place] = arrays.bounds(self.entries[place].view)

    def keep_gradient(self, place: int, view: Any) -> int:
        """A gradient is another array; its address (0 where it has no bytes)."""
        self._apart.clear()
        self.gradients[place] = 0
        if 0 in view.shape or not arrays.has_memory(view):
            return 0
        address = arrays.address(view)
        low, high = arrays.bounds(view)
        self.gradients[place] = low - address, high - address
        return address

    def meet(self, addresses: np.ndarray, present: np.ndarray) -> bool:
        """Whether any two ranges meet, with those gradients that are present at these addresses."""
        known = addresses.tobytes() + present.tobytes()
        if known in self._apart:
            return False
        gradients = self.gradients + addresses[:, None]
        ranges = np.concatenate([self.fixed, gradients[present != 0]])
        ranges = ranges[ranges[:, 0] < ranges[:, 1]]
        ranges = ranges[np.argsort(ranges[:, 0])]
        if (ranges[1:, 0] < ranges[:-1, 1]).any():
            return True
        if len(self._apart) >= LATELY:
            self._apart.clear()
        self._apart.add(known)
        return False
