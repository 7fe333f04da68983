"""Schedules: numbers that are functions of the step, from 0 at the first.

    opt = optimkit.Adam(params, lr=schedules.exponential(1e-3, 0.99))

Any number of a rule may be a schedule, and any function of the step is one; these are the common
ones, as small frozen objects that print, compare and pickle. `optimkit.lr_scheduler` has the same
as objects with a `step()` of their own.
"""

from optimkit.schedules.decays import constant, exponential, multistep, step
from optimkit.schedules.ramps import linear

__all__ = ["constant", "exponential", "linear", "multistep", "step"]
