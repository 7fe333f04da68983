"""Adam and its presets: AMSGrad, and AdamW with decoupled decay."""

from __future__ import annotations

from typing import Any

from optimkit.driver.optimizer import Optimizer
from optimkit.rules.functions import abs2
from optimkit.rules.links import Transform
from optimkit.rules.numbers import Follow, Fraction, NonNegative
from optimkit.rules.slots import Slot, zeros, zeros_real
from optimkit.transforms.decay import WeightDecay


class Adam(Optimizer):
    """Adam.

    From m = v = 0, with t counting the updates of the parameter from 1::

        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * |g|^2
        w = w - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    amsgrad: the root is that of max(v_max, v).

    Parameters
    ----------
    params : parameters, optional
        See `Optimizer`.
    lr : float or schedule, default 1e-3
        Learning rate, in [0, inf).
    betas : tuple of two floats or schedules, default (0.9, 0.999)
        b1 and b2, each in [0, 1).
    eps : float or schedule, default 1e-8
        In [0, inf), added to the corrected root.
    amsgrad : bool, default False
        Divide by the largest second moment so far.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    State: `m`, and `v` (real), with amsgrad `v_max` (real), each with the weight's shape. eps is
    added to the corrected root, as in torch, neuronika and optax; keras, chainer, thinc and sklearn
    add it to the uncorrected one. AMSGrad takes the maximum over the raw v and corrects it then,
    as torch and keras; optax takes it over the corrected v.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015,
    https://arxiv.org/abs/1412.6980

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> params = {"w": np.ones(2, np.float32)}
    >>> opt = optimkit.Adam(params, lr=0.1)
    >>> result = opt.step({"w": np.array([0.5, -2.0], np.float32)})
    >>> params["w"].round(6)
    array([0.9, 1.1], dtype=float32)
    """

    lr: NonNegative = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: NonNegative = 1e-8
    amsgrad: bool = False

    def slots(self) -> dict[str, Slot]:
        return {"m": zeros, "v": zeros_real} | ({"v_max": zeros_real} if self.amsgrad else {})

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        b1, b2 = h.betas
        m = b1 * s.m + (1 - b1) * g
        v = b2 * s.v + (1 - b2) * abs2(g)
        new = {"m": m, "v": v}
        if self.amsgrad:
            v = new["v_max"] = xp.maximum(s.v_max, v)
        c = (1 - b2**h.t) ** 0.5  # multiplied through: one division per element, not two (section 2 of the paper)
        return h.lr / (1 - b1**h.t) * c * m / (xp.sqrt(v) + h.eps * c), new


class AMSGrad(Adam):
    """Adam with the largest second moment so far: a preset, `Adam(amsgrad=True)`.

    Parameters
    ----------
    params, lr, betas, eps
        See `Adam`.
    amsgrad : bool, default True
        Always True; False is an error: that is `Adam`.

    References
    ----------
    S. J. Reddi, S. Kale, S. Kumar, "On the Convergence of Adam and Beyond", ICLR 2018,
    https://arxiv.org/abs/1904.09237

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> opt = optimkit.AMSGrad({"w": np.ones(2)}, lr=0.1)
    >>> list(opt.state["w"])
    ['m', 'v', 'v_max']
    """

    amsgrad: bool = True

    @classmethod
    def validate(cls, rule: Any) -> None:
        if not rule.amsgrad:
            raise ValueError("AMSGrad: amsgrad = False is Adam; use optimkit.Adam(...)")


class AdamW(Adam):
    """Adam with decoupled weight decay: a preset, Adam with the link `WeightDecay`.

    The decay is `lr * weight_decay * w`, with the weight before the step, and does not pass
    through the moments::

        w = w - (Adam's step + lr * weight_decay * w)

    Parameters
    ----------
    params, lr, betas, eps, amsgrad
        See `Adam`.
    weight_decay : float or schedule, default 1e-2
        In [0, inf).

    Notes
    -----
    As torch, optax and keras. chainer's decay lacks the factor lr.

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019,
    https://arxiv.org/abs/1711.05101

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> w = np.ones(2)
    >>> result = optimkit.AdamW(w, lr=0.1, weight_decay=0.5).step(np.zeros(2))
    >>> w
    array([0.95, 0.95])
    """

    weight_decay: NonNegative = 1e-2

    def links(self) -> list[Transform]:
        return [WeightDecay(rate=Follow("weight_decay"))]  # type: ignore[arg-type]
