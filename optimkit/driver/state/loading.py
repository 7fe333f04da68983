"""Saved states taken over again: first every difference is listed, then everything is written.

    opt.load_state_dict(saved)       # ValueError with all that does not fit, and nothing changed
"""

from __future__ import annotations

import copy
import math
import operator
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.entries.group import Group
from optimkit.driver.run import Run
from optimkit.driver.state.saving import FORMAT
from optimkit.driver.state.views import SlotView, StateView
from optimkit.rules.links import Transform

_PARTS = {"format": int, "optimizer": str, "count": int, "groups": list, "links": list, "shared": Mapping, "state": Mapping}
_OF_GROUP = {"params": list, "numbers": Mapping, "structure": Mapping}
_OF_LINK = {"class": str, "numbers": Mapping, "structure": Mapping}
MOST_COUNT = 1 << 53  # of updates: what a float64 counts exactly


def load_state_dict(run: Run, saved: Any) -> None:
    """Take over a copy of a saved state, or raise one ValueError with every difference, nothing changed."""
    run.refuse_in_step("load_state_dict()")
    state = StateView(run)
    views = {entry.name: slots for entry, slots in state.all()}
    problems = _differences(run, saved, views)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ValueError(f"the saved state does not fit this {run.kind.__name__}; nothing was changed:\n{listed}")
    groups = [_make_group(run, own) for own in saved["groups"]]
    run.forget()
    for group, own in zip(groups, saved["groups"], strict=True):
        for name in own["params"]:
            views[name]._entry.group = group
    run.groups, run.first = groups, groups[0] if run.first in run.groups else run.first
    for name, view in views.items():
        part = saved["state"][name]
        for slot, value in part["slots"].items():
            view._entry.set_value(view.key(slot), value)
        view._entry.starts.clear()
        view._entry.t, view._entry.frozen = int(part["t"]), bool(part["frozen"])
    for place, own in enumerate(saved["links"]):
        link = run.links[place]
        for name, value in _restored(link.__dict__, own, link).items():
            if value != link.__dict__[name]:
                link = _own_link(run, place)
                link._set_number(name, value)
    for name, value in saved["shared"].items():
        state.shared[name][...] = value
    run.shared.starts.clear()
    run.count = int(saved["count"])


def _own_link(run: Run, place: int) -> Transform:
    """A link whose numbers may be set: another optimizer that has it goes on with them as they are."""
    link = run.links[place]
    if run.shares(link):
        run.links = [*run.links[:place], copy.copy(link), *run.links[place + 1 :]]
        warnings.warn(
            f"{link!r} is shared with another optimizer, which keeps its numbers; the one that was loaded has a copy of it "
            "from now on, in its .transforms or .penalty",
            RuntimeWarning,
            stacklevel=4,
        )
    return run.links[place]


def _make_group(run: Run, own: Mapping[str, Any]) -> Group:
    """A group as it was saved; schedules, structure and schedulers' factors are those of here."""
    here = _group_of(run, own["params"]) or run.first
    return Group({**here.values, **_restored(here.values, own, run.kind)}, dict(here.factors), *own.get("rate", (1.0, 1.0)))


def _group_of(run: Run, names: Any) -> Group | None:
    """The group of here in which all these parameters are."""
    wanted = set(names)
    found = list(dict.fromkeys(entry.group for entry in run.entries if entry.name in wanted))
    return found[0] if len(found) == 1 else None


def _restored(values: Mapping[str, Any], own: Mapping[str, Any], rule: Any) -> dict[str, Any]:
    """The saved numbers, but for those that are schedules here, or follow another number."""
    found = {}
    for name, value in own["numbers"].items():
        parts = values[name] if isinstance(values[name], tuple) else (values[name],)
        if all(part is None or isinstance(part, float) for part in parts):
            found[name] = _coerce(rule, name, value)
    return found


def _coerce(rule: Any, name: str, value: Any) -> Any:
    return rule._numbers[name].coerce(tuple(value) if isinstance(value, list) else value)


def _differences(run: Run, saved: Any, views: Mapping[str, SlotView]) -> list[str]:
    """What does not fit, in words."""
    problems = _malformed(saved)
    if problems:
        return problems
    if saved["format"] != FORMAT:
        return [f"its format is {saved['format']}, this version reads {FORMAT}"]
    if saved["optimizer"] != run.kind.__name__:
        problems.append(f"it was saved by {saved['optimizer']}")
    problems += [f"parameter {name!r} is missing in it" for name in views if name not in saved["state"]]
    problems += [f"parameter {name!r} is unknown here" for name in saved["state"] if name not in views]
    for name, view in views.items():
        if name in saved["state"]:
            problems += _slot_differences(name, view, saved["state"][name])
    problems += _rule_differences(run, saved, views)
    problems += _invalid(run, saved) if not problems else []
    known = set(StateView(run).shared)
    if set(saved["shared"]) != known:
        problems.append(f"its shared slots are {sorted(saved['shared'])}, here are {sorted(known)}")
    return problems


def _invalid(run: Run, saved: Mapping[str, Any]) -> list[str]:
    """Numbers that each fit, but not with each other."""
    problems = []
    for own in saved["groups"]:
        try:
            run.kind.validate(_make_group(run, own).rule(run.kind))  # type: ignore[attr-defined]
        except (TypeError, ValueError) as error:
            problems.append(str(error))
    return problems


