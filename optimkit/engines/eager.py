"""The eager engine: walks the graph with a namespace's own functions.

It runs on every array API namespace, whole arrays at a time. On NumPy it goes in slices of 64k
elements (which stay in the cache) and computes into buffers that it keeps. Scalars are cast to
the compute dtype once, where they meet an element: the same bits as the compiled engines.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.engines import canonical, threads
from optimkit.engines.runner import Member, Tables
from optimkit.fusion.graph import BOOLEAN, Level, Node
from optimkit.fusion.operations import OPERATIONS
from optimkit.fusion.stages import GRADIENT, WEIGHT, Plan, Stage, array_key, is_array

SLICE = 1 << 16

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

    name = "eager"
    together = None
    keeps_addresses = False

    def __init__(self, plan: Plan, dtype: str, members: Sequence[Member]) -> None:
        self.plan, self.dtype, self.members = plan, dtype, members
        self.host_columns = {node: column for column, node in enumerate(plan.hosts)}
        self.uniform_columns = {node: column for column, node in enumerate(plan.uniforms)}
        self.moved = [moves(key, node, plan.last) for key, node in plan.last.outputs.items()]

    def members_changed(self, numbers: Sequence[int]) -> None:
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
        if arrays.library(member.weight) == "cupy":
            return bool(value) if node.kind == BOOLEAN else np.dtype(self.dtype).type(value)
        xp = arrays.namespace(member.weight)
        dtype = xp.bool if node.kind == BOOLEAN else member.weight.dtype
        return xp.asarray(value, dtype=dtype, device=member.weight.device)

    def _evaluate(self, stage: Stage, tables: Tables, p: int, ends: Sequence[Node]) -> list[Any]:
        """The values of `ends` for one member, as whole arrays."""
        member = self.members[p]
        xp = arrays.namespace(member.weight)
        known: dict[Node, Any] = {}

        def value(node: Node) -> Any:
            if node not in known:
                if is_array(node):
                    known[node] = read_array(member, array_key(node), xp)
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

    @np.errstate(all="ignore")
    def commit(self, tables: Tables, zero: bool) -> None:
        stage = self.plan.last
        for p, member in enumerate(self.members):
            if member.gradient is None or member.size == 0:
                continue
            ends = self._evaluate(stage, tables, p, list(stage.outputs.values()))
            ends = [_copy(end) if moved else end for end, moved in zip(ends, self.moved, strict=True)]
            for key, end in zip(stage.outputs, ends, strict=True):
                target = member.weight if key == WEIGHT else member.slots[key]
                target[...] = end if key == WEIGHT or end.shape == () else arrays.namespace(end).reshape(end, (-1,))
            if zero and member.zero_in_pass:
                member.gradient[...] = 0.0


def moves(key: Hashable, node: Node, stage: Stage) -> bool:
    """Whether an output is another array as it was, such as a slot that keeps the last weight: read it before it is written."""
    return is_array(node) and array_key(node) in stage.outputs and array_key(node) != key


def _copy(x: Any) -> Any:
    return arrays.namespace(x).asarray(x, copy=True)


def read_array(member: Member, key: Hashable, xp: Any) -> Any:
    """An array of a member in the shape and the compute dtype of its weight."""
    if key == WEIGHT:
        return member.weight
    if key == GRADIENT:
        gradient = member.gradient
        return gradient if gradient.dtype == member.weight.dtype else xp.astype(gradient, member.weight.dtype)
    return xp.reshape(member.slots[key], tuple(member.weight.shape))


# What a namespace's function is called in NumPy, where the array API renamed it.
_UFUNCS: dict[str, Any] = {
    name: getattr(np, {"abs": "absolute"}.get(name, name))
    for name in OPERATIONS
    if name not in ("where", "real", "imag", "conj", "count_power", "round")
}
_UFUNCS["round"] = np.rint


class SlicedRunner(EagerRunner):
    """The eager engine on NumPy: in slices, with `out=`, on as many threads as allowed."""

    def __init__(self, plan: Plan, dtype: str, members: Sequence[Member]) -> None:
        super().__init__(plan, dtype, members)
        self.programs = [_SliceProgram(plan, stage) for stage in plan.stages]
        self.buffers: dict[int, dict[tuple[str, int], np.ndarray]] = {}
        self.work = [(p, start) for p, member in enumerate(members) for start in range(0, member.size, SLICE)]

    def _cast(self, value: Any, node: Node, member: Member) -> Any:
        with np.errstate(over="ignore"):
            return bool(value) if node.kind == BOOLEAN else np.dtype(self.dtype).type(value)

    def _flat(self, x: Any) -> np.ndarray:
        return x.reshape(-1)  # type: ignore[no-any-return]  # a copy where it is strided

    def _member_arrays(self, p: int, keys: Sequence[Hashable]) -> dict[Hashable, np.ndarray]:
        member = self.members[p]
        found = {}
        for key in keys:
            x = member.weight if key == WEIGHT else member.gradient if key == GRADIENT else member.slots[key]
            found[key] = self._flat(x)
        return found

    def _each_slice(self, number: int, tables: Tables, finish: Callable[..., None]) -> None:
        """Evaluate a stage slice by slice; `finish(p, start, stop, values, arrays)` for each."""
        stage, program = self.plan.stages[number], self.programs[number]
        keys = list(dict.fromkeys([*stage.reads, *stage.outputs]))
        flat: dict[int, dict[Hashable, np.ndarray]] = {}
        scalars: dict[int, dict[Node, Any]] = {}
        for p, member in enumerate(self.members):
            if member.gradient is not None and member.size:
                flat[p] = self._member_arrays(p, keys)
                scalars[p] = {node: self._scalar(node, tables, p, member) for node in program.scalars}
        queue = [(p, start) for p, start in self.work if p in flat]
        workers = min(threads.get_num_threads(), len(queue)) or 1
        turn = iter(queue)

        def call(thread: int) -> None:
            buffers = self.buffers.setdefault(thread, {})
            with np.errstate(all="ignore"):
                for p, start in turn:
                    stop = min(start + SLICE, self.members[p].size)
                    local = {key: x[start:stop] for key, x in flat[p].items()}
                    values = program.run(local, scalars[p], buffers, stop - start, self.dtype)
                    finish(p, start, stop, values, local)

        threads.run(call, workers)
        if stage is self.plan.last:
            self._write_back(flat)

    def _write_back(self, flat: dict[int, dict[Hashable, np.ndarray]]) -> None:
        for p, found in flat.items():
            weight = self.members[p].weight
            if not weight.flags.c_contiguous:
                weight[...] = found[WEIGHT].reshape(weight.shape)

    def reduce(self, number: int, tables: Tables) -> np.ndarray:
        stage = self.plan.stages[number]
        results = np.zeros((len(self.members), len(stage.reductions)))
        parts: dict[tuple[int, int], list[np.ndarray]] = {}

        def finish(p: int, start: int, stop: int, values: list[Any], local: dict[Hashable, np.ndarray]) -> None:
            xp = arrays.namespace(local[stage.reads[0]])
            parts[p, start] = [
                canonical.unit_values(xp, node.op, value, int(node.key or 0))  # type: ignore[call-overload]
                for node, value in zip(stage.reductions, values, strict=True)
            ]

        self._each_slice(number, tables, finish)
        for p, member in enumerate(self.members):
            found = [parts[p, start] for start in range(0, member.size, SLICE) if (p, start) in parts]
            for r, node in enumerate(stage.reductions):
                if not found:
                    results[p, r] = canonical.IDENTITY[node.op]
                    continue
                units = np.concatenate([each[r] for each in found])
                with np.errstate(all="ignore"):
                    results[p, r] = canonical.combine(arrays.namespace(units), node.op, units)
        return results

    def commit(self, tables: Tables, zero: bool) -> None:
        outputs = list(self.plan.last.outputs)

        def finish(p: int, start: int, stop: int, values: list[Any], local: dict[Hashable, np.ndarray]) -> None:
            values = [value.copy() if moved else value for value, moved in zip(values, self.moved, strict=True)]
            for key, value in zip(outputs, values, strict=True):
                np.copyto(local[key], value, casting="same_kind")

        self._each_slice(len(self.plan.stages) - 1, tables, finish)
        if zero:
            for member in self.members:
                if member.gradient is not None and member.zero_in_pass:
                    member.gradient[...] = 0


class _SliceProgram:
    """The nodes of a stage as NumPy calls into numbered buffers, each buffer reused when its value is done with."""

    def __init__(self, plan: Plan, stage: Stage) -> None:
        self.ends = [node.args[0] for node in stage.reductions] or list(stage.outputs.values())
        self.stage = stage
        last_use: dict[Node, int] = {}
        for place, node in enumerate(stage.nodes):
            for arg in node.args:
                last_use[arg] = place
        for end in self.ends:
            last_use[end] = len(stage.nodes)
        self.scalars = list(dict.fromkeys(arg for node in stage.nodes for arg in node.args if arg.level is not Level.ELEMENT))
        self.scalars += [end for end in self.ends if end.level is not Level.ELEMENT]
        self.steps: list[tuple[Node, tuple[str, int]]] = []
        free: dict[str, list[int]] = {}
        count: dict[str, int] = {}
        place_of: dict[Node, tuple[str, int]] = {}
        for place, node in enumerate(stage.nodes):
            kind = "bool" if node.kind == BOOLEAN else "real"
            stock = free.setdefault(kind, [])
            if stock:
                number = stock.pop()
            else:
                number = count[kind] = count.get(kind, 0) + 1
            place_of[node] = (kind, number)
            self.steps.append((node, (kind, number)))
            for arg in set(node.args):
                if last_use[arg] == place and arg in place_of:
                    free[place_of[arg][0]].append(place_of[arg][1])

    def run(
        self,
        local: dict[Hashable, np.ndarray],
        scalars: dict[Node, Any],
        buffers: dict[tuple[str, int], np.ndarray],
        n: int,
        dtype: str,
    ) -> list[Any]:
        known: dict[Node, Any] = dict(scalars)

        def value(node: Node) -> Any:
            if node not in known:
                x = local[array_key(node)]
                known[node] = x if x.dtype == dtype else x.astype(dtype)
            return known[node]

        for node, place in self.steps:
            buffer = buffers.get(place)
            if buffer is None or buffer.size < n:
                buffer = buffers[place] = np.empty(SLICE, bool if place[0] == "bool" else dtype)
            out = buffer[:n]
            args = [value(arg) for arg in node.args]
            if node.op == "where":
                np.copyto(out, args[2])
                np.copyto(out, args[1], where=args[0])
            elif node.op in ("real", "conj", "imag"):
                np.multiply(args[0], 0 if node.op == "imag" else 1, out=out)
            else:
                _UFUNCS[node.op](*args, out=out)
            known[node] = out
        return [value(end) for end in self.ends]
