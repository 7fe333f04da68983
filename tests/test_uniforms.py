"""Uniform values on the CPU: truths in kernels, and slots per optimizer where groups and buckets differ."""

import numpy as np
import pytest

import optimkit


class Truths(optimkit.Optimizer):
    """A comparison of reductions meets comparisons of elements."""

    lr: optimkit.Scalar = 0.1

    def update(self, w, g, s, h, xp):
        big = optimkit.norm(g) > 2.0
        some = xp.where((xp.isnan(w) | big) & (g > 0.0), 2.0 * g, g)
        return h.lr * xp.where(big, some, -some), {}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_truths_in_kernels(dtype):
    found = []
    for engine in ("eager", "llvm"):
        weights = [np.ones(5, dtype), np.ones(3, dtype)]
        opt = Truths(weights, engine=engine)
        opt.step([np.array([3.0, -3.0, 1.0, 0.0, -1.0], dtype), np.array([1.0, -1.0, 0.5], dtype)])
        found.append([w.tobytes() for w in weights])
        np.testing.assert_allclose(weights[0], [0.4, 1.3, 0.8, 1.0, 1.1], rtol=1e-6)
        np.testing.assert_allclose(weights[1], [1.1, 0.9, 1.05], rtol=1e-6)
    assert found[0] == found[1]


class Decaying(optimkit.Optimizer):
    """A slot of the optimizer that follows the rate, which groups have of their own."""

    lr: optimkit.Scalar = 0.1

    def slots(self):
        return {"d": optimkit.full(1.0).per("optimizer")}

    def update(self, w, g, s, h, xp):
        return s.d * g, {"d": s.d * (1 - h.lr)}


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "float64"), ("float64", "float32")])
@pytest.mark.parametrize("engine", ["eager", "llvm"])
def test_a_slot_of_the_optimizer_takes_the_numbers_of_the_first_parameter(dtypes, engine):
    """Of the first one that has a gradient, whether the parameters form one bucket or two."""
    weights = [np.ones(2, dtype) for dtype in dtypes]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (0.25, 0.5), strict=True)]
    opt = Decaying(groups, engine=engine)
    for absent, d in ((None, 0.75), (0, 0.375), (1, 0.28125), (None, 0.2109375)):
        opt.step([[None if number == absent else np.ones_like(w)] for number, w in enumerate(weights)])
        assert float(opt.state.shared["d"]) == d
    np.testing.assert_allclose(weights[0], 1 - (1 + 0.375 + 0.28125))
    np.testing.assert_allclose(weights[1], 1 - (1 + 0.75 + 0.28125))
