"""The bytes that weights and gradients span: a quick test whether any two may share memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.entries.entry import Entry

LATELY = 16  # sets of addresses that are known to be apart


class ByteRanges:
    """(first byte, first after the last) of weights and of gradients, these relative to their addresses."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.table = np.zeros((2 * len(entries), 2), np.int64)  # the second half is compiled code's, for gradients
        self.weights, self.gradients = self.table[: len(entries)], np.zeros((len(entries), 2), np.int64)
        self._apart: set[bytes] = set()
        for place in range(len(entries)):
            self.keep_weight(place)

    def keep_weight(self, place: int) -> None:
        """A weight is another array."""
        self._apart.clear()
        self.weights[place] = arrays.bounds(self.entries[place].view)

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
        ranges = np.concatenate([self.weights, gradients[present != 0]])
        ranges = ranges[ranges[:, 0] < ranges[:, 1]]
        ranges = ranges[np.argsort(ranges[:, 0])]
        if (ranges[1:, 0] < ranges[:-1, 1]).any():
            return True
        if len(self._apart) >= LATELY:
            self._apart.clear()
        self._apart.add(known)
        return False
