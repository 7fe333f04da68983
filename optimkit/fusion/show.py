"""Graphs and plans as text that a person reads: `lr / (1 - betas[0]**t) * m`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import cast

from optimkit.fusion.graph import REDUCTIONS, Node
from optimkit.fusion.stages import Call, Plan

_INFIX = {
    "add": ("+", 4),
    "subtract": ("-", 4),
    "multiply": ("*", 5),
    "divide": ("/", 5),
    "count_power": ("**", 7),
    "power": ("**", 7),
    "equal": ("==", 3),
    "not_equal": ("!=", 3),
    "less": ("<", 3),
    "less_equal": ("<=", 3),
    "greater": (">", 3),
    "greater_equal": (">=", 3),
    "logical_and": ("&", 2),
    "logical_or": ("|", 1),
}

Namer = Callable[[Node], str | None]
NumberKey = tuple[int, str, int | None]  # the rule in the chain, the name, the place in a tuple
SlotKey = tuple[int, str, str]  # the rule in the chain, the name, the extent


def number_name(key: Hashable) -> str:
    """The name of a number in formulas: "lr", "betas[0]"; a link's has its index: "max_norm@1"."""
    index, name, position = cast(NumberKey, key)
    text = name if position is None else f"{name}[{position}]"
    return text if index == 0 else f"{text}@{index}"


def leaf_name(node: Node) -> str:
    if node.op == "number":
        return number_name(node.key)
    if node.op == "count":
        return "t"
    if node.op == "constant":
        return f"{node.key!r}"
    if node.op in ("slot", "input"):
        index, name, _ = cast(SlotKey, node.key)
        return _of_rule(index, name)
    return node.op


def _of_rule(index: int, name: str) -> str:
    """A name of a rule; a link's has its index."""
    return name if index == 0 else f"{name}@{index}"


def result_name(key: Hashable) -> str:
    """What comes out of a hook that gets whole arrays: "update", "gradient@2"; a slot: "update.m"."""
    index, method, slot = cast(tuple[int, str, str], key)
    return _of_rule(index, method) + (f".{slot}" if slot else "")


MOST = 60  # nodes of an expression in a formula: what repeats in a graph is written out each time


def formula(node: Node, name: Namer = lambda node: None) -> str:
    """A node as an expression. `name` may give a node a name, which then stands for it; what is too long is cut: `max(...)`."""
    sizes: dict[Node, int] = {}

    def size(node: Node) -> int:
        if node not in sizes:
            sizes[node] = 1 if name(node) is not None else 1 + sum(map(size, node.args))
        return sizes[node]

    def short(node: Node) -> str | None:
        given = name(node)
        return f"{node.op}(...)" if given is None and size(node) > MOST else given

    text, _ = _formula(node, short, top=True)
    return text


def _formula(node: Node, name: Namer, top: bool = False) -> tuple[str, int]:
    given = None if top else name(node)
    if given is not None:
        return given, 9
    if not node.args:
        return leaf_name(node), 9
    if node.op == "result":
        return result_name(node.key), 9
    if node.op in _INFIX:
        sign, rank = _INFIX[node.op]
        parts = []
        for place, arg in enumerate(node.args):
            text, own = _formula(arg, name)
            parts.append(f"({text})" if own < rank or (own == rank and place == 1) or own == 3 else text)
        gap = "" if rank == 7 else " "
        return f"{parts[0]}{gap}{sign}{gap}{parts[1]}", rank
    if node.op == "negative":
        text, own = _formula(node.args[0], name)
        return (f"-({text})" if own < 7 else f"-{text}"), 6
    inside = ", ".join(_formula(arg, name)[0] for arg in node.args)
    scale = f", 2**{node.key}" if node.op == "sum_of_squares" and node.key else ""
    return f"{node.op}({inside}{scale})", 9


def show_plan(plan: Plan, itemsize: int) -> str:
    """The stages of a plan: what is computed on the host, per parameter, and in each pass."""
    lines = [f"{plan.program.name}: {len(plan.stages)} stage{'s' * (len(plan.stages) > 1)}"]
    names: dict[Node, str] = {}
    lines.append("host, once a step (float64):")
    for column, node in enumerate(plan.hosts):
        lines.append(f"    k{column} = {formula(node)}")
        names[node] = f"k{column}"
    for number in sorted({*plan.uniform_rounds, *plan.rounds, plan.last.round}):
        for stage in (each for each in plan.stages if each.round == number):
            read, written = traffic(plan, plan.stages.index(stage), itemsize)
            kind = "last stage" if stage is plan.last else "stage"
            lines.append(f"{kind} {plan.stages.index(stage) + 1}: {read} bytes read, {written} written per element:")
            shared = [node for node in stage.nodes if sum(node in other.args for other in stage.nodes) > 1]
            for place, node in enumerate(shared):
                lines.append(f"    x{place} = {formula(node, names.get)}")
                names[node] = f"x{place}"
            for key, node in stage.outputs.items():
                others = {known: name for known, name in names.items() if known is not node}
                lines.append(f"    {output_name(key)} <- {formula(node, others.get)}")
        for node in plan.uniform_rounds.get(number, ()):
            if node.args:
                uniform = f"u{sum(known.startswith('u') for known in names.values())}"
                lines.append(f"    {uniform} = {formula(node, names.get)}        ({_scope(node)}, float64)")
                names[node] = uniform
        lines += [_show_call(call, names) for call in plan.calls if call.round == number]
    for key, node in plan.slot_outputs.items():
        lines.append(f"    {output_name(key)} <- {formula(node, names.get)}")
    return "\n".join(lines)


def _show_call(call: Call, names: Mapping[Node, str]) -> str:
    """A call of a hook that gets whole arrays."""
    key = call.results[0]
    args = [output_name(key) for key in call.given] + [formula(number, names.get) for number in call.numbers]
    return f"    {output_name(key)} = {call.function.label}({', '.join(args)})        (called with whole arrays)"


def _scope(node: Node) -> str:
    if node.op in REDUCTIONS:
        return "per parameter"
    return "over all parameters" if node.op == "total" else "uniform"


def output_name(key: Hashable) -> str:
    if not isinstance(key, tuple):
        return str(key)
    kind, index, name, last = key
    if kind == "result":
        return result_name((index, name, last))
    return _of_rule(index, name) + (f"[{last}]" if kind == "given" else "")


def traffic(plan: Plan, number: int, itemsize: int) -> tuple[int, int]:
    """Bytes read and written per element in one stage; arrays count once."""
    stage = plan.stages[number]
    return len(stage.reads) * itemsize, len(stage.outputs) * itemsize
