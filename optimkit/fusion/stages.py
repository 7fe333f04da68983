"""Stages: the graph cut where a reduction must be known.

A stage is one pass over memory. Every stage but the last only reads, and ends in reductions;
the last one writes weights and state. Each stage computes again what it needs from the arrays,
since arithmetic is cheaper than memory.

Values have a round: the number of reductions and totals that must be known before. All sums of
one round are one pass; totals of a round need the sums of all parameters, and no pass.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from optimkit.fusion.graph import REDUCTIONS, Level, Node, walk
from optimkit.fusion.levels import HostFunction, compile_host

WEIGHT: Hashable = "w"
GRADIENT: Hashable = "g"
ARRAYS = ("w", "g", "slot")


@dataclass(frozen=True)
class Program:
    """What one step computes for one parameter: the new weight and the new slots, by key.

    `gradient_norm` is the norm of all gradients where the driver needs it, else None.
    """

    name: str
    outputs: dict[Hashable, Node]
    gradient_norm: Node | None = None

    @cached_property
    def roots(self) -> tuple[Node, ...]:
        extra = () if self.gradient_norm is None else (self.gradient_norm,)
        return (*extra, *self.outputs.values())

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(walk(self.roots))

    @property
    def totals(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.op == "total")


def rounds(program: Program, floor: Mapping[Hashable, int]) -> dict[Node, int]:
    """The round of every node; `floor` holds the least round of a total, by label."""
    found: dict[Node, int] = {}
    for node in program.nodes:
        own = max((found[arg] for arg in node.args), default=0)
        if node.op in REDUCTIONS:
            own += 1
        elif node.op == "total":
            own = max(own + 1, floor.get(node.key, 0))
        found[node] = own
    return found


def total_rounds(programs: Iterable[Program]) -> dict[Hashable, int]:
    """The round of every total, the same in all programs of an optimizer."""
    floor: dict[Hashable, int] = {}
    programs = [program for program in programs if program.totals]
    while True:
        raised = dict(floor)
        for program in programs:
            found = rounds(program, floor)
            for node in program.totals:
                raised[node.key] = max(raised.get(node.key, 0), found[node])
        if raised == floor:
            return floor
        floor = raised


@dataclass(frozen=True)
class Stage:
    """One pass: the arrays it reads, the element nodes in order, and what it ends in.

    `reductions` for a stage that reads, `outputs` (array key to node) for the last one.
    """

    round: int
    nodes: tuple[Node, ...]
    reads: tuple[Hashable, ...]
    reductions: tuple[Node, ...] = ()
    outputs: dict[Hashable, Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A program cut into stages, with the columns of its scalar tables.

    `hosts` are the host values that a kernel or a uniform reads, in column order; `uniforms` the
    uniform values that elements read; `uniform_rounds` what to compute after the passes of each round.
    """

    program: Program
    stages: tuple[Stage, ...]
    hosts: tuple[Node, ...]
    uniforms: tuple[Node, ...]
    uniform_rounds: dict[int, tuple[Node, ...]]
    slot_outputs: dict[Hashable, Node]
    host: HostFunction
    host_text: str
    numbers: tuple[Hashable, ...]

    @property
    def arrays(self) -> tuple[Hashable, ...]:
        """All arrays of a parameter that the kernels touch: weight, gradient, slots."""
        slots = [key for stage in self.stages for key in (*stage.reads, *stage.outputs)]
        return tuple(dict.fromkeys([WEIGHT, GRADIENT, *slots]))

    @property
    def reading(self) -> tuple[Stage, ...]:
        return self.stages[:-1]

    @property
    def last(self) -> Stage:
        return self.stages[-1]


def array_key(node: Node) -> Hashable:
    return ("slot", *node.key) if node.op == "slot" else node.op  # type: ignore[misc]


def is_array(node: Node) -> bool:
    return node.op in ARRAYS and node.level is Level.ELEMENT


def make_plan(program: Program, floor: Mapping[Hashable, int]) -> Plan:
    """Cut a program into stages."""
    found = rounds(program, floor)
    uniform = [node for node in program.nodes if node.level is Level.UNIFORM]
    by_round: dict[int, list[Node]] = {}
    for node in program.nodes:
        if node.op in REDUCTIONS:
            by_round.setdefault(found[node], []).append(node)
    stages = [_stage(number, tuple(nodes), {}) for number, nodes in sorted(by_round.items())]
    element_outputs: dict[Hashable, Node] = {}
    slot_outputs: dict[Hashable, Node] = {}
    for key, node in program.outputs.items():
        (element_outputs if _per_element(key) else slot_outputs)[key] = node
    stages.append(_stage(max(found.values(), default=0) + 1, (), element_outputs))

    wanted: dict[Node, None] = {}
    hosts: dict[Node, None] = {}
    for stage in stages:
        ends = stage.outputs.values()
        for node in (*(arg for each in stage.nodes for arg in each.args), *ends):
            _sort_scalar(node, hosts, wanted)
        for reduction in stage.reductions:
            _sort_scalar(reduction.args[0], hosts, wanted)
    for node in (*(arg for each in uniform if each.op not in REDUCTIONS for arg in each.args), *slot_outputs.values()):
        if node.level is Level.HOST and node.op != "constant":
            hosts[node] = None
    uniform_rounds: dict[int, list[Node]] = {}
    for node in uniform:
        uniform_rounds.setdefault(found[node], []).append(node)
    host, numbers, text = compile_host(tuple(hosts))
    return Plan(
        program=program,
        stages=tuple(stages),
        hosts=tuple(hosts),
        uniforms=tuple(wanted),
        uniform_rounds={number: tuple(nodes) for number, nodes in sorted(uniform_rounds.items())},
        slot_outputs=slot_outputs,
        host=host,
        host_text=text,
        numbers=numbers,
    )


def _per_element(key: Hashable) -> bool:
    return key == WEIGHT or (isinstance(key, tuple) and key[0] == "slot" and key[-1] == "element")


def _sort_scalar(node: Node, hosts: dict[Node, None], uniforms: dict[Node, None]) -> None:
    if node.level is Level.HOST and node.op != "constant":
        hosts[node] = None
    elif node.level is Level.UNIFORM:
        uniforms[node] = None


def _stage(number: int, reductions: tuple[Node, ...], outputs: dict[Hashable, Node]) -> Stage:
    roots = [reduction.args[0] for reduction in reductions] or list(outputs.values())
    nodes, reads = [], []
    for node in _walk_elements(roots):
        if is_array(node):
            reads.append(array_key(node))
        else:
            nodes.append(node)
    return Stage(number, tuple(nodes), tuple(reads), reductions, outputs)


def _walk_elements(roots: Iterable[Node]) -> Iterable[Node]:
    """The element nodes below `roots`; a reduction below them is a value, not a path."""
    done: set[int] = set()

    def visit(node: Node) -> Iterable[Node]:
        if node.level is Level.ELEMENT and id(node) not in done:
            done.add(id(node))
            for arg in node.args:
                yield from visit(arg)
            yield node

    for root in roots:
        yield from visit(root)
