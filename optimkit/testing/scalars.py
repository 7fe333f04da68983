"""Numbers of the oracle: Python floats with the arithmetic of IEEE 754, and step counts.

An update rule that is called by hand gets `HostNumber`s for its numbers and a `HostCount` for `h.t`.
Among themselves they stay float64 and never raise; where they meet an array they are plain Python
floats, which take the array's dtype. No graph is involved.

>>> HostNumber(1.0) / 0
HostNumber(inf)
>>> HostNumber(0.5) ** HostCount(3)          # binary powering
HostNumber(0.125)
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from optimkit.fusion.operations import OPERATIONS

_ARRAYS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "power": operator.pow,
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}


def plain(x: Any) -> Any:
    """An argument as NumPy and `math` should see it: a bare Python float in the place of a number."""
    return float(x) if isinstance(x, HostNumber) else x


def host(op: str, *args: Any) -> Any:
    """An operation on numbers alone: a `HostNumber`, or a truth value that knows `&`, `|` and `~`."""
    if op == "power":
        return _power(*args)
    operation = OPERATIONS[op]
    # constants enter the arithmetic as floats; truth values stay what they are
    values = [bool(x) if isinstance(x, bool | np.bool_) else float(x) for x in args]
    result = operation.host(*values)
    if isinstance(result, bool | np.bool_):
        return np.bool_(result)
    if op in ("add", "subtract", "multiply") and all(map(_is_whole, args)):
        return HostCount(result)
    return HostNumber(result)


def _is_whole(x: Any) -> bool:
    if isinstance(x, HostNumber):
        return isinstance(x, HostCount)
    return not isinstance(x, bool | np.bool_) and float(x).is_integer()


def _power(base: Any, exponent: Any) -> Any:
    """Squares are products, roots are roots, and a step count as exponent is binary powering."""
    if isinstance(exponent, HostCount):
        return HostNumber(OPERATIONS["count_power"].host(float(base), float(exponent)))
    if not isinstance(exponent, HostNumber):
        if exponent == 1:
            return base
        if exponent == -1:
            return host("divide", 1.0, base)
    return HostNumber(OPERATIONS["power"].host(float(base), float(exponent)))


def _combine(op: str, a: Any, b: Any) -> Any:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return _ARRAYS[op](plain(a), plain(b))
    if not isinstance(a, int | float | np.generic) or not isinstance(b, int | float | np.generic):
        return NotImplemented
    return host(op, a, b)


class HostNumber(float):
    """A number of a rule, or a value per parameter: float64 with IEEE results."""

    __slots__ = ()
    __array_ufunc__ = None  # `array * number` comes to us: NumPy would take a subclass of float for float64
    __hash__ = float.__hash__

    def __add__(self, other: Any) -> Any:
        return _combine("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return _combine("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return _combine("subtract", self, other)

    def __rsub__(self, other: Any) -> Any:
        return _combine("subtract", other, self)

    def __mul__(self, other: Any) -> Any:
        return _combine("multiply", self, other)

    def __rmul__(self, other: Any) -> Any:
        return _combine("multiply", other, self)

    def __truediv__(self, other: Any) -> Any:
        return _combine("divide", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _combine("divide", other, self)

    def __pow__(self, other: Any, modulo: None = None) -> Any:
        return _combine("power", self, other)

    def __rpow__(self, other: Any, modulo: None = None) -> Any:
        return _combine("power", other, self)

    def __neg__(self) -> HostNumber:
        return HostNumber(-float(self))

    def __pos__(self) -> HostNumber:
        return self

    def __abs__(self) -> HostNumber:
        return HostNumber(abs(float(self)))

    def __eq__(self, other: object) -> Any:
        return _combine("equal", self, other)

    def __ne__(self, other: object) -> Any:
        return _combine("not_equal", self, other)

    def __lt__(self, other: Any) -> Any:
        return _combine("less", self, other)

    def __le__(self, other: Any) -> Any:
        return _combine("less_equal", self, other)

    def __gt__(self, other: Any) -> Any:
        return _combine("greater", self, other)

    def __ge__(self, other: Any) -> Any:
        return _combine("greater_equal", self, other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({float(self)!r})"


class HostCount(HostNumber):
    """A whole number such as `h.t`: sums, differences and products of whole numbers are whole."""

    __slots__ = ()
