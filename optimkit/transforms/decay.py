"""Decoupled weight decay."""

from __future__ import annotations

from typing import Any

from optimkit.rules.links import Transform
from optimkit.rules.numbers import REQUIRED, NonNegative


class WeightDecay(Transform):
    """Decoupled weight decay: the step grows by `lr * rate * w`, with the weight before the step.

    Parameters
    ----------
    rate : float or schedule
        In [0, inf).
    where : str or callable, optional
        The parameters it applies to: `where="*.weight"` leaves biases alone.

    Notes
    -----
    With the factor lr, as torch, optax and keras; chainer's decay is without. It does not pass
    through an optimizer's moments; `L2` does.

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019,
    https://arxiv.org/abs/1711.05101

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> w = np.ones(2)
    >>> result = optimkit.SGD(w, lr=0.1, transforms=[WeightDecay(0.5)]).step(np.zeros(2))
    >>> w
    array([0.95, 0.95])
    """

    rate: NonNegative = REQUIRED

    def step(self, w: Any, d: Any, s: Any, h: Any, xp: Any) -> Any:
        return d + h.lr * h.rate * w
