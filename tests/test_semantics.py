"""Conventions of formulas where libraries differ, each pinned by numbers that tell ours from the others'.

All numbers can be checked by hand, or are measured from the library that is named. The engines agree to the bit
(`test_matrix`), so one is enough here.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

import optimkit
from optimkit import L1, L2
from optimkit.transforms import ClipByGlobalNorm, ClipByValue, WeightDecay

SGD, Adam, AdamW, AMSGrad, Adagrad, RMSProp = (
    partial(getattr(optimkit, name), engine="eager") for name in ("SGD", "Adam", "AdamW", "AMSGrad", "Adagrad", "RMSProp")
)


def run(make, grads, start=0.0):
    """The weight, one number, after steps with these gradients; a function gets the weight."""
    w = np.array([start])
    opt = make(w)
    for g in grads:
        opt.step(np.array([float(g(w[0]) if callable(g) else g)]))
    return float(w[0])


def near(x):
    return pytest.approx(x, rel=1e-12, abs=1e-15)


# ---- penalties


def test_l2_is_the_gradient_of_lambda_w_squared():
    """2 * lambda * w, as neuronika and keras; torch, optax and chainer would give 0.9."""
    assert run(lambda w: SGD(w, lr=1.0, penalty=L2(0.1)), [0.0], start=1.0) == near(0.8)
    assert L2(0.1).value(np.array([1.0, -2.0])) == near(0.5)


def test_the_sign_of_zero_is_zero():
    """Rust's signum(0) is 1, and would move the weight to -0.5."""
    assert run(lambda w: SGD(w, lr=1.0, penalty=L1(0.5)), [0.0], start=0.0) == 0.0
    assert run(lambda w: SGD(w, lr=1.0, penalty=L1(0.5)), [0.0], start=-2.0) == -1.5


def test_the_gradient_buffer_is_never_written():
    """Libraries that add the penalty into the buffer add it twice in the second step: 0.56 instead of 0.64."""
    w, g = np.array([1.0]), np.array([0.0])
    opt = SGD(w, lr=1.0, penalty=L2(0.1), transforms=[ClipByValue(1.0)], maximize=True)
    opt.step(g)
    assert g[0] == 0.0
    opt.step(g)
    assert w[0] == near(0.64)


def test_the_penalty_comes_after_clipping():
    """Clipped to 1, then 2 * 5 added: 11. The other way round it would be 1."""
    assert run(lambda w: SGD(w, lr=1.0, penalty=L2(0.5), transforms=[ClipByValue(1.0)]), [3.0], start=10.0) == near(-1.0)


def test_maximize_turns_the_gradient_before_the_penalty():
    """The penalty still shrinks: 1 + 0.1 * (2 - 0.5)."""
    assert run(lambda w: SGD(w, lr=0.1, maximize=True, penalty=L2(0.25)), [2.0], start=1.0) == near(1.15)


# ---- Adam


def test_adams_eps_is_added_to_the_corrected_root():
    """g = eps = 1: 0.1 / (1 + 1). On the uncorrected root (keras, chainer, thinc) it would be -0.0031, inside -0.0707."""
    assert run(lambda w: Adam(w, lr=0.1, eps=1.0), [1.0]) == near(-0.05)


def test_the_bias_is_corrected_per_paper():
    """The first step is lr whatever the gradient; without the correction (mlx) it would be 0.316 of it."""
    for g in (1e-3, 1.0, 1e3):
        assert run(lambda w: Adam(w, lr=0.1, eps=0.0), [g]) == near(-0.1)
    assert run(lambda w: Adam(w, lr=0.1, betas=(0.5, 0.5), eps=0.0), [1.0, -1.0]) == near(-0.1 - 0.1 * (-0.25 / 0.75) / 1.0)


def test_amsgrads_maximum_is_over_the_raw_second_moment():
    """Over the corrected one (optax) the first gradient rules for longer: -0.266 (measured)."""
    grads = [10.0] + [0.1] * 9
    assert run(lambda w: AMSGrad(w, lr=0.1), grads) == pytest.approx(-0.436, abs=5e-4)
    assert run(lambda w: AMSGrad(w, lr=0.1), grads) == run(lambda w: Adam(w, lr=0.1, amsgrad=True), grads)


def test_decoupled_decay_has_the_factor_lr_and_the_weight_before_the_step():
    """0.1 * 0.5 * 2, not 0.5 * 2 (chainer), and outside of the moments, where it would vanish in the division."""
    assert run(lambda w: AdamW(w, lr=0.1, weight_decay=0.5), [0.0], start=2.0) == near(1.9)
    assert run(lambda w: AdamW(w, lr=0.1, weight_decay=0.5, eps=0.0), [1.0], start=2.0) == near(2.0 - 0.1 - 0.1)
    assert run(lambda w: SGD(w, lr=0.5, transforms=[WeightDecay(0.5)]), [2.0], start=1.0) == near(1.0 - 1.0 - 0.25)


def test_the_step_count_is_the_parameters_own():
    """With a global count (optax, mlx, keras) the late parameter's first step would not be lr."""
    params = {"early": np.zeros(1), "late": np.zeros(1)}
    opt = Adam(params, lr=0.1, eps=0.0)
    for _ in range(3):
        opt.step({"early": np.ones(1)})
    opt.step({"early": np.ones(1), "late": np.full(1, 5.0)})
    assert params["late"][0] == near(-0.1)
    assert (opt.state["early"].t, opt.state["late"].t, opt.count) == (4, 1, 4)


# ---- RMSProp and Adagrad


def test_rmsprops_eps_is_outside_of_the_root():
    """v = 0.25 * 4 = 1: 1 / (1 + 1). Inside (keras, optax) it would be 1.414 and 0.0707."""
    assert run(lambda w: RMSProp(w, lr=0.1, alpha=0.75, eps=1.0), [2.0]) == near(-0.1)


