"""Adagrad: a rate of its own for each element, from the sum of its squared gradients."""

from __future__ import annotations

from typing import Any

from optimkit.driver.optimizer import Optimizer
from optimkit.rules.functions import abs2
from optimkit.rules.numbers import NonNegative
from optimkit.rules.slots import Slot, full


class Adagrad(Optimizer):
    """Adagrad.

    From v = initial_accumulator_value::

        v = v + |g|^2
        w = w - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(v) + eps)

    Parameters
    ----------
    params : parameters, optional
        See `Optimizer`.
    lr : float or schedule, default 1e-2
        Learning rate, in [0, inf).
    lr_decay : float or schedule, default 0.0
        Decay of the rate with the update count t, in [0, inf).
    eps : float or schedule, default 1e-10
        In [0, inf), outside of the root.
    initial_accumulator_value : float, default 0.0
        What v starts from, in [0, inf); a number, no schedule.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    State: `v`, real, with the weight's shape. As torch; keras and optax have eps inside the root
    and start from 0.1.

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", JMLR 12, 2011, https://jmlr.org/papers/v12/duchi11a.html

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> w = np.array([1.0, 1.0])
    >>> opt = optimkit.Adagrad(w, lr=0.5)
    >>> result = opt.step(np.array([4.0, 0.25]))
    >>> w.round(6)
    array([0.5, 0.5])
    """

    lr: NonNegative = 1e-2
    lr_decay: NonNegative = 0.0
    eps: NonNegative = 1e-10
    initial_accumulator_value: NonNegative = 0.0

    @classmethod
    def validate(cls, rule: Any) -> None:
        if callable(rule.initial_accumulator_value):
            raise ValueError("Adagrad: initial_accumulator_value must be a number: it is used once, when the state is made")

    def slots(self) -> dict[str, Slot]:
        return {"v": full(self.initial_accumulator_value).real()}  # type: ignore[arg-type]

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        lr = h.lr / (1 + (h.t - 1) * h.lr_decay)
        v = s.v + abs2(g)
        return lr * g / (xp.sqrt(v) + h.eps), {"v": v}
