"""Numbers that are lost in the dtype in which weights are computed are refused before anything is written (fault 48)."""

from __future__ import annotations

import numpy as np
import pytest

from optimkit import L2, SGD, Adam
from optimkit.transforms import ClipByValue


def check_functional(make, message, backend):
    """A number that a jitted function alone knows is not checked; one that is known is."""
    w, rule = backend.make(np.ones(3), "float32"), make(None)
    state = rule.init(w)
    if callable(rule._run.first.values["lr"]):  # it is right at first
        _, state = rule.apply(w, w, state)
    with pytest.raises(ValueError, match=message):
        rule.apply(w, w, state)
    if backend.library == "jax":
        jax = pytest.importorskip("jax")
        if not callable(rule._run.first.values["lr"]):
            with pytest.raises(ValueError, match=message):
                jax.jit(rule.apply)(w, w, rule.init(w))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: Adam(w, eps=1e-50), r"Adam: eps = 1e-50 is 0.0 in float32, .* 0 or a number from 1.4e-45 to 3.4e\+38"),
        (lambda w: SGD(w, lr=1e39), r"SGD: lr = 1e\+39 is inf in float32"),
        (lambda w: SGD(w, lr=lambda t: 1e-50 if t else 0.1), r"SGD: lr = 1e-50 is 0.0 in float32"),
        (lambda w: Adam(w, betas=(1e-50, 0.999)), r"Adam: betas\[0\] = 1e-50 is 0.0 in float32"),
        (lambda w: SGD(w, lr=0.1, penalty=L2(1e-60)), r"L2: .* = 1e-60 is 0.0 in float32"),
        (lambda w: SGD(w, lr=0.1, transforms=[ClipByValue(1e300)]), r"ClipByValue: .* = 1e\+300 is inf in float32"),
    ],
)
def test_a_number_that_vanishes_is_refused(make, message, optimkit_backend):
    if optimkit_backend.functional:
        check_functional(make, message, optimkit_backend)
        return
    w, g = (optimkit_backend.make(np.ones(3), "float32") for _ in range(2))
    opt = make(w)
    steps = int(callable(opt.lr) or "lambda" in repr(opt))
    for _ in range(steps):
        opt.step(g)
    before = np.array(optimkit_backend.to_numpy(w))
    with pytest.raises(ValueError, match=message):
        opt.step(g)
    assert opt.count == opt.state["0"].t == steps
    assert (optimkit_backend.to_numpy(w) == before).all()
    wide = make(optimkit_backend.make(np.ones(3), "float64"))
    wide.step(optimkit_backend.make(np.ones(3), "float64"))


def test_a_number_that_is_set_is_refused_in_the_next_step_and_can_be_set_back():
    w = np.ones(3, np.float32)
    opt = Adam(w, lr=0.1)
    for _ in range(3):
        opt.step(w * 0 + 1)
    before = w.copy()
    opt.lr = 1e-50
    with pytest.raises(ValueError, match=r"Adam: lr = 1e-50 is 0\.0 in float32"):
        opt.step(np.ones(3, np.float32))
    assert (w == before).all()
    opt.lr = 0.1
    opt.step(np.ones(3, np.float32))
    assert opt.count == 4
