"""The host level: all numbers of a step, compiled into one Python function.

Numbers, schedules and step counts are known before a step starts. What depends on them alone is
computed once per step in float64, not once per element:

    def host(n, t):
        return 1 - n[1], n[0] / (1 - power(n[1], t)), ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from optimkit.fusion.graph import Level, Node, walk
from optimkit.fusion.operations import OPERATIONS

HostFunction = Callable[[Sequence[float], int], tuple[float, ...]]

_OPERATORS = {
    "add": "({} + {})",
    "subtract": "({} - {})",
    "multiply": "({} * {})",
    "negative": "(-{})",
    "equal": "({} == {})",
    "not_equal": "({} != {})",
    "less": "({} < {})",
    "less_equal": "({} <= {})",
    "greater": "({} > {})",
    "greater_equal": "({} >= {})",
    "logical_and": "({} and {})",
    "logical_or": "({} or {})",
    "logical_not": "(not {})",
    "where": "({1} if {0} else {2})",
}


def host_text(outputs: Sequence[Node]) -> tuple[str, tuple[Hashable, ...]]:
    """The text of the function that computes `outputs`, and the numbers it reads, in the order of `n`."""
    nodes = list(walk(outputs))
    uses = Counter(id(arg) for node in nodes for arg in node.args)
    uses.update(id(node) for node in outputs)
    numbers = tuple(node.key for node in nodes if node.op == "number")
    names: dict[int, str] = {}
    lines: list[str] = []
    for node in nodes:
        if node.level is not Level.HOST:
            raise ValueError(f"{node.op} is not known on the host")
        if node.op == "number":
            text = f"n[{numbers.index(node.key)}]"
        elif node.op == "count":
            text = "t"
        elif node.op == "constant":
            text = constant_text(node.key)
        else:
            template = _OPERATORS.get(node.op, node.op + "(" + ", ".join("{}" for _ in node.args) + ")")
            text = template.format(*(names[id(arg)] for arg in node.args))
        if uses[id(node)] > 1 and node.args:
            lines.append(f"    x{len(lines)} = {text}")
            text = f"x{len(lines) - 1}"
        names[id(node)] = text
    result = ", ".join(names[id(node)] for node in outputs)
    return "\n".join(["def host(n, t):", *lines, f"    return ({result}{',' if outputs else ''})"]), numbers


def constant_text(value: Any) -> str:
    """A constant as Python text that reads back to the same bits."""
    text = repr(value)
    return f"float({text!r})" if text in ("inf", "-inf", "nan") else (f"({text})" if text.startswith("-") else text)


def compile_host(outputs: Sequence[Node]) -> tuple[HostFunction, tuple[Hashable, ...], str]:
    """The function itself, the numbers it reads, and its text."""
    text, numbers = host_text(outputs)
    scope: dict[str, Any] = {name: operation.host for name, operation in OPERATIONS.items()}
    exec(compile(text, "<host level of a rule>", "exec"), scope)
    return scope["host"], numbers, text
