"""Faults in gradients: rows 12 to 26 of the list of faults, on both engines of NumPy arrays.

What a gradient may be is in `test_gradients`; how a step that is refused leaves everything is in `test_transactions`.
"""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

import optimkit
from optimkit import SGD, Adam, AdamW, NonFiniteGradientError, Optimizer, Scalar, lr_scheduler, norm, transforms
from optimkit.testing.backends import LAYOUTS, lay_out

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")

pytestmark = pytest.mark.parametrize("engine", ["eager", "llvm"])


def ones(*shape):
    return np.ones(shape, np.float32)


class Trust(Optimizer):
    """A step as long as the weight, as LARS and LAMB take it."""

    lr: Scalar = 0.5

    def update(self, w, g, s, h, xp):
        n = norm(g)
        return h.lr * xp.where(n > 0, norm(w) / n, 1.0) * g


@pytest.mark.parametrize(
    ("shape", "given"),
    [((4, 1), (4,)), ((4,), (4, 1)), ((4,), ()), ((2, 3), (3, 2)), ((2, 3), (6,)), ((), (1,)), ((0,), (0, 1))],
)
def test_row_12_nothing_is_broadcast(engine, shape, given):
    params = {"first": ones(2), "w": ones(*shape)}
    opt = SGD(params, lr=1.0, engine=engine)
    with pytest.raises(ValueError, match=r"gradient of 'w' has shape .*, its weight .*; nothing is broadcast"):
        opt.step({"first": ones(2), "w": ones(*given)})
    assert params["first"].tolist() == [1, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_row_13_strides_do_not_change_the_bits(engine, layout):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(37, 21, 3)).astype(np.float32)
    plain, other = start.copy(), start.copy(order="F")
    one, two = AdamW(plain, engine=engine), AdamW(other, engine=engine)
    for _ in range(3):
        g = rng.normal(size=start.shape).astype(np.float32)
        one.step(g)
        two.step(lay_out(np, g, layout))
    np.testing.assert_array_equal(plain, other)


def test_row_14_aliases_are_read_before_they_are_written(engine):
    start = np.arange(1.0, 41.0)
    for gradient in (lambda w: w, lambda w: w[::-1]):
        w = start.copy()
        opt = Adam(w, lr=0.5, engine=engine)
        expected = start.copy()
        other = Adam(expected, lr=0.5, engine=engine)
        for _ in range(2):
            other.step(gradient(expected).copy())
            opt.step(gradient(w))
        np.testing.assert_array_equal(w, expected)
    shared = np.ones(4)
    params = {"a": np.ones(4), "b": np.ones(4), "c": np.ones(3)}
    SGD(params, lr=1.0, engine=engine).step({"a": shared, "b": shared, "c": shared[1:]}, zero_grad=True)
    assert not any(w.any() for w in (*params.values(), shared))


def test_row_15_gradients_of_another_dtype_are_cast_or_refused(engine):
    w, g = ones(3), np.array([0.1, 1e-50, 1e300])
    SGD(w, lr=1.0, engine=engine).step(g)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(w, np.float32(1) - g.astype(np.float32))
    for bad in ("int64", "bool", "complex64", "complex128", ">f4", "longdouble", "object"):
        opt = SGD(ones(3), lr=1.0, engine=engine)
        with pytest.raises(TypeError, match=r"gradient of '0' is .*pass"):
            opt.step(np.ones(3, bad))
        assert opt["0"].data[0] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_row_16_gradients_that_are_not_finite(engine, bad):
    grads = {"a": ones(3), "b": np.array([1, bad, 1], np.float32)}
    opt = Adam({"a": ones(3), "b": ones(3)}, lr=0.1, nonfinite="raise", engine=engine)
    with pytest.raises(NonFiniteGradientError, match=r"the gradient of 'b' has NaN or Inf; nothing was written"):
        opt.step(grads)
    assert (opt.count, opt.state["a"].t, opt["a"].data[0]) == (0, 0, 1)
    opt = Adam({"a": ones(3), "b": ones(3)}, lr=0.1, nonfinite="skip", engine=engine)
    result = opt.step(grads)
    assert not result.applied
    assert not np.isfinite(result.grad_norm)
    assert (opt.count, opt.state["a"].t, opt["a"].data[0]) == (1, 0, 1)
    assert not opt.state["b"]["m"].any()
    opt = Adam({"a": ones(3), "b": ones(3)}, lr=0.1, engine=engine)
    assert opt.step(grads).applied
    assert np.isfinite(opt["a"].data).all()
    assert np.isnan(opt["b"].data[1])


