"""What a step tells."""

from __future__ import annotations

from dataclasses import dataclass


class NonFiniteGradientError(FloatingPointError):
    """A gradient has NaN or Inf, and the optimizer was built with `nonfinite="raise"`. Nothing was written."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did.

    Attributes
    ----------
    applied : bool
        Whether weights and state were updated. False after a skip, and where no parameter had a gradient.
    grad_norm : float or None
        The 2-norm of all gradients, before any transform. None where the step did not need it: it
        is computed with `nonfinite="raise"` or `"skip"`, and with `ClipByGlobalNorm` as the first transform.
    """

    applied: bool
    grad_norm: float | None = None
