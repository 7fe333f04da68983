"""The one list of what is tested: every optimizer, transform and penalty, with settings that tell its parts apart.

`CASES` maps a name to (class, settings); whoever adds a rule adds it here, or `test_matrix` fails. `Trust`, `Distance` and
the links below them are rules as a user writes them; they use what no optimizer of the package uses yet.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import optimkit
from optimkit import (
    L1,
    L2,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    AMSGrad,
    ElasticNet,
    Optimizer,
    Penalty,
    RMSProp,
    Scalar,
    Transform,
    abs2,
    constant,
    copy_of_weight,
    full,
    norm,
    schedules,
    total,
    total_norm,
    zeros,
)
from optimkit.transforms import ClipByGlobalNorm, ClipByValue, WeightDecay


class Trust(Optimizer):
    """Values per parameter: a trust ratio, a mean, the largest and the smallest element; a slot per parameter, and one
    that keeps the last weight as it was."""

    lr: Scalar = 0.1
    beta: Scalar = 0.75

    def slots(self):
        return {"m": full(0.5), "last": zeros, "scale": full(1.0).per("parameter")}

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        m = h.beta * s.m + (1 - h.beta) * (g - xp.mean(g))
        size, width = norm(w), xp.max(g) - xp.min(g)
        ratio = xp.where((size > 0) & (width > 0), size / width, 1.0)
        scale = h.beta * s.scale + (1 - h.beta) * xp.clip(ratio, 0.01, 10.0)
        return h.lr * scale * m, {"m": m, "last": w, "scale": scale}


class Distance(Optimizer):
    """Values of all parameters, and slots per optimizer: a rate from the distance so far, as D-Adaptation has it."""

    lr: Scalar = 1.0
    first: Scalar = 1e-3

    def slots(self):
        return {"start": copy_of_weight, "b": zeros, "d": full(1e-3).per("optimizer"), "r": zeros.per("optimizer")}

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        r = s.r + s.d * total(g * (s.start - w))
        d = xp.maximum(s.d, r / xp.sqrt(1.0 + total(abs2(g))))
        b = s.b + d * g
        return h.lr * b / (1.0 + total_norm(b)), {"start": s.start, "b": b, "d": d, "r": r}


class Smooth(Optimizer):
    """Operations that libraries round differently, and a power of the step count."""

    lr: Scalar = 0.1

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        return h.lr * h.t**-0.75 * (xp.tanh(g) + xp.log1p(xp.abs(g)) * xp.exp(-abs2(w)) + xp.expm1(-xp.abs(w)) * xp.hypot(w, g))


class Average(Transform):
    """A weight hook with a slot: the weights move to their running average."""

    rate: Scalar = 0.25

    def slots(self):
        return {"mean": copy_of_weight}

    def weight(self, w: Any, new: Any, s: Any, h: Any, xp: Any) -> Any:
        mean = (1 - h.rate) * s.mean + h.rate * new
        return 0.5 * (mean + new), {"mean": mean}


class Cautious(Transform):
    """A step hook that looks at weight and step, and uses the optimizer's rate."""

    def step(self, w: Any, d: Any, s: Any, h: Any, xp: Any) -> Any:
        return xp.where(xp.sign(w) == xp.sign(d), d, xp.clip(d, -h.lr, None))


class Huber(Penalty):
    """A penalty of one's own."""

    width: Scalar = 0.5

    def penalize(self, w: Any, h: Any, xp: Any) -> Any:
        return xp.clip(w, -h.width, h.width)


class Masked(Optimizer):
    """Inputs that are read and never written, beside a slot that is: a mask, and a preconditioner."""

    lr: Scalar = 0.1

    def slots(self):
        return {"mask": constant, "scale": constant(0.5), "m": zeros}

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        m = 0.75 * s.m + xp.where(s.mask > 0, g, 0.0)
        return h.lr * s.scale * m, {"m": m}


