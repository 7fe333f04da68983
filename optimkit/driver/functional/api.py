"""The functional form: a rule on immutable arrays, or inside somebody's jit.

`init` makes the state, `apply` returns new parameters and new state; both are pytrees of dicts. Outside of a jit, NumPy
arrays get the bits of a step in place. Inside of one, the count `t` is the library's number, and what depends on it is
computed in the library's default precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.containers.mirror import Mirror
from optimkit.containers.param import Param
from optimkit.containers.tree import Tree, check_names, read_tree
from optimkit.driver.functional.walk import Walk, Walked
from optimkit.driver.run import Run
from optimkit.rules.programs import program_of
from optimkit.rules.slots import Slot


def _read(run: Run, params: Any) -> tuple[Tree, list[Walked]]:
    """The parameters, checked: their tree and a member for each."""
    kind, nonfinite = run.kind.__name__, run.settings.nonfinite
    if nonfinite != "allow":
        raise ValueError(f"{kind}: nonfinite = {nonfinite!r} is not available in the functional form; use 'allow'")
    if isinstance(params, list | tuple) and any(isinstance(each, Mapping) and "params" in each for each in params):
        raise TypeError(f"{kind}: the functional form has no groups; make a rule for each")
    tree, members = read_tree(params), []
    check_names(list(tree.leaves()))
    names = frozenset(leaf.name for leaf in tree.leaves())
    for leaf in tree.leaves():
        what = f"parameter {leaf.name!r}"
        if not arrays.is_array(leaf.value):
            raise TypeError(f"{what} is {arrays.describe(leaf.value)}; the functional form takes arrays")
        arrays.check_dtype(what, leaf.value)
        param = Param.described_by(leaf.value, leaf.name)
        members.append(Walked(leaf.name, leaf.value, run.chain_of(run.first, param, leaf.name, names)))
    return tree, members


def init(run: Run, params: Any) -> dict[str, Any]:
    """The state of the functional form."""
    _, members = _read(run, params)
    state: dict[str, Any] = {"count": 0, "t": {}, "slots": {}, "shared": {}}
    for member in members:
        slots: dict[str, Any] = {}
        for key, slot in member.chain.slots().items():
            holder = state["shared"] if slot.extent == "optimizer" else slots
            with arrays.on(member.weight):
                holder[member.chain.slot_label(key)] = _make(member, slot)
        state["t"][member.name], state["slots"][member.name] = 0, slots
    return state


def _make(member: Walked, slot: Slot) -> Any:
    """A slot as it starts; called on the weight's device."""
    xp, weight = member.xp, member.weight
    if slot.extent != "element":
        return xp.asarray(slot.value, dtype=member.wide)
    if slot.kind == "copy_of_weight":
        return xp.asarray(weight, copy=True)
    return xp.full(tuple(weight.shape), slot.value, dtype=getattr(xp, member.dtype.of_slot(slot.is_real)))


def apply(run: Run, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
    """One step: new parameters in the shape of `params`, and the new state."""
    tree, members = _read(run, params)
    gradients = Mirror([tree], [member.name for member in members]).read(grads)
    wide = any(member.dtype.wide for member in members)
    for member, gradient in zip(members, gradients, strict=True):
        if gradient is not None:
            _check_gradient(member, gradient)
            with arrays.on(member.weight):
                member.gradient = member.xp.astype(gradient, getattr(member.xp, member.dtype.state))
        _take_state(member, state)
        member.program = program_of(member.chain, member.dtype, wide)[1]
    walk = Walk(run, members, state["count"])
    new: dict[str, Any] = {key: dict(state[key]) for key in ("t", "slots", "shared")} | {"count": state["count"] + 1}
    weights = {member.name: member.weight for member in members}
    with np.errstate(all="ignore"):
        for member in members:
            if member.gradient is None:
                continue
            with arrays.on(member.weight):
                weights[member.name] = _finish(member, walk, new)
    return rebuild(tree, weights), new


def _check_gradient(member: Walked, gradient: Any) -> None:
    what, shape = f"gradient of {member.name!r}", tuple(member.weight.shape)
    if tuple(gradient.shape) != shape:
        raise ValueError(f"{what} has shape {tuple(gradient.shape)}, its weight {shape}; nothing is broadcast")
    if arrays.library(gradient) != arrays.library(member.weight):
        raise TypeError(f"{what} is a {arrays.describe(gradient)}, its weight a {arrays.library(member.weight)} array")
    arrays.check_dtype(what, gradient, member.dtype.gradients)


def _take_state(member: Walked, state: Any) -> None:
    labels = {member.chain.slot_label(key): (key, slot) for key, slot in member.chain.slots().items()}
    try:
        own = state["slots"][member.name]
        member.t = state["t"][member.name] + 1
        for label, (key, slot) in labels.items():
            member.slots[*key, slot.extent] = (state["shared"] if slot.extent == "optimizer" else own)[label]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the state has no {error} for parameter {member.name!r}; make it with rule.init(params)") from None


def _finish(member: Walked, walk: Walk, new: dict[str, Any]) -> Any:
    """The new weight of a member; its new slots and count go into the new state."""
    assert member.program is not None
    xp = member.xp
    slots: dict[str, Any] = dict(new["slots"][member.name])  # what is constant stays
    for key, node in member.program.outputs.items():
        if not isinstance(key, tuple):
            continue
        _, index, name, extent = key
        value, label = walk.value(member, node), member.chain.slot_label((index, name))
        if extent == "element":
            slots[label] = walk.element(member, node)
        elif extent == "parameter":
            slots[label] = xp.asarray(value, dtype=member.wide)
        else:
            new["shared"][label] = xp.asarray(value, dtype=member.wide)
    new["t"][member.name], new["slots"][member.name] = member.t, slots
    return xp.astype(walk.element(member, member.program.outputs["w"]), member.weight.dtype, copy=False)


def rebuild(tree: Tree, weights: dict[str, Any]) -> Any:
    """The caller's container again, with other arrays in it."""
    if tree.leaf is not None:
        return weights[tree.leaf.name]
    parts = {key: rebuild(branch, weights) for key, branch in tree.branches.items()}
    if tree.kind == "dict":
        return parts
    if isinstance(tree.source, tuple):
        return tuple(parts.values())
    return list(parts.values())
