"""The exchange of totals: the one place where the buckets of an optimizer meet.

A total is a sum over all parameters that have a gradient in the step. Each bucket says what its members add, `Exchange`
gives the sums. On devices the engine does the same with tables in device memory (`engines/cuda/exchange.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import numpy as np

from optimkit.engines import canonical


class Exchange:
    """Sums over the parameters of an optimizer, of which there are `entries`."""

    def __init__(self, entries: int) -> None:
        self.entries = entries

    def totals(self, contributions: Iterable[tuple[np.ndarray, Mapping[Hashable, np.ndarray]]]) -> dict[Hashable, float]:
        """The totals of a round, by label, from (places of the members, what they add by label) of each bucket."""
        parts: dict[Hashable, np.ndarray] = {}
        for places, own in contributions:
            for label, values in own.items():
                parts.setdefault(label, np.zeros(self.entries))[places] = values
        return {label: sum_parameters(values) for label, values in parts.items()}


def sum_parameters(parts: np.ndarray) -> float:
    """The sum of one value per parameter, in their order."""
    if len(parts) <= canonical.LANES:
        return canonical.combine_few(parts.tolist())
    import array_api_compat.numpy as xp  # takes longer to import than NumPy

    with np.errstate(all="ignore"):
        return float(canonical.combine(xp, "sum", parts))