def test_row_17_inf_and_clipping_by_the_norm(engine):
    grads = {"a": ones(3), "b": np.array([np.inf], np.float32)}
    for policy, a in [("skip", 1.0), ("allow", 0.0)]:
        params = {"a": ones(3), "b": ones(1)}
        SGD(params, lr=1.0, nonfinite=policy, transforms=[transforms.ClipByGlobalNorm(0.5)], engine=engine).step(grads)
        assert params["a"].tolist() == [a] * 3, "an Inf elsewhere turns nothing to NaN or 0"


def test_row_18_gradients_that_are_all_zero(engine):
    params = {"a": ones(3), "b": np.zeros(3, np.float32)}
    zero = {"a": 0 * ones(3), "b": 0 * ones(3)}
    result = SGD(params, lr=1.0, transforms=[transforms.ClipByGlobalNorm(1.0)], engine=engine).step(zero)
    assert (result.applied, result.grad_norm) == (True, 0.0)
    Trust(params, engine=engine).step(zero)
    Trust(params, engine=engine).step({"b": ones(3)})
    assert (params["a"].tolist(), params["b"].tolist()) == ([1, 1, 1], [0, 0, 0])


@pytest.mark.parametrize(("dtype", "value"), [("float32", 1e38), ("float64", 1e300), ("float32", 1e-44), ("float64", 1e-300)])
def test_row_19_norms_of_finite_numbers_are_finite_and_right(engine, dtype, value):
    g = np.full(9, value, dtype)
    result = SGD(np.ones(9, dtype), lr=1.0, nonfinite="raise", engine=engine).step(g)
    assert result.grad_norm == pytest.approx(3 * float(g[0]), rel=1e-12)
    w = np.zeros(9, dtype)
    SGD(w, lr=1.0, transforms=[transforms.ClipByGlobalNorm(0.75)], engine=engine).step(g)
    np.testing.assert_allclose(w, -min(0.25, float(g[0])), rtol=1e-6)


def test_row_20_tiny_and_zero_gradients_give_no_nan(engine):
    for value in (0.0, 1e-45, 1e-30):
        w = ones(5)
        opt = Adam(w, lr=0.1, amsgrad=True, engine=engine)
        for _ in range(3):
            opt.step(np.full(5, value, np.float32))
        assert w.tolist() == [1.0] * 5, "a step far below the precision of the weight, and not 0/0"


def test_row_21_no_gradients_at_all(engine):
    params = {"a": ones(3), "b": ones(1)}
    opt = Adam(params, engine=engine)
    for grads in ({}, {"a": None}, {"a": None, "b": None}):
        result = opt.step(grads)
        assert (result.applied, result.grad_norm) == (False, None)
    assert (opt.state["a"].t, opt.count, params["a"][0]) == (0, 3, 1)


@pytest.mark.parametrize("order", [("empty", "w", "v"), ("w", "empty", "v"), ("w", "v", "empty")])
def test_row_22_an_empty_parameter_is_a_no_op_by_itself(engine, order):
    params = {name: ones(0, 3) if name == "empty" else ones(3) for name in order}
    opt = AdamW(params, lr=0.5, weight_decay=0.0, transforms=[transforms.ClipByGlobalNorm(10.0)], engine=engine)
    result = opt.step({name: np.ones_like(w) for name, w in params.items()}, zero_grad=True)
    assert result.grad_norm == pytest.approx(np.sqrt(6))
    assert params["w"].tolist() == params["v"].tolist() == pytest.approx([0.5] * 3)
    alone = Adam({"empty": ones(0)}, nonfinite="raise", engine=engine)
    assert alone.step({"empty": ones(0)}).grad_norm == 0.0


