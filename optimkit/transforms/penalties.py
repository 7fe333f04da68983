"""Penalties: terms of the loss that depend on the weights alone."""

from __future__ import annotations

from typing import Any

from optimkit.rules.links import Penalty
from optimkit.rules.numbers import REQUIRED, NonNegative


class L1(Penalty):
    """The penalty l1 * sum |w|; adds l1 * sign(w) to the gradient.

    Parameters
    ----------
    l1 : float or schedule
        In [0, inf).
    where : str or callable, optional
        The parameters it applies to.

    Notes
    -----
    sign(0) = 0, as NumPy has it; Rust's signum(0) is 1.

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> w = np.array([1.0, 0.0, -1.0])
    >>> result = optimkit.SGD(w, lr=1.0, penalty=L1(0.25)).step(np.zeros(3))
    >>> w
    array([ 0.75,  0.  , -0.75])
    """

    l1: NonNegative = REQUIRED

    def penalize(self, w: Any, h: Any, xp: Any) -> Any:
        return h.l1 * xp.sign(w)

    def value(self, w: Any) -> float:
        """l1 * sum |w|."""
        return _fixed(self, "l1") * float(abs(w).sum())


class L2(Penalty):
    """The penalty l2 * sum |w|^2; adds 2 * l2 * w to the gradient.

    Parameters
    ----------
    l2 : float or schedule
        In [0, inf).
    where : str or callable, optional
        The parameters it applies to.

    Notes
    -----
    The gradient has the factor 2, as in neuronika and keras: `L2(x)` equals torch's
    `weight_decay=2*x`.

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> w = np.array([1.0, -2.0])
    >>> result = optimkit.SGD(w, lr=1.0, penalty=L2(0.25)).step(np.zeros(2))
    >>> w
    array([ 0.5, -1. ])
    """

    l2: NonNegative = REQUIRED

    def penalize(self, w: Any, h: Any, xp: Any) -> Any:
        return 2 * h.l2 * w

    def value(self, w: Any) -> float:
        """l2 * sum |w|^2."""
        return _fixed(self, "l2") * float((abs(w) ** 2).sum())


class ElasticNet(Penalty):
    """The penalty l1 * sum |w| + l2 * sum |w|^2; adds l1 * sign(w) + 2 * l2 * w to the gradient.

    Parameters
    ----------
    l1, l2 : float or schedule
        In [0, inf).
    where : str or callable, optional
        The parameters it applies to.

    Notes
    -----
    The conventions of `L1` and `L2`.

    References
    ----------
    H. Zou, T. Hastie, "Regularization and variable selection via the elastic net", JRSS B 67, 2005,
    https://doi.org/10.1111/j.1467-9868.2005.00503.x

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> w = np.array([1.0, -2.0])
    >>> result = optimkit.SGD(w, lr=1.0, penalty=ElasticNet(0.25, 0.125)).step(np.zeros(2))
    >>> w
    array([ 0.5 , -1.25])
    """

    l1: NonNegative = REQUIRED
    l2: NonNegative = REQUIRED

    def penalize(self, w: Any, h: Any, xp: Any) -> Any:
        return h.l1 * xp.sign(w) + 2 * h.l2 * w

    def value(self, w: Any) -> float:
        """l1 * sum |w| + l2 * sum |w|^2."""
        return _fixed(self, "l1") * float(abs(w).sum()) + _fixed(self, "l2") * float((abs(w) ** 2).sum())


def _fixed(penalty: Penalty, name: str) -> float:
    """A number of a penalty that is no schedule, whose value would depend on the step."""
    value = getattr(penalty, name)
    if callable(value):
        kind = type(penalty).__name__
        raise TypeError(f"{kind}.value: {name} is a schedule; write {kind}({name}={name}(opt.count), ...).value(w)")
    return float(value)
