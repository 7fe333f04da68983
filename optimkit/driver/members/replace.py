"""A parameter's array replaced by another, of another shape or dtype too, with what becomes of its state."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.containers.growth import placer
from optimkit.containers.param import Param
from optimkit.driver.entries.entry import Entry
from optimkit.driver.gradients.overlaps import check_weights
from optimkit.driver.run import Run


def _warn_of_constant(parameter: str, slot: str, value: float) -> None:
    warnings.warn(
        f"the constant slot {slot!r} of parameter {parameter!r} does not fit the new shape, and is {value} everywhere now: "
        "fill it again",
        RuntimeWarning,
        stacklevel=4,
    )


def replace_array(run: Run, entry: Entry, new: Any, how: str | Callable[[Any], Any]) -> None:
    """Check everything, then put the array and its state in the place of the old ones."""
    run.refuse_in_step("replace()")
    if not (how in ("keep", "reset") if isinstance(how, str) else callable(how)):
        raise ValueError(f"state = {how!r} must be 'keep', 'reset' or a function of a slot's array")
    param = Param(new, None, entry.name)
    if how == "keep" and param.shape != entry.param.shape:
        raise ValueError(
            f"parameter {entry.name!r} has shape {entry.param.shape}, the new array {param.shape}: its state can't be "
            "kept; use state='reset', or a function that maps each slot"
        )
    fresh = Entry(entry.name, param, entry.group, entry.leaf)
    check_weights({other.name: new if other is entry else other.param.data for other in run.entries}, run.slots_shown())
    put = placer(run.roots, entry.leaf, new)
    declared = run.chain(fresh).slots()
    fresh.ensure_slots(declared)
    for key in entry.slots:
        constant = key in declared and declared[key].is_constant
        if how == "reset" and not (constant and param.shape == entry.param.shape):
            if constant:
                _warn_of_constant(entry.name, key[1], declared[key].value)
            continue
        old = np.array(arrays.to_numpy(entry.value(key)))
        mapped = how(old) if callable(how) else old
        if key not in fresh.slots:
            continue
        shape = tuple(fresh.value(key).shape)
        if tuple(np.shape(mapped)) != shape:
            raise ValueError(f"the function given as state made {key[1]!r} of shape {np.shape(mapped)}, not {shape}")
        fresh.set_value(key, mapped)
    run.forget()
    put()
    entry.param = entry.leaf.value if isinstance(entry.leaf.value, Param) else param
    entry.param.placed(entry.name)
    entry.renew(fresh, keep_counts=how != "reset")
