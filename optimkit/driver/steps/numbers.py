"""The numbers of a bucket's groups in a step: rates and other settings, schedules included."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter, getitem, is_
from typing import Any

import numpy as np

from optimkit.driver.entries.group import Group
from optimkit.rules.chain import Chain

Value = Callable[[Group, Hashable], float]
_multiplier = attrgetter("multiplier")


class Numbers:
    """The numbers of groups, (groups, numbers) float64, read anew where one was set.

    A schedule is called in every step, for every group. `version` tells values from those before.
    """

    def __init__(self, chain: Chain, groups: Sequence[Group], keys: Sequence[Any], compute: str) -> None:
        self.groups, self.keys, self.version = list(groups), list(keys), 0
        self.chain, self.compute = chain, np.dtype(compute)
        self.table = np.zeros((len(groups), max(1, len(keys))))
        places: dict[tuple[int, str], tuple[Any, str]] = {}
        links = dict(chain.links)
        for group in groups:
            for index, name, _ in keys:
                values = group.values if index == 0 else links[index].__dict__
                places.setdefault((id(values), name), (values, name))
        self.values, self.names = [each[0] for each in places.values()], [each[1] for each in places.values()]
        self.seen: list[Any] = []
        self.seen_multipliers: list[float] = []
        self.scheduled = True

    def refresh(self, value: Value) -> None:
        """Read what was set since; `value(group, key)` is a number of a group for the step that begins.

        Raises
        ------
        ValueError
            If a number is out of range, or becomes 0 or infinite in the dtype in which weights are computed; nothing is taken
            over then.
        """
        now, multipliers = list(map(getitem, self.values, self.names)), list(map(_multiplier, self.groups))
        if not self.scheduled and multipliers == self.seen_multipliers and all(map(is_, now, self.seen)):
            return
        found = [[value(group, key) for key in self.keys] for group in self.groups]
        self._check(found)
        self.scheduled = True  # read again, should this be interrupted
        self.table[:, : len(self.keys)] = found
        self.version += 1
        self.scheduled = any(map(callable, _flat(now)))
        self.seen, self.seen_multipliers = now, multipliers

    def _check(self, found: list[list[float]]) -> None:
        """Raise where a number is lost in the dtype in which weights are computed: an eps of 0 divides by 0."""
        wide = np.array(found, np.float64)
        with np.errstate(all="ignore"):
            narrow = wide.astype(self.compute)
        lost = (np.isinf(narrow) & np.isfinite(wide)) | ((narrow == 0) & (wide != 0))
        for group, key in np.argwhere(lost).tolist():
            index, name, position = self.keys[key]
            rule = self.chain.optimizer if index == 0 else dict(self.chain.links)[index]
            refuse_lost(rule, name, position, found[group][key], self.compute)


def refuse_lost(rule: Any, name: str, position: int | None, number: float, compute: np.dtype[Any]) -> None:
    """Raise ValueError where a number is not 0 and becomes 0, or finite and becomes infinite, in the dtype of the weights."""
    with np.errstate(all="ignore"):
        becomes = float(compute.type(number))
    if not (np.isinf(becomes) and np.isfinite(number)) and not (becomes == 0.0 and number != 0.0):
        return
    place, limits = "" if position is None else f"[{position}]", np.finfo(compute)
    raise ValueError(
        f"{type(rule).__name__}: {name}{place} = {number!r} is {becomes} in {compute}, in which these parameters are computed; "
        f"use 0 or a number from {float(limits.smallest_subnormal):.2g} to {float(limits.max):.2g}, or float64 parameters"
    )


def _flat(values: Sequence[Any]) -> list[Any]:
    return [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
