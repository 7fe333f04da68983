"""The functional form: a rule on immutable arrays, or inside somebody's jit.

`init` makes the state, `apply` returns new parameters and new state; both are pytrees of dicts.
It walks the same chain as a step, with the namespace's own functions; values agree with the
in-place form within the tolerance of that namespace.
"""

from __future__ import annotations

from typing import Any

from optimkit import arrays
from optimkit.driver.build import chain_of
from optimkit.driver.chain import Numbers, run
from optimkit.driver.entries import Group
from optimkit.fusion.operations import OPERATIONS
from optimkit.fusion.trace import Namespace
from optimkit.numbers import Follow
from optimkit.params import Tree, match_gradients, read_tree
from optimkit.rule import Rule, Slot


class ArrayNamespace(Namespace):
    """`xp` over a real namespace: functions of arrays go to it, those of Python numbers stay in Python."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def _apply(self, op: str, *args: Any) -> Any:
        like = next((arg for arg in args if arrays.is_array(arg)), None)
        if like is None:
            return OPERATIONS[op].host(*args)
        if op in ("real", "conj", "imag") and not self._is_complex(like):
            return like * 0.0 if op == "imag" else like
        dtype = next((arg.dtype for arg in args if arrays.is_array(arg) and "bool" not in str(arg.dtype)), None)
        full = [arg if arrays.is_array(arg) else self._xp.asarray(arg, dtype=dtype) for arg in args]
        if op == "power":
            return full[0] ** full[1]
        return getattr(self._xp, op)(*full)

    def _reduce(self, op: str, x: Any) -> Any:
        return getattr(self._xp, op)(x)

    def norm(self, x: Any, total: bool = False) -> Any:
        if total:
            raise TypeError("total_norm is not available in the functional form: it sees one parameter at a time")
        largest = self._xp.max(self._xp.abs(x)) if x.size else 0.0
        safe = self._xp.where(largest > 0, largest, self._xp.ones_like(largest))
        scaled = x / safe
        return safe * self._xp.sqrt(self._xp.sum(self.abs2(scaled)))

    def total(self, x: Any) -> Any:
        raise TypeError("total is not available in the functional form: it sees one parameter at a time")


def default_rule(cls: Any) -> Any:
    """An optimizer of a class with its defaults; numbers without one get a value, since none is in a kernel."""
    missing = {name: 0.5 for name, number in cls._numbers.items() if _is_required(cls, name)}
    return cls(**missing)


def _is_required(cls: Any, name: str) -> bool:
    return repr(cls.__dataclass_fields__[name].default) == "required"


def init(optimizer: Any, params: Any) -> dict[str, Any]:
    """The state of the functional form."""
    tree = read_tree(params)
    state: dict[str, Any] = {"t": {}, "slots": {}}
    for leaf in tree.leaves():
        xp = arrays.namespace(leaf.value)
        chain = chain_of(type(optimizer), optimizer._groups[0], optimizer._links, None, optimizer.maximize)
        slots = {chain.slot_label(key): _make(xp, slot, leaf.value) for key, slot in chain.slots().items()}
        state["t"][leaf.name], state["slots"][leaf.name] = 0, slots
    return state


def _make(xp: Any, slot: Slot, weight: Any) -> Any:
    if slot.kind == "copy_of_weight":
        return weight + 0
    if slot.extent != "element":
        if slot.extent == "optimizer":
            raise TypeError("slots per optimizer are not available in the functional form")
        return xp.asarray(slot.value, dtype=weight.dtype)
    return xp.full(weight.shape, slot.value, dtype=weight.dtype)


def apply(optimizer: Any, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
    """One step: new parameters in the shape of `params`, and the new state."""
    tree = read_tree(params)
    found: dict[str, Any] = {}
    match_gradients(tree, grads, found)
    group: Group = optimizer._groups[0]
    new: dict[str, Any] = {"t": dict(state["t"]), "slots": dict(state["slots"])}
    weights: dict[str, Any] = {}
    for leaf in tree.leaves():
        name, weight, gradient = leaf.name, leaf.value, found.get(leaf.name)
        if gradient is None:
            weights[name] = weight
            continue
        if tuple(gradient.shape) != tuple(weight.shape):
            raise ValueError(f"gradient of {name!r} has shape {tuple(gradient.shape)}, its weight {tuple(weight.shape)}")
        chain = chain_of(type(optimizer), group, optimizer._links, None, optimizer.maximize)
        labels = {chain.slot_label(key): key for key in chain.slots()}
        xp = arrays.namespace(weight)
        t = state["t"][name] + 1

        def numbers(index: int, rule: Rule, t: Any = t) -> Numbers:
            return _numbers(optimizer, group, index, rule, t)

        slots = {labels[label]: value for label, value in state["slots"][name].items()}
        moved, changed = run(chain, weight, xp.astype(gradient, weight.dtype), slots, numbers, ArrayNamespace(xp))
        weights[name], new["t"][name] = moved, t
        new["slots"][name] = {label: changed[key] for label, key in labels.items()}
    return rebuild(tree, weights), new


def _numbers(optimizer: Any, group: Group, index: int, rule: Rule, t: Any) -> Numbers:
    values: dict[str, Any] = {}
    sources = [(0, name) for name in ("lr",) if index and name in optimizer._numbers] + [(index, name) for name in rule._numbers]
    for owner, name in sources:
        held = group.values if owner == 0 else rule.__dict__
        value = held[name]
        if isinstance(value, Follow):
            owner, name_there = 0, value.name
            value = group.values[name_there]
        else:
            name_there = name
        if isinstance(value, tuple):
            values[name] = tuple(optimizer._number(group, (owner, name_there, i)) for i in range(len(value)))
        else:
            values[name] = None if value is None else optimizer._number(group, (owner, name_there, None))
    return Numbers(rule, {**values, "t": t})


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