def test_row_23_a_variance_below_zero_by_rounding(engine):
    for seed in range(3):
        w = np.zeros(1000, np.float32)
        opt = optimkit.RMSProp(w, lr=0.1, centered=True, eps=1e-8, alpha=0.5, engine=engine)
        g = np.random.default_rng(seed).normal(size=1000).astype(np.float32)
        for _ in range(40):  # a constant gradient: the variance is 0 but for rounding
            opt.step(g)
        assert not np.isnan(w).any()


def test_row_24_the_buffer_is_the_callers_after_the_step(engine):
    w, g = ones(4), ones(4)
    opt = SGD(w, lr=1.0, momentum=0.5, engine=engine)
    opt.step(g)
    g[...] = 99
    assert opt.state["0"]["b"].tolist() == [1, 1, 1, 1]
    assert w.tolist() == [0, 0, 0, 0]
    references = sys.getrefcount(g)
    opt.step(g)
    opt.step([None])
    gc.collect()
    assert sys.getrefcount(g) == references
    opt.step(ones(4))
    assert w[0] == 0 - 99.5 - (99.5 / 2 + 1)


def test_row_25_the_count_is_a_python_int_that_does_not_saturate(engine):
    opt = Adam({"w": ones(2)}, engine=engine)
    saved = opt.state_dict()
    saved["state"]["w"]["t"] = 2**40
    opt.load_state_dict(saved)
    for _ in range(2):
        opt.step({"w": ones(2)})
    assert opt.state["w"].t == 2**40 + 2
    assert type(opt.state_dict()["state"]["w"]["t"]) is int
    assert np.isfinite(opt["w"].data).all()


def test_row_26_a_skipped_step_says_so_to_whoever_drives_the_scheduler(engine):
    opt = SGD({"w": ones(2)}, lr=1.0, nonfinite="skip", engine=engine)
    scheduler = lr_scheduler.ExponentialLR(opt, gamma=0.5)
    for g in (ones(2), np.nan * ones(2), ones(2)):
        if opt.step({"w": g}).applied:
            scheduler.step()
    assert (opt.lr, opt["w"].data[0]) == (0.25, 1 - 1 - 0.5)


@needs_torch
def test_gradients_of_tensors(engine):
    w = torch.ones(3, 2, requires_grad=True)
    opt = SGD({"w": w}, lr=1.0, engine=engine)
    (w * torch.arange(6.0).reshape(2, 3).T).sum().backward()
    assert not w.grad.is_contiguous() or w.grad.stride() == (2, 1)
    opt.step()
    assert w.tolist() == [[1, -2], [0, -3], [-1, -4]]
    for bad, message in [
        (torch.ones(3), r"has shape \(3,\), its weight \(3, 2\)"),
        (np.ones((3, 2)), r"is a numpy array.*its weight a torch array; convert it to torch"),
        (torch.ones(3, 2, dtype=torch.int64), r"is int64"),
        (torch.ones(3, 2, device="meta"), r"on meta, its weight on cpu"),
    ]:
        with pytest.raises((TypeError, ValueError), match=f"gradient of 'w'.*{message}|gradient of 'w' {message}"):
            opt.step({"w": bad})


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_only_gradients_are_named_whatever_else_a_rule_takes_the_norm_of(dtype, maximize, engine):
    class Trust(Optimizer):
        lr: Scalar = 0.1

        def update(self, w, g, s, h, xp):
            return h.lr * g / (1 + norm(-w) + norm(-g))

    params = {"a": np.ones(3, dtype), "b": np.full(3, np.inf, dtype)}
    opt = Trust(params, nonfinite="raise", maximize=maximize, engine=engine)
    with pytest.raises(NonFiniteGradientError, match="the gradient of 'a' has NaN or Inf"):
        opt.step({"a": np.array([1, np.nan, 1], dtype), "b": np.ones(3, dtype)})
