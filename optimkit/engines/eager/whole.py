"""The eager engine: walks the graph with a namespace's own functions, whole arrays at a time.

It runs on every array API namespace. Scalars are cast to the compute dtype once, where they meet an element: the same
bits as the compiled engines. On NumPy it goes in slices (`sliced`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from operator import setitem
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.arrays import DType
from optimkit.engines import canonical
from optimkit.engines.protocol import Call, Member, Tables
from optimkit.fusion.graph import BOOLEAN, Level, Node
from optimkit.fusion.operations import OPERATIONS
from optimkit.fusion.stages import Plan, Stage, array_key, is_array

# Operations whose name is not that of the namespace's function, or that need more than a call.
_SPECIAL: dict[str, Callable[..., Any]] = {
    "power": lambda xp, a, b: xp.pow(a, b),
    "real": lambda xp, a: a,
    "conj": lambda xp, a: a,
    "imag": lambda xp, a: a * 0.0,
    "count_power": lambda xp, a, b: xp.asarray([OPERATIONS["count_power"].host(x, y) for x, y in zip(a, b, strict=True)]),
}


def function_of(xp: Any, op: str) -> Callable[..., Any]:
    """The function of a namespace that computes an operation."""
    special = _SPECIAL.get(op)
    if special is not None:
        return lambda *args: special(xp, *args)
    return getattr(xp, op)  # type: ignore[no-any-return]


def uniform_value(op: str, args: Sequence[Any]) -> Any:
    """An operation on uniform values: float64 arrays over the members, or Python floats."""
    if not any(isinstance(arg, np.ndarray) for arg in args):
        return OPERATIONS[op].host(*args)
    if op == "count_power":
        return np.frompyfunc(OPERATIONS[op].host, 2, 1)(*args).astype(np.float64)
    with np.errstate(all="ignore"):
        return function_of(np, op)(*args) if op != "power" else np.power(*args)


class EagerRunner:
    """The stages of one plan on the members of one bucket, one member after the other."""

    keeps_addresses = False

    def __init__(self, plan: Plan, dtype: DType, members: Sequence[Member]) -> None:
        self.plan, self.dtype, self.members = plan, dtype, members
        self.host_columns = {node: column for column, node in enumerate(plan.hosts)}
        self.uniform_columns = {node: column for column, node in enumerate(plan.uniforms)}
        self.moved = {key for stage in plan.stages for key, node in stage.outputs.items() if moves(key, node, stage)}

    def arrays_changed(self, numbers: Sequence[int]) -> None:
        pass

    def presence_changed(self, active: np.ndarray) -> None:
        pass

    def compile_ahead(self) -> None:
        pass

    def gradients_moved(self, shifts: np.ndarray) -> None:
        pass

    def prepare(self, tables: Tables) -> None:
        pass

    def _scalar(self, node: Node, tables: Tables, p: int, member: Member) -> Any:
        """A host or uniform value as what the member's namespace multiplies arrays with."""
        if node.op == "constant":
            value = node.key
        elif node.level is Level.HOST:
            value = float(tables.rows[tables.row_of[p], self.host_columns[node]])
        else:
            value = float(tables.uniforms[p, self.uniform_columns[node]])
        return self._cast(value, node, member)

    def _cast(self, value: Any, node: Node, member: Member) -> Any:
        dtype = None if node.kind == BOOLEAN else self.dtype.compute
        return arrays.library_of(member.weight).scalar(value, dtype, member.weight)

    def _read(self, x: Any, xp: Any) -> Any:
        """An array of a member in the compute dtype."""
        compute = getattr(xp, self.dtype.compute)
        return x if x.dtype == compute else xp.astype(x, compute)

    def _evaluate(self, stage: Stage, tables: Tables, p: int, ends: Sequence[Node]) -> list[Any]:
        """The values of `ends` for one member, as whole arrays."""
        member = self.members[p]
        xp = arrays.namespace(member.weight)
        known: dict[Node, Any] = {}

        def value(node: Node) -> Any:
            if node not in known:
                if is_array(node):
                    known[node] = self._read(member.arrays[array_key(node)], xp)
                else:
                    known[node] = self._scalar(node, tables, p, member)
            return known[node]

        for node in stage.nodes:
            known[node] = function_of(xp, node.op)(*(value(arg) for arg in node.args))
        return [value(end) for end in ends]

    @np.errstate(all="ignore")  # libraries on top of NumPy warn as it does
    def reduce(self, number: int, tables: Tables) -> np.ndarray:
        stage = self.plan.stages[number]
        results = np.zeros((len(self.members), len(stage.reductions)))
        for p, member in enumerate(self.members):
            if member.gradient is None:
                results[p] = [canonical.IDENTITY[node.op] for node in stage.reductions]
                continue
            xp = arrays.namespace(member.weight)
            ends = self._evaluate(stage, tables, p, [node.args[0] for node in stage.reductions])
            for r, (node, end) in enumerate(zip(stage.reductions, ends, strict=True)):
                flat = xp.reshape(end, (-1,))
                results[p, r] = float(canonical.reduce(xp, node.op, flat, int(node.key or 0)))  # type: ignore[call-overload]
        return results

    def fill(self, number: int, tables: Tables) -> None:
        for write in self._writes(number, tables):
            write()

    def commit(self, tables: Tables, zero: bool) -> list[Call]:
        """All new values are computed here; what is left is to copy them."""
        return [*self._writes(len(self.plan.stages) - 1, tables), *(self._zeroing() if zero else ())]

    def committed(self) -> None:
        pass

    def _zeroing(self) -> list[Call]:
        present = [member for member in self.members if member.gradient is not None and member.zero_in_pass]
        return [partial(setitem, member.gradient, ..., 0.0) for member in present]

    @np.errstate(all="ignore")
    def _writes(self, number: int, tables: Tables) -> list[Call]:
        """What writes the outputs of a stage."""
        stage = self.plan.stages[number]
        writes: list[Call] = []
        for p, member in enumerate(self.members):
            if member.gradient is None or member.size == 0:
                continue
            ends = self._evaluate(stage, tables, p, list(stage.outputs.values()))
            for key, end in zip(stage.outputs, ends, strict=True):
                target = member.arrays[key]
                writes.append(partial(setitem, target, ..., _stored(end, target, key in self.moved)))
        return writes


def moves(key: Hashable, node: Node, stage: Stage) -> bool:
    """Whether an output is another array as it was, such as a slot that keeps the last weight: read it before it is written."""
    return is_array(node) and array_key(node) in stage.outputs and array_key(node) != key


def _stored(x: Any, target: Any, moved: bool) -> Any:
    """A new value as its array stores it; a copy where it is another array that is written too."""
    xp = arrays.namespace(target)
    if arrays.is_array(x) and x.dtype != target.dtype:
        return xp.astype(x, target.dtype)
    return xp.asarray(x, copy=True) if moved else x
