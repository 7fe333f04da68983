"""Operations as CUDA C++: the table of the target, and constants. `{0}` is the first argument."""

from __future__ import annotations

from optimkit.engines.text import OPERATORS
from optimkit.fusion.graph import BOOLEAN, Node
from optimkit.fusion.show import formula

TABLE = OPERATORS | {
    "abs": "fabs({0})",
    "sign": "sign_of({0})",
    "minimum": "minimum_of({0}, {1})",
    "maximum": "maximum_of({0}, {1})",
    "floor": "floor({0})",
    "ceil": "ceil({0})",
    "round": "rint({0})",
    "exp": "exp({0})",
    "expm1": "expm1({0})",
    "log": "log({0})",
    "log1p": "log1p({0})",
    "tanh": "tanh({0})",
    "hypot": "hypot({0}, {1})",
    "power": "pow({0}, {1})",
    "count_power": "count_power({0}, {1})",
    "isfinite": "is_finite({0})",
    "logical_and": "({0} && {1})",
    "logical_or": "({0} || {1})",
    "logical_not": "(!{0})",
    "where": "({0} ? {1} : {2})",
    "imag": "({0} * 0)",
}

NAN = "__longlong_as_double(0x7ff8000000000000LL)"
INFINITY = "__longlong_as_double(0x7ff0000000000000LL)"


def double_literal(node: Node) -> str:
    """A constant in double."""
    if node.kind == BOOLEAN:
        return "1.0" if node.key else "0.0"
    value = float(node.key)  # type: ignore[arg-type]
    if value != value:
        return NAN
    if value in (float("inf"), float("-inf")):
        return f"({'' if value > 0 else '-'}{INFINITY})"
    return f"({value!r})" if value < 0 else repr(value)


def literal(node: Node) -> str:
    """A constant in the compute dtype."""
    if node.kind == BOOLEAN:
        return "true" if node.key else "false"
    return f"((real){double_literal(node)})"


def identity(node: Node) -> str:
    """What a reduction starts with."""
    return {"max": f"-{INFINITY}", "min": INFINITY}.get(node.op, "0.0")


def note(node: Node) -> str:
    """A value in words, for a comment; names of slots may hold anything."""
    return formula(node).replace("\\", "/").replace("\n", " ").replace("\r", " ")
