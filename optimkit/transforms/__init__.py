"""Transforms: small rules that change the gradient, the step or the weight of any optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimkit.names import on_first_use

__all__ = ["L1", "L2", "ClipByGlobalNorm", "ClipByValue", "ElasticNet", "WeightDecay"]

if TYPE_CHECKING:
    from optimkit.transforms.clipping import ClipByGlobalNorm, ClipByValue
    from optimkit.transforms.decay import WeightDecay
    from optimkit.transforms.penalties import L1, L2, ElasticNet
else:  # the same, each loaded when it is first used
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "ClipByGlobalNorm": "optimkit.transforms.clipping",
            "ClipByValue": "optimkit.transforms.clipping",
            "WeightDecay": "optimkit.transforms.decay",
            "L1": "optimkit.transforms.penalties",
            "L2": "optimkit.transforms.penalties",
            "ElasticNet": "optimkit.transforms.penalties",
        },
    )
