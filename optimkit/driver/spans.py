"""The bytes that weights and gradients span: a quick test whether any two may share memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.entries import Entry


class Spans:
    """(first byte, first after the last) of weights and of gradients, these relative to their addresses."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.weights, self.gradients = (np.zeros((len(entries), 2), np.int64) for _ in range(2))
        for place in range(len(entries)):
            self.keep_weight(place)

    def keep_weight(self, place: int) -> None:
        """A weight is another array."""
        view = self.entries[place].view
        self.weights[place] = arrays.bounds(view) if self.entries[place].param.library in arrays.STRIDED else 0

    def keep_gradient(self, place: int, view: Any) -> int:
        """A gradient is another array, or None; its address (0 where there is none)."""
        self.gradients[place] = 0
        if view is None or self.entries[place].param.library not in arrays.STRIDED or 0 in view.shape:
            return 0
        address = arrays.address(view)
        low, high = arrays.bounds(view)
        self.gradients[place] = low - address, high - address
        return address

    def meet(self, addresses: np.ndarray) -> bool:
        """Whether any two spans meet, with gradients at these addresses."""
        spans = [*self.weights.tolist(), *(self.gradients + addresses[:, None]).tolist()]
        spans = sorted(span for span in spans if span[0] < span[1])
        return any(after[0] < before[1] for before, after in pairwise(spans))
