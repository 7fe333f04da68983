"""Alignment: elements lie at multiples of their size, which devices and vector instructions count on."""

from __future__ import annotations

from collections.abc import Sequence


def check_aligned(
    what: str, address: int, size: int, shape: Sequence[int], strides: Sequence[int], remedy: str = "x.copy()"
) -> None:
    """Raise where elements of `size` bytes don't lie at multiples of it: on a device the process would not survive it."""
    if 0 in shape:
        return
    if address % size:
        off = f"it begins {address % size} bytes after a multiple of its {size}-byte elements"
    elif any(step % size for step, n in zip(strides, shape, strict=False) if n > 1):
        off = f"its strides {tuple(strides)} are no multiples of its {size}-byte elements"
    else:
        return
    raise ValueError(f"{what} is not aligned in memory: {off} (a view of bytes?); pass a copy ({remedy})")