def test_rmsprops_buffer_is_without_the_rate():
    """lr 0.1, then 0.01: the new rate multiplies the old buffer too. With lr in the buffer (keras, optax) it would not."""
    w = np.zeros(1)
    opt = RMSProp(w, lr=0.1, alpha=0.0, eps=0.0, momentum=0.5)
    opt.step(np.ones(1))
    opt.lr = 0.01
    opt.step(np.ones(1))
    assert w[0] == near(-0.1 - 0.01 * 1.5)


def test_a_centered_second_moment_below_zero_is_zero():
    """v - m^2 rounds below 0 for constant gradients; torch and neuronika take its root: NaN (fault 23)."""
    g = np.linspace(0.1, 0.9, 100, dtype=np.float32)
    w = np.zeros_like(g)
    opt = RMSProp(w, lr=1e-3, alpha=0.9, eps=1e-3, centered=True)
    below = 0
    for _ in range(300):
        opt.step(g)
        state = opt.state["0"]
        below += int((state["v"] - state["m"] * state["m"] < 0).sum())
        assert np.isfinite(w).all()
    assert below > 0


def test_adagrads_eps_start_and_decay():
    """eps outside, start 0 by default, lr / (1 + (t - 1) * lr_decay)."""
    assert run(lambda w: Adagrad(w, lr=1.0, eps=1.0), [2.0]) == near(-2 / 3)  # inside (keras, optax) it would be -0.894
    assert run(lambda w: Adagrad(w, lr=1.0, eps=0.0, initial_accumulator_value=5.0), [2.0]) == near(-2 / 3)
    second = -1.0 - 1.0 / (1 + 0.5) * 2.0 / math.sqrt(8.0)
    assert run(lambda w: Adagrad(w, lr=1.0, lr_decay=0.5, eps=0.0), [2.0, 2.0]) == near(second)
    assert Adagrad(np.zeros(1)).eps == 1e-10


# ---- momentum


def test_nesterov_is_g_plus_mu_times_the_new_buffer():
    """f = w^2 / 2 from 1; chainer's form would end at another place."""
    w, b, c, v = 1.0, 0.0, 1.0, 0.0
    for _ in range(4):
        b = 0.9 * b + w
        w -= 0.1 * (w + 0.9 * b)
        v = 0.9 * v - 0.1 * c
        c += 0.81 * v - 1.9 * 0.1 * c
    found = run(lambda x: SGD(x, lr=0.1, momentum=0.9, nesterov=True), [lambda x: x] * 4, start=1.0)
    assert found == near(w) == near(0.09388791)
    assert abs(c - w) > 0.05


def test_the_first_momentum_step_with_dampening_starts_from_zeros():
    """(1 - 0.5) * g: 0.95. torch's first buffer is g: 0.90 (measured)."""
    assert run(lambda w: SGD(w, lr=0.1, momentum=0.9, dampening=0.5), [1.0], start=1.0) == near(0.95)


def test_dampening_with_nesterov_is_an_error():
    with pytest.raises(ValueError, match=r"SGD: dampening = 0\.5 must be 0\.0 with nesterov = True"):
        SGD(np.zeros(1), lr=0.1, momentum=0.9, dampening=0.5, nesterov=True)


def test_no_momentum_is_none_and_zero_is_a_number():
    assert list(SGD(np.zeros(1), lr=0.1).state["0"]) == []
    w = np.zeros(1)
    opt = SGD(w, lr=0.1, momentum=0.0)
    opt.step(np.ones(1))
    assert opt.state["0"]["b"].tolist() == [1.0]
    opt.momentum = 0.5
    opt.step(np.ones(1))
    assert w[0] == near(-0.1 - 0.15)


# ---- clipping


def test_clipping_by_the_global_norm_is_exact():
    """A gradient of norm 5 clipped to 1; torch divides by 5 + 1e-6 and stays below."""
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    result = SGD(params, lr=1.0, transforms=[ClipByGlobalNorm(1.0)]).step({"a": np.array([3.0]), "b": np.array([4.0])})
    assert (params["a"][0], params["b"][0], result.grad_norm) == (-3 * (1 / 5), -4 * (1 / 5), 5.0)


def test_a_norm_of_zero_or_at_the_limit_is_no_clip():  # fault 18
    assert run(lambda w: SGD(w, lr=1.0, transforms=[ClipByGlobalNorm(1.0)]), [0.0], start=1.0) == 1.0
    assert run(lambda w: SGD(w, lr=1.0, transforms=[ClipByGlobalNorm(0.1)]), [0.1]) == -0.1
    assert run(lambda w: SGD(w, lr=1.0, transforms=[ClipByGlobalNorm(0.0)]), [3.0]) == 0.0


def test_a_norm_that_is_not_finite_clips_nothing():
    """g * (max / inf) would turn everything to 0 or NaN, silently [pytorch#46849] (fault 17)."""
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    opt = SGD(params, lr=1.0, transforms=[ClipByGlobalNorm(1.0)])
    opt.step({"a": np.array([np.inf]), "b": np.array([0.5])})
    assert params["b"][0] == -0.5


def test_totals_are_over_the_parameters_that_have_a_gradient():
    """The buffers of all would give norm 5 and scale the second step."""
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    opt = SGD(params, lr=1.0, transforms=[ClipByGlobalNorm(4.0)])
    opt.step({"a": np.array([3.0]), "b": np.array([4.0])})
    assert opt.step({"b": np.array([4.0])}).grad_norm == 4.0
    assert params["b"][0] == near(-4 * 0.8 - 4)
