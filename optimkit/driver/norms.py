"""Values of all parameters, on the host: totals, the norm of all gradients, and whose gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimkit.driver.bucket import Bucket
from optimkit.engines import canonical


def sum_parameters(parts: np.ndarray) -> float:
    """The sum of one value per parameter, in their order."""
    import array_api_compat.numpy as xp

    if len(parts) <= canonical.LANES:
        return canonical.combine_few(parts.tolist())
    with np.errstate(all="ignore"):
        return float(canonical.combine(xp, "sum", parts))


def gradient_norm(buckets: Sequence[Bucket]) -> float | None:
    """The norm of all gradients of a step; None where the step did not compute it."""
    nodes = [bucket.plan.program.gradient_norm for bucket in buckets]
    if any(node is None for node in nodes):
        return None
    value = buckets[0].uniform(nodes[0])  # type: ignore[arg-type]
    return float(value if np.ndim(value) == 0 else value[0])


def name_nonfinite(buckets: Sequence[Bucket]) -> str:
    """The message that names the parameters whose gradient has NaN or Inf."""
    names = []
    for bucket in buckets:
        for node, value in bucket.values.items():
            if node.op == "sum_of_squares" and node.args[0].op in ("g", "negative"):
                bad = bucket.active & ~np.isfinite(value)
                names += [entry.name for entry, is_bad in zip(bucket.entries, bad, strict=True) if is_bad]
    shown = ", ".join(map(repr, dict.fromkeys(names)))
    return f"the gradient of {shown} has NaN or Inf; nothing was written. Use nonfinite='skip' to leave such steps out"
