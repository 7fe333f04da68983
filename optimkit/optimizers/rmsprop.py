"""RMSProp: plain, with momentum, centered, and both."""

from __future__ import annotations

from typing import Any

from optimkit.driver.optimizer import Optimizer
from optimkit.rules.functions import abs2
from optimkit.rules.numbers import Fraction, NonNegative
from optimkit.rules.slots import Slot, zeros, zeros_real


class RMSProp(Optimizer):
    """RMSProp.

    From zeros::

        v = alpha * v + (1 - alpha) * |g|^2                 (centered: d = g - m,
        n = sqrt(v) + eps                                    v = alpha * (v + (1 - alpha) * |d|^2),
                                                             m = m + (1 - alpha) * d)
        w = w - lr * g / n                                  (momentum mu: b = mu * b + g / n, w = w - lr * b)

    Parameters
    ----------
    params : parameters, optional
        See `Optimizer`.
    lr : float or schedule, default 1e-2
        Learning rate, in [0, inf).
    alpha : float or schedule, default 0.99
        Smoothing of the squared gradients, in [0, 1).
    eps : float or schedule, default 1e-8
        In [0, inf), outside of the root.
    momentum : float, schedule or None, default None
        mu, in [0, 1). None means no buffer at all.
    centered : bool, default False
        Divide by the root of the estimated variance, not of the second moment.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    State: `v` (real), `m` if centered, `b` with momentum, each with the weight's shape. eps stands
    outside of the root, as in torch, mlx and neuronika; keras and optax have it inside. The
    buffer is without lr, as in torch.

    If centered, `v` is the central moment itself. Others keep the second moment and subtract |m|^2, which is the same in
    exact arithmetic; but where a gradient hardly varies, nearly all digits of the difference are rounding, below 0 too.

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5: RMSProp", COURSERA 2012,
    https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf; centered:
    A. Graves, "Generating Sequences With Recurrent Neural Networks", 2013, https://arxiv.org/abs/1308.0850

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> w = np.array([1.0, 1.0])
    >>> result = optimkit.RMSProp(w, lr=0.1, alpha=0.75).step(np.array([4.0, -4.0]))
    >>> w.round(6)
    array([0.8, 1.2])
    """

    lr: NonNegative = 1e-2
    alpha: Fraction = 0.99
    eps: NonNegative = 1e-8
    momentum: Fraction | None = None
    centered: bool = False

    def slots(self) -> dict[str, Slot]:
        slots = {"v": zeros_real}
        if self.centered:
            slots["m"] = zeros
        if self.momentum is not None:
            slots["b"] = zeros
        return slots

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        new = {}
        if self.centered:
            d = g - s.m
            v = h.alpha * (s.v + (1 - h.alpha) * abs2(d))
            new["m"] = s.m + (1 - h.alpha) * d
        else:
            v = h.alpha * s.v + (1 - h.alpha) * abs2(g)
        new["v"], step = v, g / (xp.sqrt(v) + h.eps)
        if h.momentum is not None:
            step = new["b"] = h.momentum * s.b + step
        return h.lr * step, new
