"""Stages as text: one statement per shared value, with the operations of a target's table.

A table maps each operation to a template: {"add": "({0} + {1})"}. What is used once stands where
it is used; what is used twice, or stands in a template twice, gets a name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from optimkit.fusion.graph import Level, Node
from optimkit.fusion.stages import Plan, Stage, array_key, is_array


@dataclass
class Body:
    """The statements of one pass, and the expressions that it ends in.

    `scalars` are the columns of the host table that it reads, `uniforms` those of the uniform table.
    """

    statements: list[tuple[str, str, str]] = field(default_factory=list)  # name, expression, kind
    ends: list[str] = field(default_factory=list)
    scalars: list[int] = field(default_factory=list)
    uniforms: list[int] = field(default_factory=list)


# What Python and C++ write alike: part of the table of each target.
OPERATORS = {
    "add": "({0} + {1})",
    "subtract": "({0} - {1})",
    "multiply": "({0} * {1})",
    "divide": "({0} / {1})",
    "negative": "(-{0})",
    "sqrt": "sqrt({0})",
    "equal": "({0} == {1})",
    "not_equal": "({0} != {1})",
    "less": "({0} < {1})",
    "less_equal": "({0} <= {1})",
    "greater": "({0} > {1})",
    "greater_equal": "({0} >= {1})",
    "isnan": "({0} != {0})",
    "real": "{0}",
    "conj": "{0}",
}

_PREFIXES = {"slot": "s", "input": "s", "given": "to", "result": "of"}  # no other name in a kernel begins so
_OWN = ("_new", "_at", "_layout", "_data")  # names that end so are the kernels' own


def identifiers(keys: tuple[Hashable, ...]) -> dict[Hashable, str]:
    """A name for each array: "w", "g", "s_m" for the slot `s.m`, a link's with its index; "to_gradient_1" and
    "of_gradient" for what a call of the hook `gradient` is given and gives."""
    names: dict[Hashable, str] = {}
    for key in keys:
        text = str(key)
        if isinstance(key, tuple):
            kind, index, *rest = key
            words = rest[:1] if kind in ("slot", "input") else filter(None, map(str, rest))
            text = re.sub(r"[^0-9A-Za-z]", "_", "_".join((_PREFIXES[kind], *words))) + (f"_{index}" if index else "")
            text += "_" * text.endswith(_OWN)
        while text in names.values():
            text += "_"
        names[key] = text
    return names


def write_body(
    plan: Plan, stage: Stage, table: Mapping[str, str], names: Mapping[Hashable, str], literal: Callable[[Node], str]
) -> Body:
    """The body of a stage's loop over elements."""
    body = Body()
    ends = [reduction.args[0] for reduction in stage.reductions] or list(stage.outputs.values())
    write_statements(body, stage.nodes, ends, table, lambda node: _leaf(plan, node, names, literal, body))
    return body


def write_statements(
    body: Body, nodes: Sequence[Node], ends: Sequence[Node], table: Mapping[str, str], leaf: Callable[[Node], str]
) -> None:
    """The statements that compute `ends` from operations, in their order; `leaf` is the text of what is no operation."""
    uses = Counter(id(arg) for node in nodes for arg in node.args)
    uses.update(id(end) for end in ends)
    known: dict[int, str] = {}

    def expression(node: Node) -> str:
        if id(node) not in known:
            known[id(node)] = leaf(node)
        return known[id(node)]

    for node in nodes:
        template = table[node.op]
        args = []
        for place, arg in enumerate(node.args):
            text = expression(arg)
            if template.count(f"{{{place}}}") > 1 and not re.fullmatch(r"\w+", text):
                text = _name(body, text, arg.kind)
                known[id(arg)] = text
            args.append(text)
        text = template.format(*args)
        known[id(node)] = _name(body, text, node.kind) if uses[id(node)] > 1 else text
    body.ends = [expression(end) for end in ends]


def _name(body: Body, text: str, kind: str) -> str:
    name = f"x{len(body.statements)}"
    body.statements.append((name, text, kind))
    return name


def _leaf(
    plan: Plan, node: Node, names: Mapping[Hashable, str], literal: Callable[[Node], str], body: Body
) -> str:
    if is_array(node):
        return names[array_key(node)]
    if node.op == "constant":
        return literal(node)
    if node.level is Level.HOST:
        column = plan.hosts.index(node)
        if column not in body.scalars:
            body.scalars.append(column)
        return f"k{column}"
    column = plan.uniforms.index(node)
    if column not in body.uniforms:
        body.uniforms.append(column)
    return f"u{column}"


def indent(lines: Iterator[str] | list[str], depth: int) -> str:
    return "\n".join(" " * 4 * depth + line if line else "" for line in lines)
