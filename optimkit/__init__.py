"""optimkit: gradient-based optimizers for NumPy and CuPy arrays, fused and in place.

    import optimkit

    opt = optimkit.Adam(params, lr=1e-3)        # params: a dict, list or tree of arrays
    opt.step(grads)                             # updates them in place
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimkit.names import on_first_use

__version__ = "0.1.0"

__all__ = ["L1", "L2", "SGD", "AMSGrad", "Adagrad", "Adam", "AdamW", "ElasticNet", "Optimizer", "Param", "Penalty", "RMSProp"]
__all__ += ["Fraction", "NonFiniteGradientError", "NonNegative", "Positive", "Range", "Scalar", "StepResult", "Transform"]
__all__ += ["abs2", "constant", "copy_of_weight", "counters", "full", "get_num_threads", "lr_scheduler", "norm", "optimizers"]
__all__ += ["schedules", "set_num_threads", "total", "total_norm", "transforms", "zeros", "zeros_real"]

if TYPE_CHECKING:
    from optimkit import lr_scheduler, optimizers, schedules, transforms
    from optimkit.containers.param import Param
    from optimkit.counting import counters
    from optimkit.driver.optimizer import Optimizer
    from optimkit.driver.steps.result import NonFiniteGradientError, StepResult
    from optimkit.engines.threads import get_num_threads, set_num_threads
    from optimkit.optimizers.adagrad import Adagrad
    from optimkit.optimizers.adam import Adam, AdamW, AMSGrad
    from optimkit.optimizers.rmsprop import RMSProp
    from optimkit.optimizers.sgd import SGD
    from optimkit.rules.functions import abs2, norm, total, total_norm
    from optimkit.rules.links import Penalty, Transform
    from optimkit.rules.numbers import Fraction, NonNegative, Positive, Range, Scalar
    from optimkit.rules.slots import constant, copy_of_weight, full, zeros, zeros_real
    from optimkit.transforms.penalties import L1, L2, ElasticNet
else:  # the same, each loaded when it is first used
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "lr_scheduler": "optimkit.lr_scheduler",
            "optimizers": "optimkit.optimizers",
            "schedules": "optimkit.schedules",
            "transforms": "optimkit.transforms",
            "Param": "optimkit.containers.param",
            "counters": "optimkit.counting",
            "Optimizer": "optimkit.driver.optimizer",
            "NonFiniteGradientError": "optimkit.driver.steps.result",
            "StepResult": "optimkit.driver.steps.result",
            "get_num_threads": "optimkit.engines.threads",
            "set_num_threads": "optimkit.engines.threads",
            "Adagrad": "optimkit.optimizers.adagrad",
            "Adam": "optimkit.optimizers.adam",
            "AdamW": "optimkit.optimizers.adam",
            "AMSGrad": "optimkit.optimizers.adam",
            "RMSProp": "optimkit.optimizers.rmsprop",
            "SGD": "optimkit.optimizers.sgd",
            "abs2": "optimkit.rules.functions",
            "norm": "optimkit.rules.functions",
            "total": "optimkit.rules.functions",
            "total_norm": "optimkit.rules.functions",
            "Penalty": "optimkit.rules.links",
            "Transform": "optimkit.rules.links",
            "Fraction": "optimkit.rules.numbers",
            "NonNegative": "optimkit.rules.numbers",
            "Positive": "optimkit.rules.numbers",
            "Range": "optimkit.rules.numbers",
            "Scalar": "optimkit.rules.numbers",
            "constant": "optimkit.rules.slots",
            "copy_of_weight": "optimkit.rules.slots",
            "full": "optimkit.rules.slots",
            "zeros": "optimkit.rules.slots",
            "zeros_real": "optimkit.rules.slots",
            "L1": "optimkit.transforms.penalties",
            "L2": "optimkit.transforms.penalties",
            "ElasticNet": "optimkit.transforms.penalties",
        },
    )
