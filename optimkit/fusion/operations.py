"""The list of operations: what a rule may compute, and what each operation means on numbers.

An operation is one line here and one line in the table of each target (`engines/eager/whole.py`,
`engines/cpu/text.py`, `engines/cuda/operations.py`). `host` computes it on Python floats with the results of
IEEE 754: 1/0 is inf and sqrt(-1) is nan, never an exception.

>>> OPERATIONS["divide"].host(1.0, 0.0)
inf
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Operation(NamedTuple):
    """One elementwise operation.

    `result` says what comes out: "same" (the kind of the arguments), "real" or "boolean";
    `domain` what may go in: "any", "real" (ordering has no meaning for complex) or "boolean".
    `exact` operations give the same bits on every engine.
    """

    name: str
    host: Callable[..., Any]
    arity: int = 1
    result: str = "same"
    domain: str = "any"
    exact: bool = True


def divide(a: float, b: float) -> float:
    """a / b as IEEE 754 has it."""
    try:
        return a / b
    except ZeroDivisionError:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def multiply_power(base: float, count: float) -> float:
    """`base ** count` for a whole count, by binary powering in float64.

    Multiplications alone, in one fixed order: the same bits in Python, C and CUDA, which no
    library's `pow` promises. `1 - b**t` after the cast to float32 equals that of libm.
    """
    if count < 0:
        return divide(1.0, multiply_power(base, -count))
    result, square, bits = 1.0, float(base), int(count)
    while bits:
        if bits & 1:
            result *= square
        square *= square
        bits >>= 1
    return result


def power(base: float, exponent: float) -> float:
    """base ** exponent; squares and roots are what they are called, the rest is libm's."""
    if exponent == 2:
        return base * base
    if exponent == 0.5:
        return _sqrt(base)
    try:
        result = base**exponent
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf
    except ZeroDivisionError:
        return math.copysign(math.inf, base) if exponent % 2 == 1 else math.inf
    return math.nan if isinstance(result, complex) else result


def _sqrt(a: float) -> float:
    return math.sqrt(a) if a >= 0 else math.nan


def _guarded(function: Callable[[float], float], above: float) -> Callable[[float], float]:
    """A function of libm, with `above` where Python would raise OverflowError."""

    def call(a: float) -> float:
        try:
            return function(a)
        except OverflowError:
            return above

    return call


def _log(a: float) -> float:
    return math.log(a) if a > 0 else (-math.inf if a == 0 else math.nan)


def _log1p(a: float) -> float:
    return math.log1p(a) if a > -1 else (-math.inf if a == -1 else math.nan)


def _sign(a: float) -> float:
    return a if a != a else float((a > 0) - (a < 0))


def _whole(function: Callable[[float], float]) -> Callable[[float], float]:
    return lambda a: float(function(a)) if math.isfinite(a) else a


def minimum(a: float, b: float) -> float:
    """The smaller one; NaN if one of them is."""
    return a if a < b or a != a else b


def maximum(a: float, b: float) -> float:
    """The larger one; NaN if one of them is."""
    return a if a > b or a != a else b


_ALL = (
    Operation("add", lambda a, b: a + b, 2),
    Operation("subtract", lambda a, b: a - b, 2),
    Operation("multiply", lambda a, b: a * b, 2),
    Operation("divide", divide, 2),
    Operation("negative", lambda a: -a),
    Operation("sqrt", _sqrt),
    Operation("abs", abs, result="real"),
    Operation("sign", _sign),
    Operation("minimum", minimum, 2, domain="real"),
    Operation("maximum", maximum, 2, domain="real"),
    Operation("floor", _whole(math.floor), domain="real"),
    Operation("ceil", _whole(math.ceil), domain="real"),
    Operation("round", _whole(round), domain="real"),
    Operation("exp", _guarded(math.exp, math.inf), exact=False),
    Operation("expm1", _guarded(math.expm1, math.inf), exact=False),
    Operation("log", _log, exact=False),
    Operation("log1p", _log1p, exact=False),
    Operation("tanh", math.tanh, exact=False),
    Operation("hypot", math.hypot, 2, domain="real", exact=False),
    Operation("power", power, 2, exact=False),
    Operation("count_power", multiply_power, 2, domain="real"),
    Operation("equal", lambda a, b: a == b, 2, result="boolean"),
    Operation("not_equal", lambda a, b: a != b, 2, result="boolean"),
    Operation("less", lambda a, b: a < b, 2, result="boolean", domain="real"),
    Operation("less_equal", lambda a, b: a <= b, 2, result="boolean", domain="real"),
    Operation("greater", lambda a, b: a > b, 2, result="boolean", domain="real"),
    Operation("greater_equal", lambda a, b: a >= b, 2, result="boolean", domain="real"),
    Operation("isfinite", math.isfinite, result="boolean"),
    Operation("isnan", math.isnan, result="boolean"),
    Operation("logical_and", lambda a, b: a and b, 2, result="boolean", domain="boolean"),
    Operation("logical_or", lambda a, b: a or b, 2, result="boolean", domain="boolean"),
    Operation("logical_not", lambda a: not a, result="boolean", domain="boolean"),
    Operation("where", lambda c, a, b: a if c else b, 3),
    Operation("real", lambda a: a, result="real"),
    Operation("imag", lambda a: 0.0, result="real"),
    Operation("conj", lambda a: a),
)

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _ALL}

# What a rule may call by another name, and what it stands for (see trace.Namespace).
DERIVED = ("square", "reciprocal", "clip", "pow", "sum", "mean", "max", "min", "positive")
