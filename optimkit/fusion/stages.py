"""Stages: the graph cut where something must be known before the rest can be computed.

A stage is one pass over memory. It reads arrays, and ends in reductions, or in arrays that it writes: those that a
function of whole arrays is called with, and in the last stage weights and state. Each stage computes again
what it needs from the arrays, since arithmetic is cheaper than memory.

Values have a round: the number of reductions, totals and calls that must be known before. All sums of
one round are one pass; totals of a round need the sums of all parameters, and no pass; calls come last in a round.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

from optimkit.fusion.graph import REDUCTIONS, Level, Node, WholeFunction, walk
from optimkit.fusion.levels import HostFunction, compile_host

WEIGHT: Hashable = "w"
GRADIENT: Hashable = "g"
ARRAYS = ("w", "g", "slot", "input", "result")  # nodes that lie in memory


@dataclass(frozen=True, eq=False, repr=False)
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
    def gradient_sum(self) -> Node:
        """The sum of squares of one gradient that is finite whenever the gradient is.

        The norm of float64 gradients has three sums, each scaled by another power of two: the one scaled down.
        """
        assert self.gradient_norm is not None
        sums = [node for node in walk([self.gradient_norm]) if node.op == "sum_of_squares"]
        return min(sums, key=lambda node: cast(int, node.key))

    @property
    def totals(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.op == "total")


def rounds(program: Program, floor: Mapping[Hashable, int]) -> dict[Node, int]:
    """The round of every node; `floor` holds the least round of a total, by label. The norm of all gradients comes first."""
    found: dict[Node, int] = {}
    for node in program.nodes:
        own = max((found[arg] for arg in node.args), default=0)
        if node.op in REDUCTIONS:
            own += 1
        elif node.op == "call":  # not before it is known whether the gradients are finite
            own = max(own + 1, found[program.gradient_norm] if program.gradient_norm is not None else 0)
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


def number_totals(plans: Iterable[Plan]) -> dict[Hashable, int]:
    """A number for every total of an optimizer, by label; those to which all parameters add the same have one."""
    found: dict[Hashable, list[tuple[int, int, Node]]] = {}
    for place, plan in enumerate(plans):
        for own, nodes in plan.uniform_rounds.items():
            for node in nodes:
                if node.op == "total":
                    found.setdefault(node.key, []).append((place, own, node.args[0]))
    numbers: dict[Hashable, int] = {}
    return {label: numbers.setdefault(tuple(added), len(numbers)) for label, added in found.items()}


class Stage(NamedTuple):
    """One pass: the arrays it reads, the element nodes in order, and what it ends in.

    `reductions` for a stage that reduces, else `outputs` (array key to node).
    """

    round: int
    nodes: tuple[Node, ...]
    reads: tuple[Hashable, ...]
    reductions: tuple[Node, ...]
    outputs: dict[Hashable, Node]


class Call(NamedTuple):
    """A function of whole arrays, called for each parameter after the passes of a round.

    It is given the arrays with the keys `given` and the values of `numbers`, and fills those with the keys `results`.
    """

    round: int
    function: WholeFunction
    given: tuple[Hashable, ...]
    numbers: tuple[Node, ...]
    results: tuple[Hashable, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A program cut into stages, with the columns of its scalar tables.

    `hosts` are the host values that a kernel, a call or a uniform reads, in column order; `uniforms` the uniform
    values that elements read; `uniform_rounds` what to compute after the passes of each round; `calls` what to call then.
    """

    program: Program
    stages: tuple[Stage, ...]
    calls: tuple[Call, ...]
    hosts: tuple[Node, ...]
    uniforms: tuple[Node, ...]
    uniform_rounds: dict[int, tuple[Node, ...]]
    slot_outputs: dict[Hashable, Node]
    host: HostFunction
    numbers: tuple[Hashable, ...]

    @cached_property
    def arrays(self) -> tuple[Hashable, ...]:
        """All arrays of a parameter that the kernels touch: weight, gradient, slots, inputs, what calls are given and give."""
        others = [key for stage in self.stages for key in (*stage.reads, *stage.outputs)]
        return tuple(dict.fromkeys([WEIGHT, GRADIENT, *others]))

    @cached_property
    def buffers(self) -> tuple[Hashable, ...]:
        """The arrays that live for a step: what calls are given that lies nowhere yet, and what they give."""
        keys = [key for call in self.calls for key in (*call.given, *call.results)]
        return tuple(key for key in dict.fromkeys(keys) if isinstance(key, tuple) and key[0] in ("given", "result"))

    @cached_property
    def rounds(self) -> tuple[int, ...]:
        """The rounds before the last stage in which there is something to do, or to hand to the totals of the next."""
        found = {number for number in self.uniform_rounds if number}
        found |= {number - 1 for number, nodes in self.uniform_rounds.items() if any(node.op == "total" for node in nodes)}
        return tuple(sorted(found | {stage.round for stage in self.stages[:-1]} | {call.round for call in self.calls}))

    @cached_property
    def reducing(self) -> tuple[int, ...]:
        """The numbers of the stages that reduce."""
        return tuple(number for number, stage in enumerate(self.stages) if stage.reductions)

    @cached_property
    def filling(self) -> tuple[int, ...]:
        """The numbers of the stages that write what calls are given."""
        return tuple(number for number, stage in enumerate(self.stages[:-1]) if not stage.reductions)

    @property
    def last(self) -> Stage:
        return self.stages[-1]