def _malformed(saved: Any) -> list[str]:
    """What keeps it from being a state dict at all."""
    if not isinstance(saved, Mapping):
        return [f"it is a {type(saved).__name__}, not the dict that state_dict() gives"]
    problems = []
    for name, kind in _PARTS.items():
        if name not in saved:
            problems.append(f"it is no state_dict of an optimizer: it lacks {name!r}")
        elif not isinstance(saved[name], kind):
            problems.append(f"its {name!r} is a {type(saved[name]).__name__}, not a {kind.__name__}")
    if problems:
        return problems
    for part, needed in (("groups", _OF_GROUP), ("links", _OF_LINK)):
        if not all(_has(each, needed) for each in saved[part]):
            kinds = ", ".join("dict" if kind is Mapping else kind.__name__ for kind in needed.values())
            problems.append(f"its {part!r} are no list of dicts with {', '.join(needed)}: {kinds}")
    problems += [f"its groups have a rate of {own['rate']!r}" for own in saved["groups"] if not problems and not _is_rate(own)]
    if not problems:
        params = [name for own in saved["groups"] for name in own["params"]]
        problems += [f"its groups name a parameter {name!r}, which is no str" for name in params if not isinstance(name, str)]
    for name, part in saved["state"].items():
        if not isinstance(part, Mapping) or not all(each in part for each in ("t", "frozen", "slots")):
            problems.append(f"the state of {name!r} has no t, frozen and slots")
        elif not _is_count(part["t"]) or not isinstance(part["slots"], Mapping):
            problems.append(
                f"the state of {name!r} has t = {part['t']!r}, and slots in a {type(part['slots']).__name__}; "
                f"t is a whole number from 0 to {MOST_COUNT}, slots are in a dict"
            )
        elif not isinstance(part["frozen"], bool | np.bool_):
            problems.append(f"the state of {name!r} has frozen = {part['frozen']!r}, not True or False")
    for name, value in saved["shared"].items():
        if not isinstance(value, float | int | np.floating | np.integer) or isinstance(value, bool):
            problems.append(f"its shared slot {name!r} is {value!r}, not a number")
    if not _is_count(saved["count"]):
        problems.append(f"its count is {saved['count']!r}, not a whole number from 0 to {MOST_COUNT}")
    return problems


def _has(part: Any, needed: Mapping[str, type]) -> bool:
    return isinstance(part, Mapping) and all(isinstance(part.get(name), kind) for name, kind in needed.items())


def _is_rate(own: Mapping[str, Any]) -> bool:
    """Whether what a group's rate is multiplied by, and divided by, is there, or nothing is."""
    rate = own.get("rate", [1.0, 1.0])
    fits = isinstance(rate, list | tuple) and len(rate) == 2 and all(isinstance(each, float) for each in rate)
    return fits and 0 <= rate[0] < math.inf and 0 < rate[1] < math.inf


def _is_count(t: Any) -> bool:
    try:
        return not isinstance(t, bool) and 0 <= operator.index(t) <= MOST_COUNT
    except TypeError:
        return False


def _slot_differences(name: str, view: SlotView, part: Mapping[str, Any]) -> list[str]:
    slots = part["slots"]
    problems = [f"{name!r}: slot {slot!r} is missing in it" for slot in view if slot not in slots]
    problems += [f"{name!r}: slot {slot!r} is unknown here" for slot in slots if slot not in view]
    for slot in view:
        mine, theirs = view[slot], slots.get(slot)
        if slot not in slots or (isinstance(theirs, float) and view.key(slot) in view._entry.uniforms):
            continue
        if not arrays.is_array(theirs):
            problems.append(f"{name!r}: slot {slot!r} is {arrays.describe(theirs)}, not an array")
        elif tuple(theirs.shape) != tuple(mine.shape):
            problems.append(f"{name!r}: slot {slot!r} has shape {tuple(theirs.shape)}, here {tuple(mine.shape)}")
        elif arrays.dtype_name(theirs) != arrays.dtype_name(mine):
            dtypes = f"{arrays.dtype_name(theirs)}, here {arrays.dtype_name(mine)}"
            problems.append(f"{name!r}: slot {slot!r} is {dtypes}; nothing is cast silently: convert it if that is meant")
    return problems


def _rule_differences(run: Run, saved: Mapping[str, Any], views: Mapping[str, SlotView]) -> list[str]:
    """How the groups and links differ; groups that were split further are split here too."""
    problems = []
    kind = run.kind.__name__
    listed = sorted(name for own in saved["groups"] for name in own["params"])
    if listed != sorted(saved["state"]):
        problems.append(f"its groups hold {listed}, its state {sorted(saved['state'])}")
    for own in saved["groups"]:
        here = _group_of(run, own["params"])
        if here is None and any(name in views for name in own["params"]):
            problems.append(f"its group of {', '.join(own['params'])} is more than one group here")
            continue
        problems += _field_differences(kind, run.kind, (here or run.first).values, own)
    links = [type(link).__name__ for link in run.links]
    saved_links = [own["class"] for own in saved["links"]]
    if saved_links != links:
        problems.append(f"it has the links {saved_links}, here are {links}")
        return problems
    for link, own in zip(run.links, saved["links"], strict=True):
        problems += _field_differences(type(link).__name__, link, link.__dict__, own)
    return problems


def _field_differences(label: str, rule: Any, values: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, value in own["numbers"].items():
        if name not in rule._numbers:
            problems.append(f"{label} has no number {name!r}")
            continue
        try:
            _coerce(rule, name, value)
        except (TypeError, ValueError) as error:
            problems.append(str(error))
    for name, value in own["structure"].items():
        if name not in values:
            problems.append(f"{label} has no field {name!r}")
        elif values[name] != value:
            problems.append(f"{label}: it was saved with {name} = {value!r}, here {name} = {values[name]!r}")
    return problems

