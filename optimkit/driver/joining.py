"""What an optimizer's methods need to take parameters in: groups told apart, entries made, arrays replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from optimkit import arrays
from optimkit.driver.build import chain_of
from optimkit.driver.containers import placer
from optimkit.driver.entries import Entry, Group
from optimkit.driver.overlaps import check_weights
from optimkit.params import Leaf, Param, data_of, settled

if TYPE_CHECKING:
    from optimkit.driver.membership import Membership


def split_groups(params: Any) -> list[tuple[Any, dict[str, Any]]]:
    """(parameters, values) of each group; one group if there are no group dicts."""
    params = settled(params)
    if not isinstance(params, list | tuple):
        return [(params, {})]
    groups = [isinstance(each, Mapping) and "params" in each for each in params]
    if not any(groups):
        return [(params, {})]
    if not all(groups):
        number = groups.index(False)
        group = "a dict with 'params', such as {'params': ..., 'lr': 0.1}"
        raise TypeError(f"entry {number} of the list of groups is no group; a group is {group}")
    return [(group["params"], {key: value for key, value in group.items() if key != "params"}) for group in params]


def make_entry(leaf: Leaf, group: Group) -> Entry:
    value = leaf.value
    param = value if isinstance(value, Param) else Param(data_of(value), None, leaf.name)
    return Entry(leaf.name, param, group, leaf)


def replace_array(optimizer: Membership, entry: Entry, new: Any, how: Any) -> None:
    """Check everything, then put the array and its state in the place of the old ones."""
    if not (how in ("keep", "reset") if isinstance(how, str) else callable(how)):
        raise ValueError(f"state = {how!r} must be 'keep', 'reset' or a function of a slot's array")
    param = Param(new, None, entry.name)
    if how == "keep" and param.shape != entry.param.shape:
        raise ValueError(
            f"parameter {entry.name!r} has shape {entry.param.shape}, the new array {param.shape}: its state can't be "
            "kept; use state='reset', or a function that maps each slot"
        )
    fresh = Entry(entry.name, param, entry.group, entry.leaf)
    check_weights({other.name: new if other is entry else other.param.data for other in optimizer._entries})
    put = placer(optimizer._roots, entry.leaf, new)
    fresh.ensure_slots(chain_of(type(optimizer), entry.group, optimizer._links, fresh, optimizer.maximize))
    for key in entry.slots if how != "reset" else ():
        old = np.array(arrays.to_numpy(entry.value(key)))
        mapped = how(old) if callable(how) else old
        if tuple(np.shape(mapped)) != param.shape:
            raise ValueError(f"the function given as state made {key[1]!r} of shape {np.shape(mapped)}, not {param.shape}")
        if key in fresh.slots:
            fresh.set_value(key, mapped)
    optimizer._forget()
    put()
    if isinstance(entry.leaf.value, Param):
        entry.param = entry.leaf.value
    else:
        entry.param = param
    entry.param.placed(entry.name)
    entry.renew(fresh, keep_counts=how != "reset")