def array_key(node: Node) -> Hashable:
    """What an array is called: "w", "g", or (what it is, the rule, the name, ...)."""
    return (node.op, *node.key) if isinstance(node.key, tuple) else node.op


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
    element_outputs: dict[Hashable, Node] = {}
    slot_outputs: dict[Hashable, Node] = {}
    for key, node in program.outputs.items():
        (element_outputs if _per_element(key) else slot_outputs)[key] = node
    calls, filled = _cut_calls(program, found)
    stages = [_stage(number, tuple(nodes), {}) for number, nodes in by_round.items()]
    stages += [_stage(number, (), outputs) for number, outputs in filled.items()]
    stages.sort(key=lambda stage: stage.round)
    stages.append(_stage(max(found.values(), default=0) + 1, (), element_outputs))

    wanted: dict[Node, None] = {}
    hosts: dict[Node, None] = {}
    for stage in stages:
        for node in (*(arg for each in stage.nodes for arg in each.args), *stage.outputs.values()):
            _sort_scalar(node, hosts, wanted)
        for reduction in stage.reductions:
            _sort_scalar(reduction.args[0], hosts, wanted)
    read = [arg for each in uniform if each.op not in REDUCTIONS for arg in each.args]
    for node in (*read, *slot_outputs.values(), *(number for call in calls for number in call.numbers)):
        if node.level is Level.HOST and node.op != "constant":
            hosts[node] = None
    uniform_rounds: dict[int, list[Node]] = {}
    for node in uniform:
        uniform_rounds.setdefault(found[node], []).append(node)
    host, numbers, _ = compile_host(tuple(hosts))
    return Plan(
        program=program,
        stages=tuple(stages),
        calls=calls,
        hosts=tuple(hosts),
        uniforms=tuple(wanted),
        uniform_rounds={number: tuple(nodes) for number, nodes in sorted(uniform_rounds.items())},
        slot_outputs=slot_outputs,
        host=host,
        numbers=numbers,
    )


def _per_element(key: Hashable) -> bool:
    return key == WEIGHT or (isinstance(key, tuple) and key[0] == "slot" and key[-1] == "element")


def _sort_scalar(node: Node, hosts: dict[Node, None], uniforms: dict[Node, None]) -> None:
    if node.level is Level.HOST and node.op != "constant":
        hosts[node] = None
    elif node.level is Level.UNIFORM:
        uniforms[node] = None


def _cut_calls(program: Program, found: Mapping[Node, int]) -> tuple[tuple[Call, ...], dict[int, dict[Hashable, Node]]]:
    """The calls, and what has to be written for them in each round, by key: values that lie nowhere yet."""
    calls: list[Call] = []
    filled: dict[int, dict[Hashable, Node]] = {}
    for node in program.nodes:
        if node.op == "call":
            function = cast(WholeFunction, node.key)
            given: list[Hashable] = []
            for place, arg in enumerate(node.args[: function.count]):
                given.append(array_key(arg) if is_array(arg) else ("given", function.index, function.method, place))
                if not is_array(arg):
                    filled.setdefault(found[node], {})[given[-1]] = arg
            results = tuple(("result", function.index, function.method, name) for name in function.results)
            calls.append(Call(found[node], function, tuple(given), node.args[function.count :], results))
    return tuple(calls), filled


def _stage(number: int, reductions: tuple[Node, ...], outputs: dict[Hashable, Node]) -> Stage:
    roots = [reduction.args[0] for reduction in reductions] or list(outputs.values())
    nodes, reads = [], []
    for node in _walk_elements(roots):
        if is_array(node):
            reads.append(array_key(node))
        else:
            nodes.append(node)
    return Stage(number, tuple(nodes), tuple(reads), reductions, outputs)


def _walk_elements(roots: Iterable[Node]) -> Iterator[Node]:
    """The element nodes below `roots`; a reduction below them is a value, an array is where the path ends."""
    done: set[int] = set()

    def visit(node: Node) -> Iterator[Node]:
        if node.level is Level.ELEMENT and id(node) not in done:
            done.add(id(node))
            for arg in () if is_array(node) else node.args:
                yield from visit(arg)
            yield node

    for root in roots:
        yield from visit(root)
