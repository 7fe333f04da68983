"""The eager engine on NumPy: in slices of 64k elements, which stay in the cache, into buffers that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.arrays import DType
from optimkit.engines import canonical, threads
from optimkit.engines.eager.whole import EagerRunner, function_of
from optimkit.engines.protocol import Call, Member, Tables
from optimkit.fusion.graph import BOOLEAN, Level, Node
from optimkit.fusion.operations import OPERATIONS
from optimkit.fusion.stages import Plan, Stage, array_key

SLICE = 1 << 16

# What a namespace's function is called in NumPy, where the array API renamed it.
_UFUNCS: dict[str, Any] = {
    name: getattr(np, {"abs": "absolute"}.get(name, name))
    for name in OPERATIONS
    if name not in ("real", "imag", "conj", "count_power", "round")
}
_UFUNCS["round"] = np.rint


def _where(condition: Any, x: Any, y: Any, out: np.ndarray) -> None:
    np.copyto(out, y)
    np.copyto(out, x, where=condition)


_UFUNCS["where"] = _where


class SlicedRunner(EagerRunner):
    """The eager engine on NumPy: in slices, with `out=`, on as many threads as allowed."""

    def __init__(self, plan: Plan, dtype: DType, members: Sequence[Member]) -> None:
        super().__init__(plan, dtype, members)
        self.programs = [_SliceProgram(plan, stage) for stage in plan.stages]
        self.buffers: dict[int, dict[tuple[str, int], np.ndarray]] = {}
        self.helpers = threads.Helpers()

    def _flat_arrays(self, p: int, keys: Sequence[Hashable]) -> dict[Hashable, np.ndarray]:
        """Arrays of a member, flat: copies where they are strided."""
        return {key: self.members[p].arrays[key].reshape(-1) for key in keys}

    def _each_slice(self, number: int, tables: Tables, finish: Callable[..., None]) -> Callable[[], None]:
        """What evaluates a stage slice by slice; `finish(p, start, stop, values, arrays)` for each. Memory is taken here."""
        stage, program = self.plan.stages[number], self.programs[number]
        keys = list(dict.fromkeys([*stage.reads, *stage.outputs]))
        flat: dict[int, dict[Hashable, np.ndarray]] = {}
        scalars: dict[int, dict[Node, Any]] = {}
        for p, member in enumerate(self.members):
            if member.gradient is not None and member.size:
                flat[p] = self._flat_arrays(p, keys)
                scalars[p] = {node: self._scalar(node, tables, p, member) for node in program.scalars}
        queue = [(p, start) for p in flat for start in range(0, self.members[p].size, SLICE)]
        workers = min(threads.get_num_threads(), len(queue)) or 1
        turn = iter(queue)
        for thread in range(workers):
            program.make_buffers(self.buffers.setdefault(thread, {}), self.dtype.compute)

        def call(thread: int) -> None:
            buffers = self.buffers[thread]
            with np.errstate(all="ignore"):
                for p, start in turn:
                    stop = min(start + SLICE, self.members[p].size)
                    local = {key: x[start:stop] for key, x in flat[p].items()}
                    values = program.run(local, scalars[p], buffers, stop - start, self.dtype.compute)
                    finish(p, start, stop, values, local)

        def evaluate() -> None:
            threads.run(call, workers)
            for p, found in flat.items():
                for key in stage.outputs:
                    target = self.members[p].arrays[key]
                    if not target.flags.c_contiguous:  # what was written is a copy
                        target[...] = found[key].reshape(target.shape)

        return evaluate

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

        self._each_slice(number, tables, finish)()
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

    def fill(self, number: int, tables: Tables) -> None:
        self._writing(number, tables)()

    def commit(self, tables: Tables, zero: bool) -> list[Call]:
        """Slices are computed as they are written, by calls of Python: on a thread that nothing interrupts."""
        write, zeroing = self._writing(len(self.plan.stages) - 1, tables), self._zeroing() if zero else []

        def commit() -> None:
            write()
            for call in zeroing:
                call()

        self.helpers = threads.Helpers([commit], needed=True)
        return [*self.helpers.starts, *self.helpers.waits] or [commit]  # no thread can be had

    def committed(self) -> None:
        error = self.helpers.end()
        if error is not None:
            raise error

    def _writing(self, number: int, tables: Tables) -> Callable[[], None]:
        outputs = list(self.plan.stages[number].outputs)

        def finish(p: int, start: int, stop: int, values: list[Any], local: dict[Hashable, np.ndarray]) -> None:
            values = [value.copy() if key in self.moved else value for key, value in zip(outputs, values, strict=True)]
            for key, value in zip(outputs, values, strict=True):
                np.copyto(local[key], value, casting="same_kind")

        return self._each_slice(number, tables, finish)


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

    def make_buffers(self, buffers: dict[tuple[str, int], np.ndarray], dtype: str) -> None:
        """Make the buffers that it needs, where they are not there yet."""
        for _, place in self.steps:
            if place not in buffers:
                buffers[place] = np.empty(SLICE, bool if place[0] == "bool" else dtype)

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
            out = buffers[place][:n]
            args = [value(arg) for arg in node.args]
            if node.op in _UFUNCS:
                _UFUNCS[node.op](*args, out=out)
            else:
                np.copyto(out, function_of(np, node.op)(*args))
            known[node] = out
        return [value(end) for end in self.ends]
