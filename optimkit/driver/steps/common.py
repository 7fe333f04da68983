"""What all buckets of an optimizer have in common, wherever their arrays live."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from optimkit.driver.steps.exchange import Exchange
from optimkit.driver.steps.uniforms import Shared


class Common(NamedTuple):
    """What steps are told of the whole optimizer.

    Attributes
    ----------
    exchange : Exchange
        Where totals over all parameters are formed; on devices kernels do that, in its order.
    shared : dict
        The slots that the optimizer has once; on a device they become views of its memory.
    nonfinite : {"allow", "raise", "skip"}
        What a NaN or Inf in a gradient means for the step.
    capturable : bool
        A step may become part of a CUDA graph.
    orders : dict
        What keeps the work on each device in order, by device.
    """

    exchange: Exchange
    shared: Shared
    nonfinite: str
    capturable: bool
    orders: Mapping[Hashable, Any]
