"""Clipping: by value, and by the norm of all gradients."""

from __future__ import annotations

import sys
from typing import Any

from optimkit.rules.functions import total_norms
from optimkit.rules.links import Transform
from optimkit.rules.numbers import REQUIRED, NonNegative


class ClipByValue(Transform):
    """Clip each element of the gradient: g = min(max(g, -limit), limit).

    Parameters
    ----------
    limit : float or schedule
        In [0, inf).
    where : str or callable, optional
        The parameters it applies to.

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> w = np.zeros(3)
    >>> opt = optimkit.SGD(w, lr=1.0, transforms=[ClipByValue(0.5)])
    >>> result = opt.step(np.array([2.0, -3.0, 0.25]))
    >>> w
    array([-0.5 ,  0.5 , -0.25])
    """

    limit: NonNegative = REQUIRED

    def gradient(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        return xp.clip(g, -h.limit, h.limit)


class ClipByGlobalNorm(Transform):
    """Scale all gradients so that their common 2-norm is at most `max_norm`.

    With n the norm over all parameters (that `where` selects) that have a gradient in this step::

        g = g * min(1, max_norm / n)

    Parameters
    ----------
    max_norm : float or schedule
        In [0, inf).
    where : str or callable, optional
        The parameters that it measures and clips.

    Notes
    -----
    Exact, as optax; torch divides by n + 1e-6. A norm of 0 is no clip. The norm is computed in
    float64, and gradients are clipped as long as they are finite, also where their norm is beyond float64 or the factor is
    too small for float32. Where a gradient is not finite, nothing is
    clipped, so that NaN does not spread from one parameter to all; `nonfinite="skip"` or
    `"raise"` leaves such steps out.

    References
    ----------
    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks",
    ICML 2013, https://arxiv.org/abs/1211.5063

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> params = {"a": np.zeros(1), "b": np.zeros(1)}
    >>> opt = optimkit.SGD(params, lr=1.0, transforms=[ClipByGlobalNorm(1.0)])
    >>> opt.step({"a": np.array([3.0]), "b": np.array([4.0])}).grad_norm
    5.0
    >>> params["a"], params["b"]
    (array([-0.6]), array([-0.8]))
    """

    max_norm: NonNegative = REQUIRED

    def gradient(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        n, root = total_norms(g)
        clipped = xp.isfinite(n) & (n > h.max_norm)
        # where max_norm / n is too small for a float, its root twice: it is not, and no digits are lost
        tiny = clipped & ((h.max_norm < n * 2.0**-100) | (n >= sys.float_info.max))
        half = xp.sqrt(h.max_norm) / root
        return g * xp.where(tiny, half, 1.0) * xp.where(tiny, half, xp.where(clipped, h.max_norm / n, 1.0))
