"""Stochastic gradient descent, plain and with momentum."""

from __future__ import annotations

from typing import Any

from optimkit.driver.optimizer import Optimizer
from optimkit.rules.numbers import REQUIRED, Fraction, NonNegative
from optimkit.rules.slots import Slot, zeros


class SGD(Optimizer):
    """Stochastic gradient descent.

    Without momentum::

        w = w - lr * g

    With momentum `mu` and dampening `tau`, from b = 0::

        b = mu * b + (1 - tau) * g
        w = w - lr * b                       (nesterov: w - lr * (g + mu * b), with the new b)

    Parameters
    ----------
    params : parameters, optional
        See `Optimizer`.
    lr : float or schedule
        Learning rate, in [0, inf).
    momentum : float, schedule or None, default None
        mu, in [0, 1). None means no buffer at all; 0.0 is a number like any other.
    dampening : float or schedule, default 0.0
        tau, in [0, 1). With Nesterov it must be 0.
    nesterov : bool, default False
        Look ahead along the momentum.

    Raises
    ------
    ValueError
        If a number is out of range, `nesterov` comes without momentum, or with dampening.

    Notes
    -----
    State: `b`, the momentum buffer, with the weight's shape. The first step with dampening is
    `(1 - tau) * g`, as in neuronika and mlx; torch starts with `g`. Nesterov is that of torch,
    optax and keras; chainer's differs.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in
    deep learning", ICML 2013, https://proceedings.mlr.press/v28/sutskever13.html

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> w = np.array([1.0, 2.0])
    >>> optimkit.SGD(w, lr=0.1).step(np.array([1.0, -1.0])).applied
    True
    >>> w
    array([0.9, 2.1])
    """

    lr: NonNegative = REQUIRED
    momentum: Fraction | None = None
    dampening: Fraction = 0.0
    nesterov: bool = False

    @classmethod
    def validate(cls, rule: Any) -> None:
        if rule.nesterov and rule.momentum is None:
            raise ValueError("SGD: nesterov = True needs momentum, such as momentum=0.9")
        if rule.nesterov and rule.dampening != 0.0:
            raise ValueError(f"SGD: dampening = {rule.dampening!r} must be 0.0 with nesterov = True")
        if rule.momentum is None and rule.dampening != 0.0:
            raise ValueError(f"SGD: dampening = {rule.dampening!r} does nothing without momentum; pass momentum=0.9")

    def slots(self) -> dict[str, Slot]:
        return {} if self.momentum is None else {"b": zeros}

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        if h.momentum is None:
            return h.lr * g
        b = h.momentum * s.b + (1 - h.dampening) * g
        d = g + h.momentum * b if self.nesterov else b
        return h.lr * d, {"b": b}
