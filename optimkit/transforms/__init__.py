"""Transforms: small rules that change the gradient, the step or the weight of any optimizer."""

from optimkit.transforms.clipping import ClipByGlobalNorm, ClipByValue
from optimkit.transforms.decay import WeightDecay
from optimkit.transforms.penalties import L1, L2, ElasticNet

__all__ = ["L1", "L2", "ClipByGlobalNorm", "ClipByValue", "ElasticNet", "WeightDecay"]
