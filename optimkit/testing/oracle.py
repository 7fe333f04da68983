"""The oracle: an optimizer's rule called by hand on NumPy arrays, without a graph or an engine.

`Oracle(optimizer)` copies the parameters of an optimizer and steps along with it: the chain runs for
one parameter at a time, on flat arrays in memory order, with the numbers of the optimizer as
`HostNumber`s. What it computes is what every engine must compute.

Totals over all parameters are found by repetition: the chain runs with the totals of the last pass,
NaN at first, until no total changes. They depend on each other without cycles, so there is one end.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.containers.param import matches
from optimkit.engines import canonical
from optimkit.fusion.operations import OPERATIONS
from optimkit.fusion.trace import SCALE, Namespace
from optimkit.rules.chain import Chain, SlotKey, run
from optimkit.rules.numbers import Follow
from optimkit.rules.rule import Rule
from optimkit.rules.slots import Slot
from optimkit.rules.whole import Numbers
from optimkit.testing.scalars import HostCount, HostNumber, host, plain

_NUMPY = {
    name: getattr(np, {"abs": "absolute", "round": "rint"}.get(name, name))
    for name in OPERATIONS
    if name not in ("power", "where", "real", "imag", "conj", "count_power")
}


class Totals:
    """The totals of one step: what parameters add to them in this pass, and the values of the last."""

    def __init__(self, members: int) -> None:
        self.members = members
        self.parts: dict[Hashable, np.ndarray] = {}
        self.known: dict[Hashable, float] = {}

    def add(self, label: Hashable, member: int, part: float) -> float:
        """Contribute to a total; its value as far as it is known."""
        self.parts.setdefault(label, np.zeros(self.members))[member] = part
        return self.known.get(label, float("nan"))

    def close_pass(self) -> bool:
        """Sum up a pass; True if no total has another value than before."""
        found = {label: float(canonical.combine(np, "sum", parts)) for label, parts in self.parts.items()}
        settled = _bits(found) == _bits(self.known)
        self.known, self.parts = found, {}
        return settled


def _bits(values: Mapping[Hashable, float]) -> dict[Hashable, bytes]:
    return {label: struct.pack("<d", value) for label, value in values.items()}


class OracleNamespace(Namespace):
    """`xp` of the oracle: NumPy's functions on arrays, the host functions of the operations on numbers."""

    def __init__(self, parameter: OracleParameter, member: int, totals: Totals) -> None:
        self._parameter, self._dtype = parameter, parameter.weight.dtype
        self._member, self._totals = member, totals
        self._counts: dict[Hashable, int] = {}
        self.owner: Hashable = None

    def _apply(self, op: str, *args: Any) -> Any:
        if not any(isinstance(arg, np.ndarray) for arg in args):
            return host(op, *args)
        if op == "power":
            return plain(args[0]) ** plain(args[1])
        if op in ("real", "conj"):
            return args[0]
        if op == "imag":
            return np.zeros_like(args[0])
        if op == "where":
            return np.where(args[0], *(self._array(arg) for arg in args[1:]))
        return _NUMPY[op](*map(plain, args))

    def _array(self, x: Any) -> Any:
        """A branch of `where`: two Python numbers would make a float64 array."""
        if isinstance(x, np.ndarray):
            return x
        return np.asarray(plain(x), bool if isinstance(x, bool | np.bool_) else self._dtype)

    def _reduce(self, op: str, x: Any) -> Any:
        if op == "mean":
            return self._reduce("sum", x) / HostNumber(x.size)
        return HostNumber(canonical.reduce(np, op, x))

    def whole(self, call: Any, given: Sequence[Any], numbers: Sequence[Any]) -> list[Any]:
        """A hook that gets whole arrays: it is called with them in the weight's shape."""
        each = self._parameter
        shaped = [each.logical(_as_array(x, each.weight)) for x in given]
        own = [int(x) if isinstance(x, HostCount) else float(x) for x in numbers]
        return [each.flat(x) for x in call(each.entry.name, shaped, own)]

    def norm(self, x: Any, total: bool = False) -> Any:
        """The root of the sum of squares; of x * 2**-600 or x * 2**600 where the squares over- or underflow."""
        return self.norms(x, total)[0]

    def norms(self, x: Any, total: bool = False) -> tuple[Any, Any]:
        """The norm, and its root."""
        sums = [HostNumber(canonical.reduce(np, "sum_of_squares", x, scale)) for scale in (0, -SCALE, SCALE)]
        middle, down, up = (self.total(each) for each in sums) if total else sums
        low = self.sqrt(down)
        if middle == np.inf:
            large = HostNumber(np.inf if down == np.inf else min(low * 2.0**SCALE, np.finfo(float).max))
            return large, self.sqrt(low) * 2.0 ** (SCALE // 2)
        norm = self.sqrt(up) * 2.0**-SCALE if middle < 2.0**-900 else self.sqrt(middle)
        return norm, self.sqrt(norm)

    def total(self, x: Any) -> Any:
        """The sum over all parameters that have a gradient in this step."""
        part = self._reduce("sum", x) if isinstance(x, np.ndarray) else x
        label = self.owner, self._counts.get(self.owner, 0)
        self._counts[self.owner] = label[1] + 1
        return HostNumber(self._totals.add(label, self._member, float(part)))


@dataclass(eq=False)
class OracleParameter:
    """One parameter of the oracle: weight and slots flat, in memory order of the optimizer's weight."""

    entry: Any
    order: np.ndarray  # the place, in C order of the logical array, of each element in memory order
    weight: np.ndarray
    t: int = 0
    slots: dict[SlotKey, Any] = field(default_factory=dict)

    def flat(self, x: Any) -> np.ndarray:
        """A logical array in memory order and the weight's dtype, read-only."""
        with np.errstate(over="ignore"):
            values: np.ndarray = np.asarray(x).reshape(-1)[self.order].astype(self.weight.dtype)
        values.flags.writeable = False
        return values

    def logical(self, values: Any) -> Any:
        """A flat value in the weight's shape; a number as it is."""
        if not isinstance(values, np.ndarray):
            return float(values)
        found = np.empty(self.order.size, values.dtype)
        found[self.order] = values
        return found.reshape(self.entry.param.shape)


def memory_order(x: Any) -> np.ndarray:
    """The elements of an array sorted by address, as places in C order; C order where there are no strides."""
    if not arrays.has_memory(x):
        return np.arange(int(np.prod(x.shape, dtype=np.int64)))
    offsets = np.zeros(tuple(x.shape), np.int64)
    for axis, (step, n) in enumerate(zip(arrays.byte_strides(x), x.shape, strict=True)):
        offsets += (step * np.arange(n)).reshape((-1, *(1,) * (x.ndim - axis - 1)))
    order: np.ndarray = np.argsort(offsets.reshape(-1), kind="stable")
    return order


class Oracle:
    """Steps along with an optimizer, computing with its rule alone.

    Parameters
    ----------
    optimizer : Optimizer
        One with parameters. Its weights are copied, its rule, links, groups and numbers are read,
        schedules with the oracle's own count of steps; it is never stepped here. State starts anew.

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> opt = optimkit.SGD({"w": np.ones(2)}, lr=0.5, momentum=0.5)
    >>> oracle = Oracle(opt)
    >>> for _ in range(2):
    ...     applied = oracle.step({"w": np.array([1.0, -1.0])})
    >>> oracle.params["w"], oracle.state["w"]["b"]
    (array([-0.25,  2.25]), array([ 1.5, -1.5]))
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.count = optimizer, 0
        self._parameters = [self._adopt(entry) for entry in optimizer._run.entries]
        self._shared: dict[SlotKey, HostNumber] = {}

    def _adopt(self, entry: Any) -> OracleParameter:
        data = entry.param.data
        order = memory_order(data)
        found = OracleParameter(entry, order, np.zeros(0, entry.param.dtype))
        found.weight = found.flat(arrays.to_numpy(data))
        return found

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The weights by name, as NumPy arrays in their own shape."""
        return {each.entry.name: each.logical(each.weight) for each in self._parameters}

    @property
    def state(self) -> dict[str, dict[str, Any]]:
        """The slots by parameter and name, as in `opt.state`; slots per parameter are floats."""
        found = {}
        for each in self._parameters:
            chain = self._chain(each.entry)
            found[each.entry.name] = {chain.slot_label(key): each.logical(value) for key, value in each.slots.items()}
        return found

    @property
    def shared(self) -> dict[str, float]:
        """The slots that the optimizer has once."""
        found = {}
        for each in self._parameters:
            chain = self._chain(each.entry)
            found.update({chain.slot_label(key): float(self._shared[key]) for key in chain.slots() if key in self._shared})
        return found

    @property
    def t(self) -> dict[str, int]:
        """How many updates each parameter has had."""
        return {each.entry.name: each.t for each in self._parameters}

    def step(self, grads: Mapping[str, Any]) -> bool:
        """One step with gradients by parameter name; missing or None: that parameter is skipped.

        Returns
        -------
        bool
            Whether it was applied: not if no parameter has a gradient, nor if one has NaN or Inf and the
            optimizer's `nonfinite` is not "allow".
        """
        active = [
            (number, each, each.flat(arrays.to_numpy(grads[each.entry.name])))
            for number, each in enumerate(self._parameters)
            if grads.get(each.entry.name) is not None and not each.entry.frozen
        ]
        finite = all(np.isfinite(g).all() for _, _, g in active)
        applied = bool(active) and (finite or self.optimizer.nonfinite == "allow")
        if applied:
            self._apply(active)
        self.count += 1
        return applied

    def _apply(self, active: list[tuple[int, OracleParameter, np.ndarray]]) -> None:
        totals = Totals(len(self._parameters))
        with np.errstate(all="ignore"):
            while True:
                results = [self._run(number, each, g, totals) for number, each, g in active]
                if totals.close_pass():
                    break
        shared: dict[SlotKey, HostNumber] = {}
        for (_, each, _), (chain, weight, slots) in zip(active, results, strict=True):
            each.weight, each.t = _as_array(weight, each.weight), each.t + 1
            for key, slot in chain.slots().items():
                if slot.is_constant:
                    continue
                if slot.extent == "element":
                    each.slots[key] = _as_array(slots[key], each.weight)
                elif slot.extent == "parameter":
                    each.slots[key] = HostNumber(slots[key])
                else:
                    shared.setdefault(key, HostNumber(slots[key]))
        self._shared.update(shared)

    def _run(
        self, number: int, each: OracleParameter, g: np.ndarray, totals: Totals
    ) -> tuple[Chain, Any, dict[SlotKey, Any]]:
        chain = self._chain(each.entry)
        for key, slot in chain.slots().items():
            holder: dict[SlotKey, Any] = self._shared if slot.extent == "optimizer" else each.slots
            if slot.is_constant and key in each.entry.slots:  # the caller's, who may have filled it
                holder[key] = each.flat(arrays.to_numpy(each.entry.value(key)))
            elif key not in holder:
                holder[key] = _start(slot, each.weight)
        slots = {key: (self._shared if slot.extent == "optimizer" else each.slots)[key] for key, slot in chain.slots().items()}

        def numbers(index: int, rule: Rule) -> Numbers:
            own = self._numbers(chain, each.entry.group, index, rule)
            return Numbers(rule, {**own, "t": HostCount(each.t + 1)})

        xp = OracleNamespace(each, number, totals)
        return (chain, *run(chain, each.weight, g, slots, numbers, xp))

    def _chain(self, entry: Any) -> Chain:
        links = enumerate(self.optimizer._run.links, 1)
        names = self.optimizer.names
        chosen = tuple((index, link) for index, link in links if matches(link.where, entry.param, entry.name, names))
        return Chain(entry.group.rule(type(self.optimizer)), chosen, self.optimizer._run.settings.conventions)

    def _numbers(self, chain: Chain, group: Any, index: int, rule: Rule) -> dict[str, Any]:
        found = {name: self._value(group, index, name) for name in rule._numbers}
        if index and "lr" in chain.optimizer._numbers:
            found.setdefault("lr", self._value(group, 0, "lr"))
        return found

    def _value(self, group: Any, index: int, name: str) -> Any:
        """A declared number in this step: schedules at the oracle's count, schedulers' factors on lr."""
        value = group.values[name] if index == 0 else self.optimizer._run.links[index - 1].__dict__[name]
        if isinstance(value, Follow):
            return self._value(group, 0, value.name)
        if value is None:
            return None
        if isinstance(value, tuple):
            return tuple(HostNumber(each(self.count) if callable(each) else each) for each in value)
        found = float(value(self.count) if callable(value) else value)
        return HostNumber(found * group.multiplier if index == 0 and name == "lr" else found)


def _start(slot: Slot, weight: np.ndarray) -> Any:
    if slot.extent != "element":
        return HostNumber(slot.value)
    return weight if slot.kind == "copy_of_weight" else _as_array(slot.value, weight)


def _as_array(value: Any, like: np.ndarray) -> np.ndarray:
    """A result as an array of its own, read-only: a rule that writes into its arguments fails."""
    if isinstance(value, np.ndarray) and value.dtype != like.dtype:
        raise TypeError(f"the rule turned {like.dtype} arrays into {value.dtype}; write it with its arguments and xp alone")
    found = np.array(np.broadcast_to(np.asarray(plain(value), like.dtype), like.shape))
    found.flags.writeable = False
    return found
