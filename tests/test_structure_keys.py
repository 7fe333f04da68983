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


@pytest.mark.parametrize("where", [None, "a"])
def test_a_value_that_python_calls_equal_can_be_set(where):
    params = {"a": np.zeros(2), "b": np.zeros(2)}
    opt = Scaled(params, told=(1,))
    grads = {"a": np.ones(2), "b": np.ones(2)}
    found = []
    for told in ((1,), (1.0,), (True,), 0.0, -0.0):
        opt.set(where=where, told=told)
        before = params["a"][0]
        opt.step(grads)
        found.append(params["a"][0] - before)
    assert found == [-2.0, -4.0, -1.0, -4.0, 4.0]
