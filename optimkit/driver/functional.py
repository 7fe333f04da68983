"""The functional form: a rule on immutable arrays, or inside somebody's jit.

`init` makes the state, `apply` returns new parameters and new state; both are pytrees of dicts. It walks the
graph of a step with the namespace's own functions, over all parameters at once, so that totals are there too:

    value(member, node) = function(value(member, arg) for arg in node.args)

Outside of a jit, NumPy arrays get the bits of a step in place. Inside of one, the count `t` is the library's
number, and what depends on it is computed in the library's default precision.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.driver.build import chain_of, program_of
from optimkit.driver.chain import Chain
from optimkit.driver.entries import Group
from optimkit.engines import canonical
from optimkit.engines.eager import function_of
from optimkit.fusion.graph import BOOLEAN, REDUCTIONS, Level, Node
from optimkit.fusion.operations import OPERATIONS
from optimkit.fusion.stages import Program
from optimkit.numbers import coerce_number
from optimkit.params import Param, Tree, check_names, match_gradients, matches, read_tree
from optimkit.rule import Slot


def default_rule(cls: Any) -> Any:
    """An optimizer of a class with its defaults; numbers without one get a value, since none is in a kernel."""
    missing = {name: 0.5 for name, number in cls._numbers.items() if _is_required(cls, name)}
    return cls(**missing)


def _is_required(cls: Any, name: str) -> bool:
    return repr(cls.__dataclass_fields__[name].default) == "required"


@dataclass(eq=False)
class Member:
    """One parameter as it is walked: arrays, slots by key, the traced program, and the values known so far."""

    name: str
    weight: Any
    chain: Chain
    gradient: Any = None
    t: Any = 0
    slots: dict[Hashable, Any] = field(default_factory=dict)
    program: Program | None = None
    known: dict[Node, Any] = field(default_factory=dict)

    @property
    def xp(self) -> Any:
        return arrays.namespace(self.weight)

    @property
    def wide(self) -> Any:
        """float64, or the widest that the library has just now (JAX without x64: float32)."""
        widths = self.xp.__array_namespace_info__().dtypes(kind="real floating")
        return widths.get("float64", widths.get("float32"))


def _read(optimizer: Any, params: Any) -> tuple[Tree, list[Member]]:
    """The parameters, checked: their tree and a member for each."""
    kind = type(optimizer).__name__
    if optimizer.nonfinite != "allow":
        raise ValueError(f"{kind}: nonfinite = {optimizer.nonfinite!r} is not available in the functional form; use 'allow'")
    if isinstance(params, list | tuple) and any(isinstance(each, Mapping) and "params" in each for each in params):
        raise TypeError(f"{kind}: the functional form has no groups; make a rule for each")
    tree, members = read_tree(params), []
    check_names(list(tree.leaves()))
    for leaf in tree.leaves():
        what = f"parameter {leaf.name!r}"
        if not arrays.is_array(leaf.value):
            raise TypeError(f"{what} is {arrays.describe(leaf.value)}; the functional form takes arrays")
        arrays.check_dtype(what, leaf.value)
        members.append(Member(leaf.name, leaf.value, _chain(optimizer, leaf.name, leaf.value)))
    return tree, members


def _chain(optimizer: Any, name: str, weight: Any) -> Chain:
    """The chain with the links whose `where` selects the parameter."""
    seen = object.__new__(Param)  # immutable arrays are welcome here, a Param would refuse them
    seen.name, seen._data, seen.grad, seen.shape = name, weight, None, tuple(weight.shape)
    seen.library, seen.namespace = arrays.library(weight), arrays.namespace(weight)
    seen.device, seen.dtype = arrays.device(weight), arrays.dtype_name(weight)
    links = [(index, link) for index, link in enumerate(optimizer._links, 1) if matches(link.where, seen)]
    bare = chain_of(type(optimizer), optimizer._groups[0], (), None, optimizer.maximize)
    return Chain(bare.optimizer, tuple(links), optimizer.maximize)


def init(optimizer: Any, params: Any) -> dict[str, Any]:
    """The state of the functional form."""
    _, members = _read(optimizer, params)
    state: dict[str, Any] = {"count": 0, "t": {}, "slots": {}, "shared": {}}
    for member in members:
        slots: dict[str, Any] = {}
        for key, slot in member.chain.slots().items():
            holder = state["shared"] if slot.extent == "optimizer" else slots
            holder[member.chain.slot_label(key)] = _make(member, slot)
        state["t"][member.name], state["slots"][member.name] = 0, slots
    return state


def _make(member: Member, slot: Slot) -> Any:
    xp, weight = member.xp, member.weight
    if slot.extent != "element":
        return xp.asarray(slot.value, dtype=member.wide)
    if slot.kind == "copy_of_weight":
        return xp.asarray(weight, copy=True)
    return xp.full(tuple(weight.shape), slot.value, dtype=weight.dtype)


def apply(optimizer: Any, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
    """One step: new parameters in the shape of `params`, and the new state."""
    tree, members = _read(optimizer, params)
    found: dict[str, Any] = {}
    match_gradients(tree, grads, found)
    wide = any(arrays.dtype_name(member.weight) == "float64" for member in members)
    for member in members:
        gradient = found.get(member.name)
        if gradient is not None:
            _check_gradient(member, gradient)
            member.gradient = member.xp.astype(gradient, member.weight.dtype)
        _take_state(member, state)
        member.program = program_of(member.chain, wide, False)[1]
    walk = _Walk(optimizer, members, state["count"])
    new: dict[str, Any] = {key: dict(state[key]) for key in ("t", "slots", "shared")} | {"count": state["count"] + 1}
    weights = {member.name: member.weight for member in members}
    with np.errstate(all="ignore"):
        for member in members:
            if member.gradient is not None:
                weights[member.name] = _finish(member, walk, new)
    return rebuild(tree, weights), new


def _check_gradient(member: Member, gradient: Any) -> None:
    what, shape = f"gradient of {member.name!r}", tuple(member.weight.shape)
    if tuple(gradient.shape) != shape:
        raise ValueError(f"{what} has shape {tuple(gradient.shape)}, its weight {shape}; nothing is broadcast")
    if arrays.library(gradient) != arrays.library(member.weight):
        raise TypeError(f"{what} is a {arrays.describe(gradient)}, its weight a {arrays.library(member.weight)} array")
    arrays.check_dtype(what, gradient)


def _take_state(member: Member, state: Any) -> None:
    labels = {member.chain.slot_label(key): (key, slot) for key, slot in member.chain.slots().items()}
    try:
        own = state["slots"][member.name]
        member.t = state["t"][member.name] + 1
        for label, (key, slot) in labels.items():
            member.slots[*key, slot.extent] = (state["shared"] if slot.extent == "optimizer" else own)[label]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the state has no {error} for parameter {member.name!r}; make it with rule.init(params)") from None


def _finish(member: Member, walk: _Walk, new: dict[str, Any]) -> Any:
    """The new weight of a member; its new slots and count go into the new state."""
    assert member.program is not None
    xp = member.xp
    slots: dict[str, Any] = {}
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
    return walk.element(member, member.program.outputs["w"])


class _Walk:
    """The values of the nodes of all members, each computed once."""

    def __init__(self, optimizer: Any, members: list[Member], count: Any) -> None:
        self.optimizer, self.members, self.count = optimizer, members, count
        self.group: Group = optimizer._groups[0]

    def value(self, member: Member, node: Node) -> Any:
        if node not in member.known:
            member.known[node] = self._compute(member, node)
        return member.known[node]

    def element(self, member: Member, node: Node) -> Any:
        """A value as an array of the weight's shape and dtype."""
        value = self._cast(member, node)
        shape = tuple(member.weight.shape)
        return member.xp.asarray(value if tuple(value.shape) == shape else member.xp.broadcast_to(value, shape) + 0)

    def _compute(self, member: Member, node: Node) -> Any:
        if not node.args:
            return self._leaf(member, node)
        if node.op in REDUCTIONS:
            return self._reduce(member, node)
        if node.op == "total":
            return self._total(member, node)
        if node.level is Level.ELEMENT:
            return function_of(member.xp, node.op)(*(self._cast(member, arg) for arg in node.args))
        args = [self.value(member, arg) for arg in node.args]
        if not any(arrays.is_array(arg) for arg in args):
            return OPERATIONS[node.op].host(*args)
        op = "power" if node.op == "count_power" else node.op
        if node.op == "count_power" and not _is_traced(args[1]):
            return OPERATIONS[node.op].host(float(args[0]), float(args[1]))
        return function_of(member.xp, op)(*map(self._widen(member), args))

    def _leaf(self, member: Member, node: Node) -> Any:
        if node.op == "w":
            return member.weight
        if node.op == "g":
            return member.gradient
        if node.op == "slot":
            return member.slots[node.key]
        if node.op == "number":
            return self._number(*node.key)  # type: ignore[misc]
        if node.op == "count":
            return member.t
        if node.op == "size":
            return float(np.prod(member.weight.shape, dtype=np.int64))
        return node.key

    def _number(self, index: int, name: str, position: int | None) -> Any:
        rule = self.optimizer if index == 0 else self.optimizer._links[index - 1]
        value = self.group.values[name] if index == 0 else rule.__dict__[name]
        value = value if position is None else value[position]
        if callable(value):
            what = f"{type(rule).__name__}: {name}, given by {value!r} for step {self.count},"
            value = value(self.count)
            if not _is_traced(value):
                value = coerce_number(what, value, rule._numbers[name].range_of(position))
        for factor in self.group.factors.values() if index == 0 and name == "lr" else ():
            value = value * factor
        return value

    def _widen(self, member: Member) -> Callable[[Any], Any]:
        def widen(x: Any) -> Any:
            if arrays.is_array(x):
                return x if "bool" in str(x.dtype) else member.xp.astype(x, member.wide)
            return member.xp.asarray(x, dtype=member.xp.bool if isinstance(x, bool) else member.wide)

        return widen

    def _cast(self, member: Member, node: Node) -> Any:
        """A value where it meets elements: in their dtype."""
        value, xp = self.value(member, node), member.xp
        if node.level is Level.ELEMENT:
            return value
        dtype = xp.bool if node.kind == BOOLEAN else member.weight.dtype
        return xp.astype(value, dtype) if arrays.is_array(value) else xp.asarray(value, dtype=dtype)

    def _reduce(self, member: Member, node: Node) -> Any:
        """In the canonical order, where there is float64; elements in C order."""
        xp, scale = member.xp, int(node.key or 0)  # type: ignore[call-overload]
        flat = xp.reshape(self.value(member, node.args[0]), (-1,))
        if "float64" in str(member.wide):
            return canonical.reduce(xp, node.op, flat, scale)
        if node.op in ("max", "min"):
            empty = xp.asarray(canonical.IDENTITY[node.op], dtype=flat.dtype)
            return getattr(xp, node.op)(flat) if flat.shape[0] else empty
        return xp.sum(flat * flat if node.op == "sum_of_squares" else flat)

    def _total(self, member: Member, node: Node) -> Any:
        """The sum over the members that have a gradient, in their order."""
        parts = [self._contribution(other, node.key) for other in self.members]
        found = [part for part in parts if part is not None]
        if not any(arrays.is_array(part) for part in found):
            return float(canonical.combine(np, "sum", np.array([part or 0.0 for part in parts])))
        widen = self._widen(member)
        stacked = member.xp.stack([widen(0.0 if part is None else part) for part in parts])
        return canonical.combine(member.xp, "sum", stacked)

    def _contribution(self, member: Member, label: Hashable) -> Any:
        if member.gradient is None or member.program is None:
            return None
        own = next((node for node in member.program.totals if node.key == label), None)
        return None if own is None else self.value(member, own.args[0])


def _is_traced(x: Any) -> bool:
    """Whether a value is known only when a jitted function runs."""
    return arrays.is_array(x) and "Tracer" in type(x).__name__


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
