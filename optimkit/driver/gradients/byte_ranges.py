"""The bytes that weights and gradients span: a quick test whether any two may share memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.entries.entry import Entry


class ByteRanges:
    """(first byte, first after the last) of weights and of gradients, these relative to their addresses."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.weights, self.gradients = (np.zeros((len(entries), 2), np.int64) for _ in range(2))
        for place in range(len(entries)):
            self.keep_weight(place)

    def keep_weight(self, place: int) -> None:
        """A weight is another array."""
        self.weights[place] = arrays.bounds(self.entries[place].view)

    def keep_gradient(self, place: int, view: Any) -> int:
        """A gradient is another array, or None; its address (0 where there is none)."""
        self.gradients[place] = 0
        if view is None or 0 in view.shape or not arrays.has_memory(view):
            return 0
        address = arrays.address(view)
        low, high = arrays.bounds(view)
        self.gradients[place] = low - address, high - address
        return address

    def meet(self, addresses: np.ndarray) -> bool:
        """Whether any two ranges meet, with gradients at these addresses."""
        ranges = [*self.weights.tolist(), *(self.gradients + addresses[:, None]).tolist()]
        ranges = sorted(each for each in ranges if each[0] < each[1])
        return any(after[0] < before[1] for before, after in pairwise(ranges))
