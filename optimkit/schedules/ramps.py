"""Schedules that go from one value to another: a warm-up, a linear decay."""

from __future__ import annotations

from dataclasses import dataclass

from optimkit.schedules.checks import check_number, check_whole


@dataclass(frozen=True)
class linear:
    """A straight line from start to end in `steps` steps, and end from there on.

    value(n) = start + (end - start) * min(n / steps, 1)

    Parameters
    ----------
    start, end : float
        The values at step 0, and from step `steps` on; finite.
    steps : int
        From 1.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    A warm-up over four steps:

    >>> [linear(0.0, 1.0, steps=4)(n) for n in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", check_number("linear: start", self.start))
        object.__setattr__(self, "end", check_number("linear: end", self.end))
        object.__setattr__(self, "steps", check_whole("linear: steps", self.steps, 1))

    def __call__(self, n: int) -> float:
        if n >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * (n / self.steps)
