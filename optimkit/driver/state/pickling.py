"""Optimizers in copies and pickles: what they train goes along, what was prepared for a step does not."""

from __future__ import annotations

from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.entries.entry import Entry
from optimkit.driver.run import Run

_KEPT = ("kind", "settings", "links", "groups", "first", "roots", "shared", "counted", "ever")


def pack(run: Run) -> dict[str, Any]:
    """What a copy or a pickle holds; slots in the shape of their weights."""
    run.store_counts()
    packed = {name: getattr(run, name) for name in _KEPT}
    packed["entries"] = [
        {
            "name": entry.name,
            "param": entry.param,
            "group": entry.group,
            "leaf": entry.leaf,
            "t": entry.t,
            "frozen": entry.frozen,
            "slots": {key: np.array(arrays.to_numpy(entry.value(key))) for key in entry.slots},
            "starts": entry.starts,
            "kept": entry.kept or entry.order,
            "uniforms": {key: value.copy() for key, value in entry.uniforms.items()},
        }
        for entry in run.entries
    ]
    return packed


def unpack(packed: dict[str, Any]) -> Run:
    """The other half of `pack`. Our own arrays are copied: a pickle whose buffers lie elsewhere has read-only ones."""
    entries = []
    own_arrays = {"counted": packed["counted"].copy(), "shared": packed["shared"].copied()}
    for own in packed["entries"]:
        entry = Entry(**{**own, "slots": {}, "uniforms": {key: value.copy() for key, value in own["uniforms"].items()}})
        for key, value in own["slots"].items():
            entry.put_slot(key, value)
        entries.append(entry)
    run = Run(**{**packed, **own_arrays, "entries": entries})
    run.orders.enter(allocates=True)  # who comes on another stream waits for the copies
    run.orders.leave()
    return run
