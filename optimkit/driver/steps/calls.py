"""Calls of hooks that get whole arrays (`elementwise = False`), between the passes of a step."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.entries.entry import Entry
from optimkit.driver.steps.bucket import Bucket
from optimkit.fusion.graph import Node


@np.errstate(all="ignore")  # as in kernels: a value that overflows is infinite
def run_calls(bucket: Bucket, number: int, value: Callable[[Node], Any]) -> None:
    """Make the calls of a round for every member that has a gradient. `value(node)` is a number, or one per member.

    Raises
    ------
    TypeError
        If a hook returns something else than arrays like the weight. What a hook raises leaves too, with a note that
        names it; nothing was written by then.
    """
    for call in bucket.plan.calls:
        if call.round != number:
            continue
        numbers = [(node, value(node)) for node in call.numbers]
        for p in np.flatnonzero(bucket.active).tolist():
            entry, member = bucket.entries[p], bucket.members[p]
            given = [_as_given(entry, key, member.arrays[key]) for key in call.given]
            own = [_as_number(node, found if np.ndim(found) == 0 else found[p]) for node, found in numbers]
            results = call.function(entry.name, given, own)
            for key, x in zip(call.results, results, strict=True):
                member.arrays[key][...] = entry.in_order(arrays.view(x))


def _as_given(entry: Entry, key: Hashable, x: Any) -> Any:
    """An array as the hook sees it: in the weight's shape, dtype and library, and no way to write what is not its own."""
    if x.dtype != entry.view.dtype:
        x = arrays.namespace(x).astype(x, entry.view.dtype)
    seen = arrays.from_view(entry.in_shape(x), entry.param.data)
    return seen if isinstance(key, tuple) and key[0] == "given" else arrays.guarded(seen)


def _as_number(node: Node, value: Any) -> float | int:
    return int(value) if node.whole else float(value)
