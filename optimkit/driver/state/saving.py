"""Copies of the state by name: `opt.state_dict()`, plain dicts, lists, numbers and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.run import Run
from optimkit.driver.state.views import StateView

FORMAT = 1


def state_dict(run: Run) -> dict[str, Any]:
    """A copy of everything that a later run needs."""
    view = StateView(run)
    return {
        "format": FORMAT,
        "optimizer": run.kind.__name__,
        "count": run.count,
        "groups": [
            {
                "params": [entry.name for entry in run.entries if entry.group is group],
                "numbers": _numbers(group.values, run.kind),
                "structure": _structure(group.values, run.kind),
                "rate": [group.scale, group.since],
            }
            for group in run.groups
        ],
        "links": [
            {
                "class": type(link).__name__,
                "numbers": _numbers(link.__dict__, link),
                "structure": _structure(link.__dict__, link),
            }
            for link in run.links
        ],
        "shared": {name: float(value) for name, value in view.shared.items()},
        "state": {
            entry.name: {
                "t": entry.t,
                "frozen": entry.frozen,
                "slots": {slot: _copy(value) for slot, value in slots.items()},
            }
            for entry, slots in view.all()
        },
    }


def _numbers(values: Mapping[str, Any], rule: Any) -> dict[str, Any]:
    """The numbers that are no schedules; those are code, and stay the caller's."""
    found = {}
    for name in rule._numbers:
        value = values[name]
        parts = value if isinstance(value, tuple) else (value,)
        if all(part is None or isinstance(part, float) for part in parts):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _structure(values: Mapping[str, Any], rule: Any) -> dict[str, Any]:
    """The structure, as far as it is plain: what a saved state must agree with."""
    found = {name: values[name] for name in rule._kernel_fields()}
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float | str | None)}


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return float(value) if value.ndim == 0 and value.dtype == np.float64 and value.base is None else np.array(value)
    return arrays.copy_of(value, value)
