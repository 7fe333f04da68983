"""What multiplies the learning rate: the factors of schedulers, one of its own for each, so that several compose."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from optimkit.driver.entries.group import Group
from optimkit.driver.hyperparameters import Hyperparameters
from optimkit.driver.run import Run
from optimkit.engines.protocol import Call
from optimkit.rules.numbers import Range, coerce_number, shown


class Rates(Hyperparameters, base=True):
    """The learning rate scaled and scheduled; `Membership` adds the parameters, `Optimizer` the step."""

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rate by a factor: of all groups, whatever scheduler or schedule stands behind it.

        Where the rate is a schedule, that goes on, times the factor; `opt.lr *= factor` would end it.

        Parameters
        ----------
        factor : float
            In [0, inf).

        Raises
        ------
        TypeError
            If the optimizer has no learning rate.
        ValueError
            If the factor is out of range, or the rate would be. Nothing is changed.

        Examples
        --------
        >>> import numpy as np, optimkit
        >>> opt = optimkit.SGD(np.zeros(2), lr=optimkit.schedules.step(1.0, 1, 0.5))
        >>> opt.scale_lr(0.1)
        >>> opt.lr
        0.1
        >>> result = opt.step(np.zeros(2))
        >>> opt.lr
        0.05
        """
        kind, run = type(self).__name__, self._run
        with run.lock:
            self._require_rate("scaled")
            number = self._numbers["lr"]
            factor = coerce_number(f"{kind}: factor", factor, Range(low=0.0))
            if callable(factor):
                raise ValueError(f"{kind}: factor = {shown(factor)} must be a number")
            values: list[Any] = []
            for group in _all_groups(run):
                schedule = callable(group.values["lr"])
                rate = group.multiplier if schedule else self._current(group, "lr")
                values.append(coerce_number(f"{kind}: lr, scaled by {factor!r},", rate * factor, number.range_of(None)))
            calls: list[Call] = []
            for group, value in zip(_all_groups(run), values, strict=True):
                if callable(group.values["lr"]):
                    calls += group.scaling(factor)
                elif group.product:
                    calls += group.taking({"lr": value})
                else:  # 0 by a scheduler: what it comes back to
                    calls.append(partial(group.values.update, lr=group.values["lr"] * factor))
            run.change(calls, structure=False)

    def _require_rate(self, what: str) -> None:
        if "lr" not in self._numbers:
            known = ", ".join(self._numbers)
            raise TypeError(f"{type(self).__name__} has no number lr that could be {what}; it has {known}")

    def _add_factor(self, owner: Any) -> int:
        """A factor of the learning rate, 1 at first, that a scheduler sets; its key for `_set_factor`.

        Keys count up, so they mean the same in a copy or a pickle. Factors of schedulers that are no more become one.
        """
        with self._run.lock:
            self._require_rate("scheduled")
            run = self._run
            gone = [key for key, owners in run.owners.items() if not owners]
            for group in _all_groups(run) if gone else ():
                group.drop(gone)
            for key in gone:
                del run.owners[key]
            key = 1 + max(run.first.factors, default=-1)
            self._own_factor(key, owner)
            self._set_factor(key, 1.0)
            return key

    def _own_factor(self, key: int, owner: Any) -> None:
        """A scheduler has this factor: it is there as long as the scheduler."""
        self._run.owners.setdefault(key, weakref.WeakSet()).add(owner)

    def _set_factor(self, key: int, factor: float) -> None:
        """Set a factor of the learning rate in all groups; groups made later copy it."""
        with self._run.lock:
            for group in _all_groups(self._run):
                group.set_factor(key, factor)


def _all_groups(run: Run) -> list[Group]:
    """Those of parameters, and that of parameters to come."""
    return list(dict.fromkeys([run.first, *run.groups]))
