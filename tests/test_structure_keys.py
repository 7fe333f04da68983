"""Structure that Python calls equal is not the same structure: each value has a kernel of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimkit import Optimizer
from optimkit.rules.numbers import NonNegative


class Scaled(Optimizer):
    """A step that depends on the sign and on the type of what it is told."""

    lr: NonNegative = 1.0
    told: Any = 0.0

    def update(self, w, g, s, h, xp):
        first = self.told[0] if isinstance(self.told, tuple) else self.told
        first = first[0] if isinstance(first, tuple) else first
        sign = -1.0 if np.signbit(float(first)) else 1.0
        kind = {bool: 1.0, int: 2.0, float: 4.0}[type(first)]
        return h.lr * g * (sign * kind), {}


@pytest.mark.parametrize(
    ("told", "expected"),
    [(0.0, -4.0), (-0.0, 4.0), ((1,), -2.0), ((1.0,), -4.0), ((True,), -1.0), (((1,),), -2.0), (((1.0,),), -4.0), (1, -2.0)],
)
def test_each_value_has_a_kernel(told, expected):
    w = np.zeros(2)
    Scaled(w, told=told).step(np.ones(2))
    assert w.tolist() == [expected] * 2
