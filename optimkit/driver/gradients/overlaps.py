"""Arrays that share memory: parameters must not, gradients may, with care."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.entries.entry import Entry

PAIRS = 32  # of arrays whose ranges meet, for each array, that are compared exactly


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


def check_weights(weights: Mapping[str, Any], slots: Mapping[str, Any]) -> None:
    """Raise ValueError, with the names, where parameters share memory, with a slot too, or theirs can't be written."""
    seen: dict[int, str] = {}
    for name, weight in weights.items():
        other = seen.setdefault(id(weight), name)
        if other != name:
            raise ValueError(f"parameters {other!r} and {name!r} are the same array; pass it once")
    by_device: dict[Any, list[tuple[str, Any]]] = {}
    for name, x in [*weights.items(), *slots.items()]:
        if arrays.has_memory(x):
            device = str(arrays.device(x))
            by_device.setdefault("cpu" if device.startswith("cpu") else device, []).append((name, x))
    for group in by_device.values():
        ranges = np.array([arrays.bounds(x) for _, x in group], np.int64).reshape(-1, 2)
        for pair in _meeting(ranges):
            (a, first), (b, second) = sorted((group[number] for number in pair), key=lambda named: named[0] in slots)
            if a in slots or not arrays.overlap(first, second):
                continue
            if b in slots:
                raise ValueError(f"parameter {a!r} overlaps {b} in memory; pass a copy (x.copy())")
            raise ValueError(f"parameters {a!r} and {b!r} overlap in memory; pass the array they are views of, or copies")
    _check_mapped([(name, x) for name, x in by_device.get("cpu", []) if name in weights])


def _check_mapped(weights: Sequence[tuple[str, Any]]) -> None:
    """Raise where a tensor lies in memory that the system protects."""
    tensors = [(name, arrays.bounds(weight)) for name, weight in weights if arrays.library_of(weight).protected(weight)]
    ranges = arrays.unwritable_ranges() if tensors else []
    for name, (low, high) in tensors:
        if any(low < end and start < high for start, end in ranges):
            raise ValueError(f"parameter {name!r} is a tensor over a read-only mapping of a file; pass a copy (x.clone())")


def gradient_conflicts(entries: Sequence[Entry], slots: Sequence[Any], views: Sequence[Any]) -> tuple[set[int], set[int]]:
    """Which gradients share memory with what a step writes, weights and slots, and which with another gradient.

    The first kind is read from a copy, since weights are written while gradients are read;
    the second is zeroed in a pass of its own, after all updates. Where a great many lie within each
    other, too many to compare, all are taken for both: what is done then is right for any.
    """
    with_weight: set[int] = set()
    shared: set[int] = set()
    usable = [n for n, entry in enumerate(entries) if arrays.has_memory(entry.view)]
    written = [*(entries[n].view for n in usable), *(slot for slot in slots if arrays.has_memory(slot))]
    alike: dict[Hashable, list[int]] = {}
    for n in usable:
        if views[n] is not None:
            look = arrays.address(views[n]), views[n].shape, arrays.byte_strides(views[n]), arrays.itemsize(views[n])
            alike.setdefault(look, []).append(n)
    there = [group[0] for group in alike.values()]
    objects = written + [views[n] for n in there]
    ranges = np.array([arrays.bounds(x) for x in objects], np.int64).reshape(-1, 2)
    for tries, (a, b) in enumerate(_meeting(ranges)):
        if tries > PAIRS * len(objects):
            everything = {n for group in alike.values() for n in group}
            return everything, everything
        low, high = min(a, b), max(a, b)
        if high < len(written):
            continue
        second = there[high - len(written)]
        first = None if low < len(written) else there[low - len(written)]
        known = second in with_weight if first is None else second in shared and first in shared
        if known or not arrays.overlap(objects[low], objects[high]):
            continue
        if first is None:
            with_weight.add(second)
        else:
            shared.update((first, second))
    for group in alike.values():
        if group[0] in with_weight:
            with_weight.update(group)
        if (len(group) > 1 and views[group[0]].size) or group[0] in shared:
            shared.update(group)
    return with_weight, shared
