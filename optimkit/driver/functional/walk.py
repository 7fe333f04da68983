"""The values of a step in the functional form: the graph walked with a namespace's own functions.

    value(member, node) = function(value(member, arg) for arg in node.args)

All parameters are walked at once, so that totals are there too; each value is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from optimkit import arrays
from optimkit.driver.run import Run
from optimkit.driver.steps.numbers import refuse_lost
from optimkit.driver.values import number
from optimkit.engines import canonical
from optimkit.engines.eager.whole import function_of
from optimkit.fusion.graph import BOOLEAN, REDUCTIONS, Level, Node, WholeFunction
from optimkit.fusion.operations import OPERATIONS
from optimkit.fusion.show import NumberKey
from optimkit.fusion.stages import Program
from optimkit.rules.chain import Chain


@dataclass(eq=False)
class Walked:
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
    def dtype(self) -> arrays.DType:
        return arrays.DTYPES[arrays.dtype_name(self.weight)]

    @property
    def compute(self) -> Any:
        """The dtype of numbers where they meet elements."""
        return getattr(self.xp, self.dtype.compute)

    @property
    def wide(self) -> Any:
        """float64, or the widest that the library has just now (JAX without x64: float32)."""
        widths = self.xp.__array_namespace_info__().dtypes(kind="real floating")
        return widths.get("float64", widths.get("float32"))


class Walk:
    """The values of the nodes of all members, each computed once. `count` is that of the steps before."""

    def __init__(self, run: Run, members: Sequence[Walked], count: Any) -> None:
        self.run, self.members, self.count = run, members, count

    def value(self, member: Walked, node: Node) -> Any:
        """The value of a node for a member: an array, a number, or what a jitted function knows when it runs."""
        if node not in member.known:
            member.known[node] = self._compute(member, node)
        return member.known[node]

    def element(self, member: Walked, node: Node) -> Any:
        """A value as an array of the weight's shape, in the dtype that it is computed in."""
        value = self._cast(member, node)
        shape = tuple(member.weight.shape)
        return member.xp.asarray(value if tuple(value.shape) == shape else member.xp.broadcast_to(value, shape) + 0)

    def _compute(self, member: Walked, node: Node) -> Any:
        if not node.args:
            return self._leaf(member, node)
        if node.op in REDUCTIONS:
            return self._reduce(member, node)
        if node.op == "total":
            return self._total(member, node)
        if node.op == "call":
            return self._call(member, node)
        if node.op == "result":
            return self.value(member, node.args[0])[node.key[-1]]  # type: ignore[index]
        if node.level is Level.ELEMENT:
            return function_of(member.xp, node.op)(*(self._cast(member, arg) for arg in node.args))
        args = [self.value(member, arg) for arg in node.args]
        if not any(arrays.is_array(arg) for arg in args):
            return OPERATIONS[node.op].host(*args)
        op = "power" if node.op == "count_power" else node.op
        if node.op == "count_power" and not arrays.is_traced(args[1]):
            return OPERATIONS[node.op].host(float(args[0]), float(args[1]))
        return function_of(member.xp, op)(*map(self._widen(member), args))

    def _leaf(self, member: Walked, node: Node) -> Any:
        if node.op in ("w", "g"):
            x = member.weight if node.op == "w" else member.gradient
            return member.xp.astype(x, getattr(member.xp, member.dtype.state), copy=False)
        if node.op in ("slot", "input"):
            return member.slots[node.key]
        if node.op == "number":
            return self._number(member, cast(NumberKey, node.key))
        if node.op == "count":
            return member.t
        if node.op == "size":
            return float(np.prod(member.weight.shape, dtype=np.int64))
        return node.key

    def _number(self, member: Walked, key: NumberKey) -> Any:
        """A number, which must not be lost in the dtype of the weights; what a jitted function alone knows is not checked."""
        index, name, position = key
        value = number(self.run, self.run.first, key, self.count)
        if not arrays.is_array(value):
            rule = member.chain.optimizer if index == 0 else dict(member.chain.links)[index]
            refuse_lost(rule, name, position, float(value), np.dtype(member.dtype.compute))
        return value

    def _call(self, member: Walked, node: Node) -> dict[str, Any]:
        """A hook that gets whole arrays: what comes out, by name."""
        function = cast(WholeFunction, node.key)
        given = [arrays.guarded(self.element(member, arg)) for arg in node.args[: function.count]]
        found = function(member.name, given, [self.value(member, arg) for arg in node.args[function.count :]])
        if not arrays.library_of(member.weight).is_immutable:  # a hook may return what it was given
            found = [member.xp.asarray(x, copy=True) for x in found]
        return dict(zip(function.results, found, strict=True))

    def _widen(self, member: Walked) -> Callable[[Any], Any]:
        def widen(x: Any) -> Any:
            if arrays.is_array(x):
                return x if "bool" in str(x.dtype) else member.xp.astype(x, member.wide)
            return member.xp.asarray(x, dtype=member.xp.bool if isinstance(x, bool) else member.wide)

        return widen

    def _cast(self, member: Walked, node: Node) -> Any:
        """A value where it meets elements: in their dtype."""
        value, xp = self.value(member, node), member.xp
        if node.level is Level.ELEMENT:
            return value
        dtype = xp.bool if node.kind == BOOLEAN else member.compute
        return xp.astype(value, dtype) if arrays.is_array(value) else xp.asarray(value, dtype=dtype)

    def _reduce(self, member: Walked, node: Node) -> Any:
        """In the canonical order, where there is float64; elements in C order."""
        xp, scale = member.xp, int(node.key or 0)  # type: ignore[call-overload]
        flat = xp.reshape(self.value(member, node.args[0]), (-1,))
        if "float64" in str(member.wide):
            return canonical.reduce(xp, node.op, flat, scale)
        if node.op in ("max", "min"):
            empty = xp.asarray(canonical.IDENTITY[node.op], dtype=flat.dtype)
            return getattr(xp, node.op)(flat) if flat.shape[0] else empty
        return xp.sum(flat * flat if node.op == "sum_of_squares" else flat)

    def _total(self, member: Walked, node: Node) -> Any:
        """The sum over the members that have a gradient, in their order."""
        parts = [self._contribution(other, node.key) for other in self.members]
        found = [part for part in parts if part is not None]
        if not any(arrays.is_array(part) for part in found):
            return float(canonical.combine(np, "sum", np.array([part or 0.0 for part in parts])))
        widen = self._widen(member)
        stacked = member.xp.stack([widen(0.0 if part is None else part) for part in parts])
        return canonical.combine(member.xp, "sum", stacked)

    def _contribution(self, member: Walked, label: Hashable) -> Any:
        if member.gradient is None or member.program is None:
            return None
        own = next((node for node in member.program.totals if node.key == label), None)
        return None if own is None else self.value(member, own.args[0])
