"""What a step tells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from optimkit.driver.steps.bucket import Bucket


class NonFiniteGradientError(FloatingPointError):
    """A gradient has NaN or Inf, and the optimizer was built with `nonfinite="raise"`. Nothing was written."""


class StepResult:
    """What a step did.

    On a device it is fetched when it is read for the first time: reading it waits for the step, not
    reading it costs nothing. That of a step that was captured in a CUDA graph is fetched each time: it tells about the last
    replay.

    Attributes
    ----------
    applied : bool
        Whether weights and state were updated. False after a skip, and where no parameter had a gradient.
    grad_norm : float or None
        The 2-norm of all gradients, before any transform. None where the step did not need it: it
        is computed with `nonfinite="raise"` or `"skip"`, and with `ClipByGlobalNorm` as the first transform.
    """

    __slots__ = ("_applied", "_grad_norm", "_pending")

    def __init__(self, applied: bool, grad_norm: float | None = None, pending: Any = None) -> None:
        self._applied, self._grad_norm, self._pending = applied, grad_norm, pending

    def _fetch(self) -> None:
        if self._pending is not None:
            self._applied, self._grad_norm = self._pending.values()
            if not self._pending.repeated:
                self._pending = None

    @property
    def applied(self) -> bool:
        self._fetch()
        return self._applied

    @property
    def grad_norm(self) -> float | None:
        self._fetch()
        return self._grad_norm

    def __repr__(self) -> str:
        if self._pending is not None:
            return "StepResult(on the device)"
        return f"StepResult(applied={self._applied}, grad_norm={self._grad_norm})"


def name_nonfinite(found: Iterable[tuple[Bucket, np.ndarray]]) -> str:
    """The message that names the parameters whose gradient has NaN or Inf, from the sums of squares of buckets."""
    names = []
    for bucket, sums in found:
        bad = bucket.active & ~np.isfinite(sums)
        names += [entry.name for entry, is_bad in zip(bucket.entries, bad, strict=True) if is_bad]
    shown = ", ".join(map(repr, dict.fromkeys(names)))
    return f"the gradient of {shown} has NaN or Inf; nothing was written. Use nonfinite='skip' to leave such steps out"
