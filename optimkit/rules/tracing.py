"""Tracing a chain: one call of `run` with values that write down what is done to them gives a program.

    program = trace(Chain.of(optimkit.SGD(lr=0.1)))
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from typing import Any

from optimkit.counting import counters
from optimkit.fusion.graph import BOOLEAN, REAL, Graph, Level, Node, walk
from optimkit.fusion.stages import GRADIENT, WEIGHT, Program
from optimkit.fusion.trace import Traced, TracingNamespace, as_node
from optimkit.rules.chain import Chain, run
from optimkit.rules.links import Penalty
from optimkit.rules.numbers import Follow
from optimkit.rules.rule import Rule
from optimkit.rules.whole import Numbers


def trace(
    chain: Chain, kind: str = REAL, wide: bool = False, check: bool = False, device_count: bool = False
) -> Program:
    """Trace a chain into a program.

    Parameters
    ----------
    kind : {"real", "complex"}
        Of the weights.
    wide : bool
        Norms are computed for float64 arrays, whose squares may overflow float64.
    check : bool
        The driver wants the norm of all gradients, to see whether they are finite.
    device_count : bool
        h.t lives on the device, where a skip is decided: what depends on it is uniform, not host.
    """
    counters.traces += 1
    graph = Graph()
    count_level = Level.UNIFORM if device_count else Level.HOST
    xp = TracingNamespace(graph, wide)

    def leaf(op: str, level: Level, key: Hashable = None, kind: str = REAL, whole: bool = False) -> Traced:
        return Traced(graph, graph.leaf(op, level, key, kind, whole))

    def numbers(index: int, rule: Rule) -> Numbers:
        own = {name: _traced_number(graph, index, rule, name) for name in rule._numbers}
        if index and "lr" in chain.optimizer._numbers:
            own = {"lr": _traced_number(graph, 0, chain.optimizer, "lr")} | own
        return Numbers(rule, {**own, "t": leaf("count", count_level, whole=True)})

    slots, shapes = {}, chain.slots()
    for (index, name), slot in shapes.items():
        level = Level.ELEMENT if slot.extent == "element" else Level.UNIFORM
        own = REAL if slot.is_real or level is Level.UNIFORM else kind
        slots[index, name] = leaf("input" if slot.is_constant else "slot", level, (index, name, slot.extent), own)
    w, g = (leaf(str(key), Level.ELEMENT, kind=kind) for key in (WEIGHT, GRADIENT))
    new_w, new_slots = run(chain, w, g, slots, numbers, xp)
    _check_read(chain, [as_node(graph, x) for x in (new_w, *new_slots.values())])
    outputs: dict[Hashable, Node] = {"w": as_node(graph, new_w)}
    for (index, name), value in new_slots.items():
        node, slot = as_node(graph, value), shapes[index, name]
        what = f"{type(dict(chain.rules)[index]).__name__}: the new value of slot {name!r}"
        if node.kind == BOOLEAN:
            raise TypeError(f"{what} is a comparison; write xp.where(condition, 1.0, 0.0)")
        if slot.extent != "element" and node.level is Level.ELEMENT:
            declared = f"it is declared per {slot.extent}; reduce it, or declare it so"
            raise TypeError(f"{what} has one value per element, but {declared}")
        if slot.extent == "optimizer" and not _same_for_all(node):
            raise TypeError(f"{what} differs between parameters, but it is declared per optimizer; take total(...) of it")
        outputs["slot", index, name, slot.extent] = node
    if outputs["w"].kind == BOOLEAN:
        raise TypeError(f"{type(chain.optimizer).__name__}: the step is a comparison; write xp.where(condition, 1.0, 0.0)")
    xp.owner = "driver"
    measured = {id(node) for node in walk(outputs.values()) if node.op == "sum_of_squares"}
    gradient_norm = as_node(graph, xp.norm(-g if chain.conventions.maximize else g, total=True))
    if not check and not {id(node) for node in walk([gradient_norm]) if node.op == "sum_of_squares"} <= measured:
        return Program(_title(chain.optimizer), outputs)
    return Program(_title(chain.optimizer), outputs, gradient_norm)


def _title(rule: Rule) -> str:
    """The name of a rule's class as it may stand in a comment of a kernel: another line would be code."""
    return re.sub(r"[^0-9A-Za-z_]", "_", type(rule).__name__)


def _check_read(chain: Chain, roots: Iterable[Node]) -> None:
    """Raise TypeError where an input is declared and never read."""
    read = {node.key for node in walk(roots) if node.op == "input"}
    for (index, name), slot in chain.slots().items():
        if slot.is_constant and (index, name, slot.extent) not in read:
            rule = dict(chain.rules)[index]
            what = f"{type(rule).__name__}: the constant slot {name!r} is declared by slots(), but nothing reads it"
            hint = "; penalize has no slots: override gradient(self, w, g, s, h, xp)" if isinstance(rule, Penalty) else ""
            raise TypeError(what + hint)


def _traced_number(graph: Graph, index: int, rule: Rule, name: str) -> Any:
    declared, value = rule._numbers[name], rule.__dict__[name]
    if value is None:
        return None
    if isinstance(value, Follow):
        index, name = 0, value.name

    def number(position: int | None) -> Traced:
        return Traced(graph, graph.leaf("number", Level.HOST, (index, name, position)))

    return tuple(number(i) for i in range(len(declared.ranges))) if declared.many else number(None)


def _same_for_all(node: Node) -> bool:
    """Whether a uniform value is the same for all parameters: made of totals, optimizer slots and numbers."""
    if node.op in ("total", "count") or (node.op == "slot" and node.key[-1] == "optimizer"):  # type: ignore[index]
        return True
    if node.op == "size" or node.level is Level.ELEMENT or node.op == "slot":
        return False
    if node.level is Level.HOST:
        return True
    return bool(node.args) and all(_same_for_all(arg) for arg in node.args)
