"""The memory order of a weight: in which order its elements follow each other, from low addresses to high ones.

State is kept flat in this order, gradients are read in it, reductions follow it: so a transposed weight costs no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from optimkit.arrays.libraries import library_of
from optimkit.arrays.memory import byte_strides, has_memory


class MemoryOrder(NamedTuple):
    """The axes of a weight from the largest stride down, and which of them run backwards."""

    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    @classmethod
    def of(cls, x: Any) -> MemoryOrder:
        """The order of an array; C order where it has no strides."""
        if not has_memory(x):
            return cls(tuple(range(x.ndim)), (False,) * x.ndim)
        strides = [0 if n == 1 else step for step, n in zip(byte_strides(x), x.shape, strict=True)]
        plain = all(a >= b for a, b in pairwise(strides)) and min(strides, default=0) >= 0
        if plain:
            return cls(tuple(range(x.ndim)), (False,) * x.ndim)
        axes = tuple(sorted(range(x.ndim), key=lambda axis: (-abs(strides[axis]), axis)))
        return cls(axes, tuple(strides[axis] < 0 for axis in axes))

    @property
    def is_plain(self) -> bool:
        return _is_plain(self.axes, self.flips)

    def apply(self, x: Any) -> Any:
        """An array of the weight's shape, seen in memory order of the weight."""
        if self.is_plain:
            return x
        return x.transpose(self.axes)[self._flipped()]

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The weight's shape, seen in memory order."""
        return tuple(shape[axis] for axis in self.axes)

    def restore(self, x: Any, shape: Sequence[int]) -> Any:
        """An array in memory order, flat or not, seen in the weight's shape."""
        if self.is_plain:
            return library_of(x).reshape(x, tuple(shape))
        x = library_of(x).reshape(x, self.shape(shape))
        return x[self._flipped()].transpose(tuple(map(self.axes.index, range(len(self.axes)))))

    def _flipped(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)


@cache
def _is_plain(axes: tuple[int, ...], flips: tuple[bool, ...]) -> bool:
    return axes == tuple(range(len(axes))) and not any(flips)
