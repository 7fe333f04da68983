"""Learning-rate schedulers: schedules as objects with `step()`, one factor of the rate each.

    scheduler = optimkit.lr_scheduler.StepLR(opt, step_size=30, gamma=0.1)
    for epoch in range(100):
        ...                                      # steps of the optimizer
        scheduler.step()

A scheduler counts its own steps, its epochs, and multiplies the optimizer's learning rate by a
factor that is a closed form of the epoch. So several of them on one optimizer compose, lr = base *
product of the factors; nothing drifts, and a resumed run has the rate of its epoch. `opt.lr` reads
the product; after `opt.lr = x` it reads x, and what schedulers do later acts on it. The factor of a scheduler that
is dropped stays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimkit import schedules
from optimkit.driver.optimizer import Optimizer
from optimkit.schedules.checks import FACTOR, check_number, check_whole

__all__ = ["ExponentialLR", "LRScheduler", "LambdaLR", "MultiStepLR", "MultiplicativeLR", "StepLR"]

FORMAT = 1


class LRScheduler:
    """What all schedulers share; a subclass says in `factor` what the rate is multiplied by.

    Parameters
    ----------
    optimizer : Optimizer
        Its learning rate is scheduled, in all its groups, also those that are made later. The factor
        of epoch 0 holds at once.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: optimizer = {optimizer!r} must be an optimkit optimizer")
        self.optimizer = optimizer
        self._epoch = 0
        factor = self._checked_factor(0)
        self._factor = 1.0
        self._key = optimizer._add_factor(self)
        self._set_factor(0, factor)
        self._last_lr = self.get_current_lr()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.optimizer._own_factor(self._key, self)

    def factor(self, epoch: int) -> float:
        """What the base rate is multiplied by at an epoch."""
        raise TypeError(f"{type(self).__name__} must define factor(self, epoch)")

    def _checked_factor(self, epoch: int) -> float:
        return check_number(f"{type(self).__name__}: the factor of epoch {epoch}", self.factor(epoch), FACTOR)

    def step(self) -> None:
        """Go to the next epoch and set the learning rate for it."""
        last = self.get_current_lr()
        self.set_current_epoch(self._epoch + 1)
        self._last_lr = last

    def get_last_lr(self) -> Any:
        """The learning rate before the latest `step()`; a list where groups differ."""
        return self._last_lr

    def get_current_lr(self) -> Any:
        """The learning rate now, all factors included, as `opt.lr` reads it."""
        return self.optimizer.get_lr()

    def get_current_epoch(self) -> int:
        """How many times `step()` was called, or what `set_current_epoch` set."""
        return self._epoch

    def set_current_epoch(self, epoch: int) -> None:
        """Go to an epoch and set the learning rate for it.

        Raises
        ------
        ValueError
            If it is no whole number from 0, or its factor or the learning rate is no number in [0, inf).
            Nothing is changed.
        """
        epoch = check_whole(f"{type(self).__name__}: epoch", epoch, 0)
        self._set_factor(epoch, self._checked_factor(epoch))
        self._epoch = epoch

    def _set_factor(self, epoch: int, factor: float) -> None:
        """Set the factor, or leave it where the rate would overflow or a schedule raises."""
        self.optimizer._set_factor(self._key, factor)
        try:
            rates = self.get_current_lr()
            if not all(map(math.isfinite, rates if isinstance(rates, list) else [rates])):
                raise ValueError(f"{type(self).__name__}: the learning rate of epoch {epoch} = {rates!r} must be {FACTOR}")
        except BaseException:
            self.optimizer._set_factor(self._key, self._factor)
            raise
        self._factor = factor

    def print_lr(self) -> None:
        """Print the epoch and its learning rate."""
        rate = self.get_current_lr()
        print(f"epoch {self.get_current_epoch()}: learning rate adjusted to {rate if isinstance(rate, list) else [rate]}")

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the settings, as plain numbers and lists. Functions are code, and stay the caller's."""
        return {
            "format": FORMAT,
            "scheduler": type(self).__name__,
            "epoch": self._epoch,
            "last_lr": self._last_lr,
            "settings": {name: _plain(value) for name, value in self._settings().items()},
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on where a saved scheduler was.

        Raises
        ------
        ValueError
            If it does not fit; the message lists every difference, and nothing is changed.
        """
        name = type(self).__name__
        problems = self._differences(saved)
        before = self._settings()
        if not problems:
            try:
                self._take(saved["settings"])
                self.set_current_epoch(saved["epoch"])
            except ValueError as error:
                self._take(before)
                problems = [str(error)]
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            raise ValueError(f"the saved state does not fit this {name}; nothing was changed:\n{listed}")
        self._last_lr = saved["last_lr"]

    def _differences(self, saved: Any) -> list[str]:
        needed = ("format", "scheduler", "epoch", "last_lr", "settings")
        missing = [key for key in needed if not isinstance(saved, Mapping) or key not in saved]
        if missing:
            return [f"it is no state_dict of a scheduler: it lacks {', '.join(missing)}"]
        problems = []
        if saved["format"] != FORMAT:
            problems.append(f"its format is {saved['format']!r}, this version reads {FORMAT}")
        if saved["scheduler"] != type(self).__name__:
            problems.append(f"it was saved by {saved['scheduler']}")
        elif not isinstance(saved["settings"], Mapping) or set(saved["settings"]) != set(self._settings()):
            problems.append(f"its settings are {saved['settings']!r}, here are {', '.join(self._settings()) or 'none'}")
        rates = saved["last_lr"] if isinstance(saved["last_lr"], list) else [saved["last_lr"]]
        if not rates or not all(isinstance(rate, float) for rate in rates):
            problems.append(f"its last_lr is {saved['last_lr']!r}, no learning rate")
        return problems

    def _settings(self) -> dict[str, Any]:
        """What the factor depends on besides the epoch, and the state dict holds."""
        return {}

    def _take(self, settings: Mapping[str, Any]) -> None:
        """Set the settings, checked."""

    def __repr__(self) -> str:
        shown = "".join(f"{name}={value!r}, " for name, value in self._settings().items())
        return f"{type(self).__name__}({shown}epoch={self._epoch}, lr={self.get_current_lr()})"


class _Scheduled(LRScheduler):
    """A scheduler whose factor is a schedule that starts from 1."""

    def __init__(self, optimizer: Optimizer, make: Callable[..., Any], **settings: Any) -> None:
        self._make = make
        self._take(settings)
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        return float(self._schedule(epoch))

    def _settings(self) -> dict[str, Any]:
        return {field.name: getattr(self._schedule, field.name) for field in dataclasses.fields(self._schedule)[1:]}

    def _take(self, settings: Mapping[str, Any]) -> None:
        try:
            self._schedule = self._make(1.0, **settings)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}{str(error).removeprefix(self._make.__name__)}") from None


class StepLR(_Scheduled):
    """The rate is multiplied by gamma every step_size epochs: lr = base * gamma^(epoch // step_size).

    Parameters
    ----------
    optimizer : Optimizer
    step_size : int
        From 1.
    gamma : float, default 0.1
        In [0, inf).

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> opt = optimkit.SGD(np.zeros(2), lr=1.0)
    >>> scheduler = optimkit.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
    >>> for _ in range(3):
    ...     scheduler.step()
    >>> scheduler.print_lr()
    epoch 3: learning rate adjusted to [0.5]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        super().__init__(optimizer, schedules.step, step_size=step_size, gamma=gamma)


class MultiStepLR(_Scheduled):
    """The rate is multiplied by gamma at each milestone: lr = base * gamma^(number of milestones up to epoch).

    Parameters
    ----------
    optimizer : Optimizer
    milestones : sequence of int
        Epochs from 0, in any order; one that is there twice counts twice.
    gamma : float, default 0.1
        In [0, inf).

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> opt = optimkit.SGD(np.zeros(2), lr=1.0)
    >>> scheduler = optimkit.lr_scheduler.MultiStepLR(opt, milestones=[30, 80], gamma=0.5)
    >>> scheduler.set_current_epoch(80)
    >>> opt.lr
    0.25
    """

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        super().__init__(optimizer, schedules.multistep, milestones=milestones, gamma=gamma)


class ExponentialLR(_Scheduled):
    """The rate is multiplied by gamma every epoch: lr = base * gamma^epoch.

    Parameters
    ----------
    optimizer : Optimizer
    gamma : float
        In [0, inf).

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> opt = optimkit.SGD(np.zeros(2), lr=1.0)
    >>> scheduler = optimkit.lr_scheduler.ExponentialLR(opt, gamma=0.5)
    >>> scheduler.step()
    >>> scheduler.get_last_lr(), scheduler.get_current_lr()
    (1.0, 0.5)
    """

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        super().__init__(optimizer, schedules.exponential, gamma=gamma)


class LambdaLR(LRScheduler):
    """The rate is multiplied by a function of the epoch: lr = base * f(epoch).

    f(0) holds from construction, as in torch. In a chain it composes like the others, where torch's
    drops their factors.

    Parameters
    ----------
    optimizer : Optimizer
    f : callable
        From the epoch, an int, to a number in [0, inf). It is not part of the state dict; to be
        pickled with the scheduler it must be defined by name.

    Examples
    --------
    A warm-up over five epochs:

    >>> import numpy as np, optimkit
    >>> opt = optimkit.SGD(np.zeros(2), lr=1.0)
    >>> scheduler = optimkit.lr_scheduler.LambdaLR(opt, lambda epoch: min(1.0, (epoch + 1) / 5))
    >>> opt.lr
    0.2
    """

    def __init__(self, optimizer: Optimizer, f: Callable[[int], float]) -> None:
        self.f = _check_function(type(self).__name__, f)
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        return self.f(epoch)


class MultiplicativeLR(LRScheduler):
    """The rate is multiplied by f(epoch) at every step: lr = base * f(1) * f(2) * ... * f(epoch).

    Parameters
    ----------
    optimizer : Optimizer
    f : callable
        From the epoch, an int from 1, to a number in [0, inf). A pure function: after
        `set_current_epoch` and `load_state_dict` the product is computed anew.

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> opt = optimkit.SGD(np.zeros(2), lr=1.0)
    >>> scheduler = optimkit.lr_scheduler.MultiplicativeLR(opt, lambda epoch: 1 / epoch)
    >>> scheduler.set_current_epoch(2)
    >>> opt.lr
    0.5
    """

    def __init__(self, optimizer: Optimizer, f: Callable[[int], float]) -> None:
        self.f = _check_function(type(self).__name__, f)
        self._product = (0, 1.0)  # an epoch and its factor, where the next product starts
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        start, product = self._product if self._product[0] <= epoch else (0, 1.0)
        for each in range(start + 1, epoch + 1):
            product *= check_number(f"{type(self).__name__}: f({each})", self.f(each), FACTOR)
        self._product = epoch, product
        return product


def _check_function(name: str, f: Any) -> Callable[[int], float]:
    if not callable(f):
        raise ValueError(f"{name}: f = {f!r} must be a function of the epoch, such as lambda epoch: 0.95**epoch")
    return f  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
