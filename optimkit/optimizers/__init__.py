"""The formulas, one file a family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimkit.names import on_first_use

__all__ = ["SGD", "AMSGrad", "Adagrad", "Adam", "AdamW", "RMSProp"]

if TYPE_CHECKING:
    from optimkit.optimizers.adagrad import Adagrad
    from optimkit.optimizers.adam import Adam, AdamW, AMSGrad
    from optimkit.optimizers.rmsprop import RMSProp
    from optimkit.optimizers.sgd import SGD
else:  # the same, each loaded when it is first used
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "Adagrad": "optimkit.optimizers.adagrad",
            "Adam": "optimkit.optimizers.adam",
            "AdamW": "optimkit.optimizers.adam",
            "AMSGrad": "optimkit.optimizers.adam",
            "RMSProp": "optimkit.optimizers.rmsprop",
            "SGD": "optimkit.optimizers.sgd",
        },
    )
