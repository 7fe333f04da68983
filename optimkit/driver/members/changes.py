"""Parameters that join, leave, or start anew. Everything is checked before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from optimkit.containers.growth import Growth, grow, prune, split_groups
from optimkit.containers.param import Param, Where
from optimkit.containers.tree import Leaf, check_names, data_of
from optimkit.driver.entries.entry import Entry
from optimkit.driver.entries.group import Group
from optimkit.driver.entries.selection import check_links
from optimkit.driver.gradients.collect import own_gradient
from optimkit.driver.gradients.overlaps import check_weights
from optimkit.driver.run import Run
from optimkit.driver.steps.uniforms import SharedSlots
from optimkit.engines.protocol import Call


def attach(run: Run, params: Any, values: Mapping[str, Any], make_group: Callable[[Mapping[str, Any]], Group]) -> None:
    """Take parameters in, with values of their own; `make_group` makes a group of such values."""
    run.refuse_in_step("add()")
    specifications = split_groups(params)
    found: list[tuple[Group, Growth]] = []
    for number, (source, own) in enumerate(specifications):
        merged = {**values, **own}
        group = make_group(merged) if merged else run.first
        name = str(number) if len(specifications) > 1 and not isinstance(source, Mapping) else ""
        found.append((group, grow(run.roots, source, name)))
        if len(specifications) > 1 and not found[-1][1].leaves():
            why = "its container is empty, or an iterator that was already used up"
            raise ValueError(f"group {number} has no parameters: {why}")
    leaves = [leaf for _, growth in found for leaf in growth.leaves()]
    check_names([*(entry.leaf for entry in run.entries), *leaves] if leaves else [])
    added = [_make_entry(leaf, group) for group, growth in found for leaf in growth.leaves()]
    check_links(run.links, [*run.entries, *added])
    check_weights({entry.name: entry.param.data for entry in [*run.entries, *added]}, run.slots_shown())
    entries = [*run.entries, *added]
    used, came = {id(entry.group) for entry in entries}, [entry.group for entry in added]
    now = {
        "entries": entries,
        "roots": [*run.roots, *(root for _, growth in found for root in growth.roots)],
        "groups": [group for group in dict.fromkeys([run.first, *run.groups, *came]) if id(group) in used],
    }
    for entry in added:
        entry.param.placed(entry.name)
    grafts = [call for _, growth in found for call in growth.grafting()]
    run.change([*grafts, partial(run.__dict__.update, now)])


def _make_entry(leaf: Leaf, group: Group) -> Entry:
    value = leaf.value
    param = value if isinstance(value, Param) else Param(data_of(value), None, leaf.name)
    return Entry(leaf.name, param, group, leaf)


def remove(run: Run, name: str) -> None:
    """Let a parameter go, with its state."""
    run.refuse_in_step("remove()")
    entry = run.entry(name)
    entries = [other for other in run.entries if other is not entry]
    pruned = [prune(root, entry.leaf) for root in run.roots]
    now = {
        "entries": entries,
        "roots": [root for root, (left, _) in zip(run.roots, pruned, strict=True) if left],
        "groups": [group for group in run.groups if any(each.group is group for each in entries)] or [run.first],
    }
    run.change([*(call for _, calls in pruned for call in calls), partial(run.__dict__.update, now)])


def reset(run: Run, where: Where) -> None:
    """Forget state and counts. What is constant is the caller's, and stays."""
    run.refuse_in_step("reset()")
    calls: list[Call] = []
    for entry in run.select(where):
        constant = {key for key, slot in run.chain(entry).slots().items() if slot.is_constant}
        kept = {key: value for key, value in entry.slots.items() if key in constant}
        calls.append(partial(entry.__dict__.update, slots=kept, uniforms={}, starts={}, t=0))
    if where is None:
        calls.append(partial(setattr, run, "shared", SharedSlots()))
    run.change(calls)


def set_frozen(run: Run, where: Where, frozen: bool) -> None:
    """Freeze parameters, or let them go on."""
    run.refuse_in_step("freeze()" if frozen else "unfreeze()")
    chosen = {id(entry) for entry in run.select(where)}
    calls: list[Call] = [partial(setattr, entry, "frozen", frozen) for entry in run.entries if id(entry) in chosen]
    if run.gradients is not None:
        now = [frozen if id(entry) in chosen else entry.frozen for entry in run.entries]
        calls.append(partial(setattr, run.gradients, "frozen", [place for place, each in enumerate(now) if each]))
    run.change(calls, structure=False)


def zero_own_gradients(run: Run, set_to_none: bool) -> None:
    """Zero the gradients in `.grad`, or take them away."""
    run.require_entries()
    found = [(entry, own_gradient(entry)) for entry in run.entries]
    nothing = all(gradient is None for _, gradient in found)
    passed = run.passed if run.gradients is None else run.gradients.passed
    if nothing and not set_to_none and passed:
        raise RuntimeError(
            "zero_grad() found no gradients in .grad; gradients passed to step(grads) are the caller's: "
            "use step(grads, zero_grad=True)"
        )
    for entry, gradient in found:
        if gradient is None:
            continue
        if not set_to_none:
            gradient[...] = 0.0
        elif entry.param.grad is gradient:
            entry.param.grad = None
        else:
            entry.anchor.grad = None
