"""Centered RMSProp keeps the central moment: float32 does what float64 does where a gradient hardly varies (fault 47)."""

from __future__ import annotations

import numpy as np
import pytest

from optimkit import RMSProp


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("engine", ["llvm", "eager"])
def test_a_gradient_that_hardly_varies(engine, momentum):
    random = np.random.default_rng(0)
    narrow, wide = np.zeros(50, np.float32), np.zeros(50)
    opts = [RMSProp(w, lr=0.01, centered=True, momentum=momentum, engine=engine) for w in (narrow, wide)]
    for _ in range(2000):
        g = 1 + 1e-3 * random.standard_normal(50)
        for w, opt in zip((narrow, wide), opts, strict=True):
            opt.step(g.astype(w.dtype))
    assert np.abs(wide).max() < 1e6
    np.testing.assert_allclose(narrow, wide, rtol=2e-3)


def test_the_formula():
    """m and v of g = 4, 2 with alpha = 0.5, by hand: m 2, 2; v 0.5 * 0.5 * 16 = 4, then 0.5 * (4 + 0.5 * 0) = 2."""
    w = np.zeros(1)
    opt = RMSProp(w, lr=1.0, alpha=0.5, eps=0.0, centered=True)
    for g, m, v in ((4.0, 2.0, 4.0), (2.0, 2.0, 2.0)):
        opt.step(np.array([g]))
        assert opt.state["0"]["m"] == m
        assert opt.state["0"]["v"] == v
    assert w == -4.0 / 2.0 - 2.0 / np.sqrt(2.0)
