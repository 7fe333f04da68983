"""A `Group`: values of the optimizer's fields, which some of the parameters share.

A rate of a group is `value * multiplier`, in which `value` is what was set, a float or a schedule:

    multiplier = scale * (product of the schedulers' factors / that product when the value was set)

so that what was set is what is read, to the bit, and what schedulers do later acts on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from optimkit.engines.protocol import Call
from optimkit.rules.rule import Rule

DROPPED = -1  # the key of the product of factors whose schedulers are no more


@dataclass(eq=False, repr=False)
class Group:
    """Values of all fields of the optimizer, and what the learning rate is multiplied by.

    Attributes
    ----------
    factors : dict
        Those that schedulers set, by their key.
    scale : float
        What a schedule was scaled by (`scale_lr`).
    since : float
        The product of the factors when the rate was set; 1 for one that was given when the group was made, or for a schedule.
    read : dict
        What was read of each number last, with the count of steps.
    """

    values: dict[str, Any]
    factors: dict[int, float] = field(default_factory=dict)
    scale: float = 1.0
    since: float = 1.0
    read: dict[str, tuple[int, Any]] = field(default_factory=dict)
    multiplier: float = field(init=False)

    def __post_init__(self) -> None:
        self._take_factors(self.factors)

    def _take_factors(self, factors: dict[int, float]) -> None:
        """Take factors, with what follows from them: at once."""
        multiplier = self.scale * (float(math.prod(factors.values())) / self.since)
        self.__dict__.update(factors=factors, multiplier=multiplier)

    def taking(self, change: Mapping[str, Any]) -> list[Call]:
        """What takes other values, calls of compiled code. A rate is read as it was set, unless it is a schedule."""
        calls: list[Call] = [partial(self.values.update, change)]
        also: dict[str, Any] = {}
        if self.read:
            also["read"] = {name: value for name, value in self.read.items() if name not in change}
        if "lr" in change and (self.factors or self.scale != 1.0 or self.since != 1.0):
            product = self.product
            since = 1.0 if callable(change["lr"]) else product
            also |= {"scale": 1.0, "since": since, "multiplier": product / since}
        return [*calls, partial(self.__dict__.update, also)] if also else calls

    @property
    def product(self) -> float:
        """Of the schedulers' factors."""
        return float(math.prod(self.factors.values()))

    def copied(self, values: Mapping[str, Any]) -> Group:
        """Another group, with some values of its own."""
        return Group({**self.values, **values}, dict(self.factors), self.scale, self.since)

    def set_factor(self, key: int, factor: float) -> None:
        """Set what a scheduler multiplies the rate by."""
        self._take_factors({**self.factors, key: factor})

    def scaling(self, factor: float) -> list[Call]:
        """What scales a rate that is a schedule."""
        scale = self.scale * factor
        return [partial(self.__dict__.update, scale=scale, multiplier=scale * (self.product / self.since))]

    def drop(self, keys: list[int]) -> None:
        """Keep the factors of schedulers that are no more as one."""
        dropped = math.prod(self.factors[key] for key in [DROPPED, *keys] if key in self.factors)
        kept = {key: factor for key, factor in self.factors.items() if key != DROPPED and key not in keys}
        self._take_factors({DROPPED: dropped, **kept})

    def rule(self, kind: type[Rule], change: Mapping[str, Any] | None = None) -> Any:
        """A rule with this group's values, or some others: no parameters, no driver."""
        rule = object.__new__(kind)
        rule.__dict__.update(self.values)
        if change is not None:
            rule.__dict__.update(change)
        return rule
