"""Norms beyond float64, and factors of a clip that float32 can't hold: gradients are clipped as long as they are finite."""

from __future__ import annotations

import numpy as np
import pytest

from optimkit import SGD, NonFiniteGradientError, Optimizer, Scalar, total_norm
from optimkit.transforms import ClipByGlobalNorm


@pytest.fixture
def backend(optimkit_backend):
    if optimkit_backend.functional:
        pytest.skip("the functional form has no policy, and norms in the library's own order")
    return optimkit_backend


def step(backend, dtype, gradients, max_norm=None, nonfinite="allow"):
    """Where two parameters of zeros are after a step, and what it told."""
    params = {name: backend.make(np.zeros_like(g), dtype) for name, g in gradients.items()}
    links = [] if max_norm is None else [ClipByGlobalNorm(max_norm)]
    opt = SGD(params, lr=1.0, transforms=links, nonfinite=nonfinite, engine=backend.engine)
    grads = {name: backend.make(g, dtype) for name, g in gradients.items()}
    results = [opt.step(grads) for _ in range(2)]  # the second is warm
    return {name: backend.to_numpy(w) / 2 for name, w in params.items()}, results


def clipped(gradients, max_norm):
    """The gradients clipped, with room for any exponent."""
    wide = {name: g.astype(np.longdouble) for name, g in gradients.items()}
    norm = np.sqrt(sum((g**2).sum() for g in wide.values()))
    return {name: -(g * (np.longdouble(max_norm) / norm)) for name, g in wide.items()}


@pytest.mark.parametrize("nonfinite", ["allow", "skip", "raise"])
@pytest.mark.parametrize("max_norm", [1.0, 1e-300, 1e300, 1e-3])
def test_finite_gradients_whose_norm_is_beyond_float64_are_clipped(backend, max_norm, nonfinite):
    gradients = {"a": np.full(40, 1e308), "b": np.linspace(-1.0, 1.0, 5000) * 1.7e308}
    found, results = step(backend, "float64", gradients, max_norm, nonfinite)
    for result in results:
        assert (bool(result.applied), float(result.grad_norm)) == (True, np.finfo(float).max)
    for name, expected in clipped(gradients, max_norm).items():
        np.testing.assert_allclose(found[name], expected.astype(float), rtol=1e-14)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_they_are_no_nan_and_no_inf(backend, nonfinite):
    found, results = step(backend, "float64", {"a": np.full(9, 6e307)}, nonfinite=nonfinite)
    assert all(bool(result.applied) for result in results)
    assert (found["a"] == -6e307).all()
    bad = {"a": np.array([1e308, np.inf, 1e308])}
    if nonfinite == "raise":
        with pytest.raises(NonFiniteGradientError):
            step(backend, "float64", bad, nonfinite=nonfinite)
    else:
        _, results = step(backend, "float64", bad, nonfinite=nonfinite)
        assert not any(bool(result.applied) for result in results)


@pytest.mark.parametrize("scale", [1e38, 1e30, 1e10, 1.0])
@pytest.mark.parametrize("max_norm", [1e-3, 1e-10, 1e-20, 1e-30, 1.0])
def test_factors_that_float32_can_not_hold_lose_no_digits(backend, scale, max_norm):
    rng = np.random.default_rng(0)
    gradients = {"a": (scale * rng.uniform(0.5, 1.5, 3000)).astype("float32"), "b": np.full(7, scale, "float32")}
    found, _ = step(backend, "float32", gradients, max_norm)
    for name, expected in clipped(gradients, max_norm).items():
        np.testing.assert_allclose(found[name], expected.astype("float32"), rtol=4e-7, atol=2e-44)


class Ladder(Optimizer):
    """A value of the optimizer on which the next one depends twice, and so on: written out, 2**40 of them."""

    lr: Scalar = 1.0

    def update(self, w, g, s, h, xp):
        n = total_norm(g)
        for _ in range(40):
            n = xp.where(n > 2.0, n * 0.5, n)
        return h.lr * g / n, {}


def test_what_repeats_is_not_written_out(backend):
    w = backend.make(np.zeros(4), "float32")
    opt = Ladder(w, engine=backend.engine)
    opt.step(backend.make(np.full(4, 2.0**30), "float32"))
    assert backend.to_numpy(w).tolist() == [-(2.0**29)] * 4
    assert len(opt.explain()) < 50_000  # 11,000 for the CPU, 37,000 for a GPU
