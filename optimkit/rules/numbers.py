"""Numbers: the fields of a rule that may change while it runs, with their ranges.

A field annotated `Scalar` (or a narrower kin of it) is a number or a schedule, a function of
the optimizer's step count. Every other field is structure, part of the kernel's key.

    lr: NonNegative = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    momentum: Fraction | None = None          # None is structure: no momentum at all
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Union

Schedule = Callable[[int], float]


class Range(NamedTuple):
    """The values that a number may have. Bounds are included unless they are open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: Any) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if self.low == -math.inf and self.high == math.inf:
            return "a finite number"
        left = "(" if self.low_open or self.low == -math.inf else "["
        right = ")" if self.high_open or self.high == math.inf else "]"
        return f"a number in {left}{self.low:g}, {self.high:g}{right}"


Scalar = Annotated[float | Schedule, Range()]
NonNegative = Annotated[float | Schedule, Range(low=0.0)]
Positive = Annotated[float | Schedule, Range(low=0.0, low_open=True)]
Fraction = Annotated[float | Schedule, Range(0.0, 1.0, high_open=True)]


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Follow:
    """The value of a link's number that is a number of its optimizer (see AdamW)."""

    name: str


class Number:
    """One declared number: checks what is set, and refuses to be read while a rule is traced.

    On the class it reads as its default, as the fields of any dataclass do: `Adam.lr` is 0.001.
    """

    def __init__(self, owner: str, name: str, ranges: tuple[Range, ...], many: bool, optional: bool) -> None:
        self.owner, self.name, self.ranges, self.many, self.optional = owner, name, ranges, many, optional
        self.default: Any = REQUIRED

    def __get__(self, rule: Any, cls: type | None = None) -> Any:
        if rule is None:
            return self.default
        if rule.__dict__.get("_structure_only"):
            raise TypeError(
                f"{type(rule).__name__}: self.{self.name} is a number, and reading it in an update would bake today's "
                f"value into the kernel; write h.{self.name}"
            )
        return rule._get_number(self.name)

    def __set__(self, rule: Any, value: Any) -> None:
        rule._set_number(self.name, self.coerce(value))

    def coerce(self, value: Any) -> Any:
        """`value` as floats and schedules, or an error that names it.

        Raises
        ------
        TypeError
            If it is missing.
        ValueError
            If it is no number, out of range, or of another length than declared.
        """
        if value is REQUIRED:
            raise TypeError(f"{self.owner} needs {self.name}: {self.ranges[0]}, such as {self.owner}(..., {self.name}=0.1)")
        if value is None and self.optional:
            return None
        if not self.many:
            return coerce_number(f"{self.owner}: {self.name}", value, self.ranges[0])
        try:
            values = () if isinstance(value, str | bytes | Set | Mapping) else tuple(value)
        except TypeError:
            values = ()
        if len(values) != len(self.ranges):
            raise ValueError(
                f"{self.owner}: {self.name} = {shown(value)} must be {len(self.ranges)} numbers, such as "
                f"({', '.join(['0.9'] * len(self.ranges))})"
            )
        return tuple(
            coerce_number(f"{self.owner}: {self.name}[{i}]", each, allowed)
            for i, (each, allowed) in enumerate(zip(values, self.ranges, strict=True))
        )

    def range_of(self, position: int | None) -> Range:
        return self.ranges[position or 0]


def coerce_number(what: str, value: Any, allowed: Range) -> Any:
    """A float in range, or the schedule as it is; `what` names it in errors.

    A NumPy number or an array of shape () is taken by its value, so that nothing is promoted by it.
    """
    if isinstance(value, Follow) or (callable(value) and not isinstance(value, type) and not _is_array(value)):
        return value
    number = as_float(value)
    if number is None:
        raise ValueError(f"{what} = {shown(value)} must be {allowed}, or a schedule (a function of the step)")
    if number not in allowed:
        raise ValueError(f"{what} = {shown(value)} must be {allowed}")
    return number


def shown(value: Any) -> str:
    """A value in an error: its repr, on one line, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-10:]}"


def as_float(value: Any) -> float | None:
    """`float(value)`, or None where it is no number: a truth value, a text, several values."""
    dtype = getattr(value, "dtype", type(value).__name__)
    if isinstance(value, str | bytes | None) or "bool" in str(dtype) or getattr(dtype, "kind", "f") in "USOV":
        return None
    if tuple(getattr(value, "shape", ())) != ():
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array_namespace__") or hasattr(value, "dtype")


def parse_annotation(owner: str, name: str, hint: Any) -> Number | None:
    """The number that an annotation declares, or None for structure.

    Raises
    ------
    TypeError
        If numbers stand where they are not supported: in lists, beside structure, without a fixed length.
    """
    whole, optional = hint, False
    if typing.get_origin(hint) in (Union, types.UnionType):
        rest = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        optional = len(rest) < len(typing.get_args(hint))
        hint = rest[0] if len(rest) == 1 else hint
    ranges = _range(hint)
    if ranges is not None:
        return Number(owner, name, (ranges,), many=False, optional=optional)
    if typing.get_origin(hint) is tuple:
        found = [_range(arg) for arg in typing.get_args(hint)]
        if found and all(found):
            return Number(owner, name, tuple(each for each in found if each), many=True, optional=optional)
    if hint is float or (typing.get_origin(hint) is tuple and float in typing.get_args(hint)):
        scalars = "tuple[NonNegative, ...]" if hint is not float else "NonNegative"
        raise TypeError(
            f"{owner}.{name}: a float is structure, whose values are not checked, and compile a kernel each; annotate a "
            f"number with its range, `{name}: {scalars}` (or Positive, Fraction, Scalar for any), or write "
            "Annotated[float, 'structure']"
        )
    if _mentions_range(whole):
        raise TypeError(
            f"{owner}.{name}: numbers are annotated Scalar, Scalar | None or tuple[Scalar, Scalar] (of any fixed length, "
            "all of it numbers); put structure into a field of its own"
        )
    return None


def _range(hint: Any) -> Range | None:
    if typing.get_origin(hint) is Annotated:
        return next((extra for extra in typing.get_args(hint)[1:] if isinstance(extra, Range)), None)
    return None


def _mentions_range(hint: Any) -> bool:
    return _range(hint) is not None or any(_mentions_range(arg) for arg in typing.get_args(hint))
