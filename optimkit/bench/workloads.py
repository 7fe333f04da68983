"""What is measured: an update, in optimkit's words, in torch's, and written by hand.

    WORKLOADS["adamw"].optimizer(params)          # optimkit's
    WORKLOADS["adamw"].torch                      # ("AdamW", {"lr": 1e-3, ...}) of torch.optim
    by_hand("adamw", np, w, g, slots, scales)     # NumPy or CuPy, as people write it

All use the same numbers and compute the same; the benchmark refuses to compare what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optimkit import SGD, Adam, AdamW, Optimizer
from optimkit.transforms import ClipByGlobalNorm

LR, MOMENTUM, BETAS, EPS, DECAY, MAX_NORM = 1e-3, 0.9, (0.9, 0.999), 1e-8, 1e-2, 1.0

_TORCH_ADAM = {"lr": LR, "betas": BETAS, "eps": EPS}


@dataclass(frozen=True)
class Workload:
    """One update.

    Attributes
    ----------
    optimizer : function
        From parameters, and options that all optimizers have, to optimkit's optimizer.
    torch : (str, dict)
        The class in torch.optim, and its arguments.
    slots : int
        The state arrays that the text written by hand needs.
    tail : bool
        The gradients are clipped by their global norm before the update, and zeroed after it.
    """

    title: str
    optimizer: Callable[..., Optimizer]
    torch: tuple[str, dict[str, Any]]
    slots: int
    tail: bool = False


def _sgd(params: Any, **options: Any) -> Optimizer:
    return SGD(params, lr=LR, momentum=MOMENTUM, **options)


def _adam(params: Any, **options: Any) -> Optimizer:
    return Adam(params, lr=LR, betas=BETAS, eps=EPS, **options)


def _adamw(params: Any, **options: Any) -> Optimizer:
    return AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, **options)


def _tail(params: Any, **options: Any) -> Optimizer:
    clip = ClipByGlobalNorm(MAX_NORM)
    return AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, transforms=[clip], **options)


WORKLOADS = {
    "sgd": Workload("SGD with momentum", _sgd, ("SGD", {"lr": LR, "momentum": MOMENTUM}), 1),
    "adam": Workload("Adam", _adam, ("Adam", _TORCH_ADAM), 2),
    "adamw": Workload("AdamW", _adamw, ("AdamW", {**_TORCH_ADAM, "weight_decay": DECAY}), 2),
    "tail": Workload("clip + AdamW + zeroing", _tail, ("AdamW", {**_TORCH_ADAM, "weight_decay": DECAY}), 2, tail=True),
}


def corrections(t: int) -> tuple[float, float]:
    """What Adam's step t divides its moments by: of the first moment, and the root of that of the second."""
    return 1 - BETAS[0] ** t, (1 - BETAS[1] ** t) ** 0.5


def by_hand(name: str, xp: Any, w: Any, g: Any, slots: Sequence[Any], scales: tuple[Any, Any]) -> None:
    """The update of one parameter in place, in plain array expressions; without clipping and zeroing."""
    if name == "sgd":
        (v,) = slots
        v *= MOMENTUM
        v += g
        w -= LR * v
        return
    (m, v), (b1, b2) = slots, BETAS
    m *= b1
    m += (1 - b1) * g
    v *= b2
    v += (1 - b2) * (g * g)
    if name != "adam":
        w *= 1 - LR * DECAY
    w -= LR / scales[0] * m / (xp.sqrt(v) / scales[1] + EPS)


def clip_by_hand(xp: Any, grads: Sequence[Any]) -> None:
    """Scale the gradients in place to a global norm of at most MAX_NORM, as torch does."""
    squares = 0.0
    for g in grads:
        squares = squares + xp.sum(g * g)
    scale = xp.minimum(1.0, MAX_NORM / (xp.sqrt(squares) + 1e-6))
    for g in grads:
        g *= scale


# The same as a kernel, run once for each parameter. thinc's and chainer's optimizers are such kernels.
KERNELS = {
    "sgd": ("T g", "T w, T v", f"v = (T){MOMENTUM!r} * v + g; w -= (T){LR!r} * v;"),
    "adam": (
        "T g, T rate, T root",
        "T w, T m, T v",
        f"m = (T){BETAS[0]!r} * m + (T){1 - BETAS[0]!r} * g; v = (T){BETAS[1]!r} * v + (T){1 - BETAS[1]!r} * g * g; "
        f"w -= rate * m / (sqrt(v) / root + (T){EPS!r});",
    ),
}
KERNELS["adamw"] = KERNELS["tail"] = (*KERNELS["adam"][:2], f"w *= (T){1 - LR * DECAY!r}; {KERNELS['adam'][2]}")
