"""Conventions of a step where libraries differ: numbers and counts, gradients and state, the order of the chain. Those of the
formulas are in `test_semantics`."""

from __future__ import annotations

import numpy as np
import pytest
from test_semantics import SGD, Adam, near

import optimkit
from optimkit import Optimizer, Param, Scalar
from optimkit.testing import Oracle
from optimkit.transforms import WeightDecay

# ---- numbers, counts, schedules


def test_a_schedule_sees_the_count_of_steps_from_zero_skipped_ones_too():
    seen = []

    def rate(count):
        seen.append(count)
        return 1.0 / (1 + count)

    w = np.zeros(1)
    opt = SGD(w, lr=rate, nonfinite="skip")
    for g in (1.0, np.inf, 1.0):
        opt.step(np.array([g]))
    assert sorted(set(seen)) == [0, 1, 2]
    assert w[0] == near(-1.0 - 1 / 3)


def test_setting_the_rate_sets_what_is_read_and_replaces_a_schedule():
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    opt = SGD(params, lr=lambda count: 0.5)
    with pytest.warns(RuntimeWarning, match="the schedule .* of lr was replaced by a number"):
        opt.set(where="b", lr=0.25)
    assert opt.lr == [0.5, 0.25]
    with pytest.warns(RuntimeWarning, match="the schedule .* of lr was replaced by a number"):
        opt.lr = 0.1
    assert opt.lr == 0.1
    scheduler = optimkit.lr_scheduler.ExponentialLR(opt, 0.5)
    scheduler.step()
    opt.lr = 1.0  # torch's schedulers would write their own rate over it
    assert opt.lr == 1.0
    opt.step({"a": np.ones(1)})
    assert params["a"][0] == -1.0
    scheduler.step()
    assert opt.lr == 0.5


def test_numbers_stay_float64_until_they_meet_an_element():
    """1 - float32(0.999) is off by 1.3e-5; the first step of Adam would be too."""
    w = np.zeros(1, np.float32)
    Adam(w, lr=1.0, betas=(0.0, 0.9999), eps=0.0).step(np.ones(1, np.float32))
    assert w[0] == -1.0
    assert type(Adam(w, lr=np.float64(0.5)).lr) is float  # fault 6: nothing promotes float32 state
    opt = Adam(w, lr=np.array(0.5))
    opt.step(np.ones(1, np.float32))
    assert opt.state["0"]["m"].dtype == np.float32


# ---- gradients and state


def test_a_gradient_is_zeroed_by_filling():
    """g *= 0 (thinc) keeps NaN."""
    w, g = np.ones(2), np.array([1.0, 2.0])
    SGD(w, lr=0.1).step(g, zero_grad=True)
    assert g.tolist() == [0.0, 0.0]
    p = Param(np.ones(2), np.array([np.nan, np.inf]))
    opt = SGD(p, lr=0.1)
    opt.zero_grad()
    assert p.grad.tolist() == [0.0, 0.0]
    opt.zero_grad(set_to_none=True)
    assert p.grad is None


def test_the_saved_state_is_keyed_by_names_and_keeps_its_dtype():
    params = {"W": np.ones((2, 1), np.float32), "b": np.ones(1)}
    opt = Adam(params)
    opt.step({"W": np.ones((2, 1), np.float32), "b": np.ones(1)})
    saved = opt.state_dict()
    assert list(saved["state"]) == ["W", "b"]
    assert [saved["state"][name]["slots"]["m"].dtype for name in params] == [np.float32, np.float64]
    other = Adam({"W": np.ones((2, 1)), "b": np.ones(1)})
    with pytest.raises(ValueError, match="'W': slot 'm' is float32, here float64"):  # torch casts silently
        other.load_state_dict(saved)


def test_a_gradient_of_another_dtype_is_cast_to_the_weights():
    w = np.zeros(1, np.float32)
    SGD(w, lr=1.0).step(np.array([1 + 1e-12]))
    assert w[0] == -1.0
    assert w.dtype == np.float32


def test_the_step_is_returned_not_recovered_from_weights():
    """At lr 1e-9 the weight 1 does not move in float32, but a step hook still sees the step."""
    seen = []

    class Keep(optimkit.Transform):
        def slots(self):
            return {"d": optimkit.zeros}

        def step(self, w, d, s, h, xp):
            return d, {"d": d}

    w = np.ones(1, np.float32)
    opt = SGD(w, lr=1e-9, transforms=[Keep()])
    opt.step(np.ones(1, np.float32))
    seen.append(float(opt.state["0"]["Keep.d"][0]))
    assert w[0] == 1.0
    assert seen == [pytest.approx(1e-9, rel=1e-6, abs=0)]


# ---- the order of the chain


def test_the_order_of_the_chain():
    """maximize, gradient hooks as listed, penalty, update, step hooks, w - d, weight hooks: each adds a digit."""

    class Digit(optimkit.Transform):
        value: Scalar = 0.0
        hook: str = "gradient"

        def gradient(self, w, g, s, h, xp):
            return 10 * g + h.value if self.hook == "gradient" else g

        def step(self, w, d, s, h, xp):
            return 10 * d + h.value if self.hook == "step" else d

        def weight(self, w, new, s, h, xp):
            return 10 * new - h.value if self.hook == "weight" else new

    class Nine(optimkit.Penalty):
        def penalize(self, w, h, xp):
            return 9.0

    class Own(Optimizer):
        def update(self, w, g, s, h, xp):
            return 10 * g + 3, {}

    links = [Digit(5.0, "weight"), Digit(4.0, "step"), Digit(1.0), Digit(2.0)]
    w = np.zeros(1)
    Own(w, transforms=links, penalty=Nine(), maximize=True, engine="eager").step(np.array([-7.0]))
    assert w[0] == -((((7 * 10 + 1) * 10 + 2 + 9) * 10 + 3) * 10 + 4) * 10 - 5


def test_links_see_their_own_numbers_the_rate_and_the_count():
    class Look(optimkit.Transform):
        rate: Scalar = 0.25

        def step(self, w, d, s, h, xp):
            return h.lr + 10 * h.rate + 100 * h.t

    w = np.zeros(1)
    opt = SGD(w, lr=0.5, transforms=[Look()])
    opt.step(np.ones(1))
    opt.step(np.ones(1))
    assert w[0] == -(0.5 + 2.5 + 100) - (0.5 + 2.5 + 200)


def test_links_go_by_the_name_that_their_own_optimizer_gives():
    """A Param in two optimizers has two names; `where` means that of the optimizer which the link belongs to."""
    p = Param(np.ones(1))
    first = optimkit.SGD({"a": p}, lr=1.0, transforms=[WeightDecay(0.5, where="a")])
    second = optimkit.SGD({"b": p}, lr=1.0, transforms=[WeightDecay(0.25, where="b")])
    assert p.name == "b"
    oracles = [Oracle(first), Oracle(second)]
    first.step({"a": np.zeros(1)})
    assert p.data.tolist() == [0.5]
    second.step({"b": np.zeros(1)})
    assert p.data.tolist() == [0.375]
    oracles[0].step({"a": np.zeros(1)})
    oracles[1].step({"b": np.zeros(1)})
    assert [oracle.params[name].tolist() for oracle, name in zip(oracles, "ab", strict=True)] == [[0.5], [0.75]]
    assert list(first.state["a"]) == list(second.state["b"]) == []
