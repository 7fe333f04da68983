"""optimkit: gradient-based optimizers for NumPy and CuPy arrays, fused and in place.

    import optimkit

    opt = optimkit.Adam(params, lr=1e-3)        # params: a dict, list or tree of arrays
    opt.step(grads)                             # updates them in place
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from optimkit import transforms
from optimkit.containers.param import Param
from optimkit.counting import counters
from optimkit.driver.optimizer import Optimizer
from optimkit.driver.steps.result import NonFiniteGradientError, StepResult
from optimkit.engines.threads import get_num_threads, set_num_threads
from optimkit.optimizers import SGD, Adagrad, Adam, AdamW, AMSGrad, RMSProp
from optimkit.rules.functions import abs2, norm, total, total_norm
from optimkit.rules.links import Penalty, Transform
from optimkit.rules.numbers import Fraction, NonNegative, Positive, Range, Scalar
from optimkit.rules.slots import constant, copy_of_weight, full, zeros, zeros_real
from optimkit.transforms import L1, L2, ElasticNet

if TYPE_CHECKING:
    from optimkit import lr_scheduler, schedules

__version__ = "0.1.0"

__all__ = ["L1", "L2", "SGD", "AMSGrad", "Adagrad", "Adam", "AdamW", "ElasticNet", "Optimizer", "Param", "Penalty", "RMSProp"]
__all__ += ["Fraction", "NonFiniteGradientError", "NonNegative", "Positive", "Range", "Scalar", "StepResult", "Transform"]
__all__ += ["abs2", "constant", "copy_of_weight", "counters", "full", "get_num_threads", "lr_scheduler", "norm", "schedules"]
__all__ += ["set_num_threads", "total", "total_norm", "transforms", "zeros", "zeros_real"]

_ON_FIRST_USE = ("lr_scheduler", "schedules")


def __getattr__(name: str) -> Any:
    """Modules that not every program needs are loaded when they are first named."""
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"optimkit.{name}")
    raise AttributeError(f"module 'optimkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
