"""The formulas, one file a family."""

from optimkit.optimizers.adagrad import Adagrad
from optimkit.optimizers.adam import Adam, AdamW, AMSGrad
from optimkit.optimizers.rmsprop import RMSProp
from optimkit.optimizers.sgd import SGD

__all__ = ["SGD", "AMSGrad", "Adagrad", "Adam", "AdamW", "RMSProp"]
