"""Schedules that decay: constant, step, multistep, exponential.

Each is a closed form of the step, so nothing drifts, and a run that is resumed at step n has the
rate of step n. Each is defined for every step from 0, without an end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optimkit.fusion.operations import power
from optimkit.schedules.checks import FACTOR, check_number, check_whole


@dataclass(frozen=True)
class constant:  # lower case, as functools.partial: it is called like a function
    """The same value at every step: value(n) = value.

    Parameters
    ----------
    value : float
        Finite.

    Examples
    --------
    >>> constant(0.1)(1000)
    0.1
    """

    value: float

    def __post_init__(self) -> None:
        _set(self, value=check_number("constant: value", self.value))

    def __call__(self, n: int) -> float:
        return self.value


@dataclass(frozen=True)
class step:
    """Multiplied by gamma every step_size steps: value * gamma^(n // step_size).

    Parameters
    ----------
    value : float
        The value at step 0, finite.
    step_size : int
        From 1.
    gamma : float, default 0.1
        In [0, inf).

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> [step(1.0, step_size=2, gamma=0.5)(n) for n in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    value: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _set(
            self,
            value=check_number("step: value", self.value),
            step_size=check_whole("step: step_size", self.step_size, 1),
            gamma=check_number("step: gamma", self.gamma, FACTOR),
        )

    def __call__(self, n: int) -> float:
        return self.value * power(self.gamma, n // self.step_size)


@dataclass(frozen=True)
class multistep:
    """Multiplied by gamma at each milestone: value * gamma^(number of milestones up to n).

    Parameters
    ----------
    value : float
        The value before the first milestone, finite.
    milestones : sequence of int
        Steps from 0, in any order; one that is there twice counts twice.
    gamma : float, default 0.1
        In [0, inf).

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> [multistep(1.0, milestones=[1, 3], gamma=0.5)(n) for n in range(5)]
    [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    value: float
    milestones: Sequence[int]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.milestones, str | bytes) or not hasattr(self.milestones, "__iter__"):
            raise ValueError(f"multistep: milestones = {self.milestones!r} must be a list of whole numbers, such as [30, 80]")
        milestones = [check_whole(f"multistep: milestones[{i}]", each, 0) for i, each in enumerate(self.milestones)]
        _set(
            self,
            value=check_number("multistep: value", self.value),
            milestones=tuple(sorted(milestones)),
            gamma=check_number("multistep: gamma", self.gamma, FACTOR),
        )

    def __call__(self, n: int) -> float:
        return self.value * power(self.gamma, bisect_right(self.milestones, n))


@dataclass(frozen=True)
class exponential:
    """Multiplied by gamma every step: value * gamma^n.

    Parameters
    ----------
    value : float
        The value at step 0, finite.
    gamma : float
        In [0, inf).

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> [exponential(1.0, 0.5)(n) for n in range(4)]
    [1.0, 0.5, 0.25, 0.125]
    """

    value: float
    gamma: float

    def __post_init__(self) -> None:
        _set(
            self,
            value=check_number("exponential: value", self.value),
            gamma=check_number("exponential: gamma", self.gamma, FACTOR),
        )

    def __call__(self, n: int) -> float:
        return self.value * power(self.gamma, n)


def _set(schedule: Any, **values: Any) -> None:
    """Fill a frozen dataclass with its values, checked."""
    for name, value in values.items():
        object.__setattr__(schedule, name, value)
