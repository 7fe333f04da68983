"""Arrays that share memory: parameters must not, gradients may, with care."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.entries import Entry


def _meeting(ranges: np.ndarray) -> Iterator[tuple[int, int]]:
    """The pairs of byte ranges (n, 2) that meet; empty ones meet nothing."""
    order = np.argsort(ranges[:, 0], kind="stable")
    order = order[ranges[order, 0] < ranges[order, 1]]
    if len(order) < 2:
        return
    reach = np.maximum.accumulate(ranges[order, 1])
    if not (ranges[order[1:], 0] < reach[:-1]).any():
        return
    open_: list[int] = []
    for number in order.tolist():
        open_ = [other for other in open_ if ranges[other, 1] > ranges[number, 0]]
        yield from ((other, number) for other in open_)
        open_.append(number)


def check_weights(entries: Sequence[Entry]) -> None:
    """Raise ValueError, naming both, where two parameters share memory."""
    seen: dict[int, str] = {}
    for entry in entries:
        other = seen.setdefault(id(entry.param.data), entry.name)
        if other != entry.name:
            raise ValueError(f"parameters {other!r} and {entry.name!r} are the same array; pass it once")
    by_device: dict[Any, list[Entry]] = {}
    for entry in entries:
        if entry.param.library in arrays.STRIDED:
            by_device.setdefault("cpu" if str(entry.param.device) == "cpu" else entry.param.device, []).append(entry)
    for group in by_device.values():
        ranges = np.array([arrays.bounds(entry.view) for entry in group], np.int64).reshape(-1, 2)
        for a, b in _meeting(ranges):
            if arrays.overlap(group[a].view, group[b].view):
                raise ValueError(
                    f"parameters {group[a].name!r} and {group[b].name!r} overlap in memory; pass the array they are views of, "
                    "or copies"
                )


def gradient_conflicts(entries: Sequence[Entry], views: Sequence[Any]) -> tuple[set[int], set[int]]:
    """Which gradients share memory with a weight, and which with another gradient.

    The first kind is read from a copy, since the weight is written while gradients are read;
    the second is zeroed in a pass of its own, after all updates.
    """
    with_weight: set[int] = set()
    shared: set[int] = set()
    there = [n for n, view in enumerate(views) if view is not None and entries[n].param.library in arrays.STRIDED]
    if not there:
        return with_weight, shared
    objects = [entries[n].view for n in range(len(entries))]
    usable = [n for n in range(len(entries)) if entries[n].param.library in arrays.STRIDED]
    ranges = [arrays.bounds(objects[n]) for n in usable] + [arrays.bounds(views[n]) for n in there]
    for a, b in _meeting(np.array(ranges, np.int64).reshape(-1, 2)):
        low, high = min(a, b), max(a, b)
        if high < len(usable):
            continue
        second = there[high - len(usable)]
        first_view = objects[usable[low]] if low < len(usable) else views[there[low - len(usable)]]
        if not arrays.overlap(first_view, views[second]):
            continue
        if low < len(usable):
            with_weight.add(second)
        else:
            shared.update((second, there[low - len(usable)]))
    return with_weight, shared


def zero(gradients: Iterable[Any]) -> None:
    """Fill gradients with zeros."""
    for gradient in gradients:
        gradient[...] = 0.0