class Mirrored(Transform):
    """Whole arrays: the gradient is mixed with itself along its first axis, read backwards."""

    elementwise = False
    amount: Scalar = 0.25

    def gradient(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        return g if g.ndim == 0 else (1 - h.amount) * g + h.amount * xp.flip(g, axis=0)


class Recalling(Transform):
    """Whole arrays with a slot: part of the step before is taken again."""

    elementwise = False

    def slots(self):
        return {"last": zeros}

    def step(self, w: Any, d: Any, s: Any, h: Any, xp: Any) -> Any:
        return d + s.last / (2 + h.t), {"last": d}


class Rotating(Optimizer):
    """Whole arrays for the update itself, as a rule for matrices has them."""

    elementwise = False
    lr: Scalar = 0.1

    def slots(self):
        return {"m": zeros, "scale": constant(2.0)}

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        m = 0.5 * s.m + (g if g.ndim == 0 else xp.roll(g, 1, axis=0))
        return h.lr * s.scale * m, {"m": m}


def falling(step: int) -> float:
    return 0.1 / (1 + step)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.1}),
    "sgd momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.25}),
    "sgd nesterov maximize": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adagrad": (Adagrad, {"lr": 0.1, "lr_decay": 0.3, "eps": 1e-3, "initial_accumulator_value": 0.25}),
    "adam": (Adam, {"lr": 0.1}),
    "adam scheduled": (Adam, {"lr": falling, "betas": (schedules.linear(0.5, 0.9, 3), 0.99), "eps": 1e-3}),
    "amsgrad": (AMSGrad, {"lr": 0.1, "betas": (0.5, 0.75)}),
    "adamw": (AdamW, {"lr": 0.1, "weight_decay": 0.5}),
    "rmsprop": (RMSProp, {"lr": 0.1}),
    "rmsprop centered momentum": (RMSProp, {"lr": 0.1, "alpha": 0.9, "momentum": 0.5, "centered": True}),
    "clip by value": (SGD, {"lr": 0.1, "transforms": [ClipByValue(0.01)]}),
    "clip by global norm": (SGD, {"lr": 0.1, "transforms": [ClipByGlobalNorm(1.0)]}),
    "weight decay": (SGD, {"lr": 0.1, "transforms": [WeightDecay(0.5, where="*strided*")]}),
    "l1": (SGD, {"lr": 0.1, "penalty": L1(0.25)}),
    "l2": (SGD, {"lr": 0.1, "penalty": L2(0.25)}),
    "elastic net": (SGD, {"lr": 0.1, "penalty": ElasticNet(0.25, 0.125)}),
    "a tail": (AdamW, {"lr": 0.1, "transforms": [ClipByGlobalNorm(1.0), Average(), Cautious()], "penalty": L1(0.125)}),
    "two norms": (SGD, {"lr": 0.1, "transforms": [ClipByGlobalNorm(5.0), ClipByValue(0.5), ClipByGlobalNorm(1.0)]}),
    "trust": (Trust, {}),
    "distance": (Distance, {}),
    "smooth": (Smooth, {"penalty": Huber()}),
    "masked": (Masked, {"transforms": [ClipByGlobalNorm(1.0)]}),
    "whole arrays": (AdamW, {"lr": 0.1, "transforms": [ClipByValue(1.0), Mirrored(), ClipByGlobalNorm(0.5), Recalling()]}),
    "whole update": (Rotating, {"maximize": True, "transforms": [ClipByGlobalNorm(1.0), Average()], "penalty": L2(0.125)}),
}

# Few of them, for tests that need not repeat what holds for all: without state, with state, and with a reduction.
SOME = {name: CASES[name] for name in ("sgd", "adam", "a tail")}


def make(name: str, params: Any = None, **options: Any) -> Any:
    """The optimizer of a case, with parameters."""
    cls, settings = CASES[name]
    return partial(cls, **settings)(params, **options)


def links(settings: dict[str, Any]) -> list[Any]:
    """The transforms and the penalty of a case."""
    return [*settings.get("transforms", ()), *([settings["penalty"]] if "penalty" in settings else [])]


def public(kind: type) -> set[type]:
    """The concrete classes of a kind that optimkit exports."""
    spaces = (vars(optimkit), vars(optimkit.transforms))
    found = {x for space in spaces for x in space.values() if isinstance(x, type) and issubclass(x, kind)}
    return found - {Optimizer, Transform, Penalty}
