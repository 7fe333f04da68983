"""The oracle: a rule's own `update` on NumPy arrays and Python floats, without the graph that it is to judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimizers import CASES, make

import optimkit
from optimkit import Adam, Optimizer, Scalar, total, zeros
from optimkit.fusion.graph import Graph
from optimkit.fusion.trace import Traced
from optimkit.testing import BACKENDS, Oracle
from optimkit.testing.oracle import memory_order
from optimkit.testing.scalars import HostCount, HostNumber
from optimkit.transforms import ClipByGlobalNorm, ClipByValue

FLOATS = st.floats(allow_nan=True, allow_infinity=True)


def test_adam_written_out_in_numpy_has_the_bits_of_the_oracle():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        w = rng.normal(size=50).astype(dtype)
        oracle = Oracle(Adam(w.copy(), lr=0.01, betas=(0.9, 0.999), eps=1e-8, engine="eager"))
        m, v = np.zeros_like(w), np.zeros_like(w)
        for t in range(1, 8):
            g = (rng.normal(size=50) * 10.0 ** rng.uniform(-13, 2, size=50)).astype(dtype)
            b1, b2 = powers(0.9, t), powers(0.999, t)
            m = dtype(0.9) * m + dtype(1 - 0.9) * g
            v = dtype(0.999) * v + dtype(1 - 0.999) * (g * g)
            c = math.sqrt(1 - b2)
            w = w - dtype(0.01 / (1 - b1) * c) * m / (np.sqrt(v) + dtype(1e-8 * c))
            oracle.step({"0": g})
            np.testing.assert_array_equal(oracle.params["0"], w)
            np.testing.assert_array_equal(oracle.state["0"]["v"], v)
        assert oracle.t == {"0": 7}


def powers(base, t):
    """base ** t by binary powering, as the host computes it."""
    result, square = 1.0, base
    while t:
        result, square, t = result * square if t & 1 else result, square * square, t >> 1
    return result


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_uses_no_graph(name, monkeypatch):
    params = {"a strided one": np.ones(4), "b": np.full((2, 2), -0.5)}
    opt = make(name, params, engine="eager")

    def fail(*args, **kwargs):
        raise AssertionError("the graph was used")

    monkeypatch.setattr(Graph, "_intern", fail)
    monkeypatch.setattr(Traced, "_apply", fail)
    oracle = Oracle(opt)
    for _ in range(2):
        assert oracle.step({key: np.full(w.shape, 0.7) for key, w in params.items()})
    assert not np.array_equal(oracle.params["b"], params["b"])
    assert params["b"][0, 0] == -0.5  # the optimizer's own arrays are copied
    assert opt.count == 0


def test_a_rule_that_writes_into_its_arguments_fails():
    class Writes(Optimizer):
        def slots(self):
            return {"m": zeros}

        def update(self, w, g, s, h, xp):
            g[...] = 0.0
            return g, {"m": s.m}

    with pytest.raises(ValueError, match="read-only"):
        Oracle(Writes(np.ones(3), engine="eager")).step({"0": np.ones(3)})


def test_a_rule_that_promotes_fails():
    class Promotes(Optimizer):
        def update(self, w, g, s, h, xp):
            return np.float64(0.5) * np.asarray(g, np.float64)

    with pytest.raises(TypeError, match="turned float32 arrays into float64"):
        Oracle(Promotes(np.ones(3, np.float32), engine="eager")).step({"0": np.ones(3)})


@pytest.mark.parametrize("layout", BACKENDS["numpy-eager"].layouts)
def test_memory_order_sorts_by_address(layout):
    x = BACKENDS["numpy-eager"].make(np.arange(24.0).reshape(2, 3, 4), "float64", layout)
    base = x if x.base is None else x.base
    start = base.__array_interface__["data"][0]
    addresses = [x[index : index + 1].__array_interface__["data"][0] - start for index in range(2)]
    assert (memory_order(x)[0] < 12) == (addresses[0] < addresses[1])
    whole = np.lib.stride_tricks.as_strided(base, base.shape, base.strides).ravel(order="K")
    expected = whole[~np.isnan(whole)]
    np.testing.assert_array_equal(x.reshape(-1)[memory_order(x)], expected)


def test_totals_that_depend_on_totals_settle():
    class Nested(Optimizer):
        def slots(self):
            return dict.fromkeys(["a", "b"], zeros.per("optimizer"))

        def update(self, w, g, s, h, xp):
            a = total(g)
            b = total(g * a + 1.0)
            return w * 0.0, {"a": a, "b": b}

    oracle = Oracle(Nested({"x": np.zeros(2), "y": np.zeros(3)}, engine="eager"))
    oracle.step({"x": np.array([1.0, 2.0]), "y": np.ones(3)})
    assert oracle.shared == {"a": 6.0, "b": 6.0 * 6.0 + 5}


def test_the_oracle_follows_groups_schedules_where_frozen_and_policies():
    params = {"a": np.zeros(1), "b": np.zeros(1), "c": np.zeros(1)}
    groups = [{"params": {"a": params["a"]}, "lr": lambda count: 1.0 + count}, {"params": {"b": params["b"], "c": params["c"]}}]
    opt = optimkit.SGD(groups, lr=0.5, transforms=[ClipByValue(0.1, where="b")], nonfinite="skip", engine="eager")
    opt.freeze("c")
    scheduler = optimkit.lr_scheduler.ExponentialLR(opt, 0.5)
    scheduler.step()
    oracle = Oracle(opt)
    for value in (1.0, np.nan, 1.0):
        grads = {name: np.full(1, value) for name in params}
        assert oracle.step(grads) == opt.step(grads).applied
    assert oracle.params == {"a": [-0.5 - 1.5], "b": [-0.05], "c": [0.0]}
    assert {name: w.tolist() for name, w in params.items()} == {"a": [-2.0], "b": [-0.05], "c": [0.0]}
    assert oracle.t == {"a": 2, "b": 2, "c": 0}


def test_a_norm_over_all_is_seen_by_every_parameter():
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    oracle = Oracle(optimkit.SGD(params, lr=1.0, transforms=[ClipByGlobalNorm(1.0)], engine="eager"))
    oracle.step({"a": np.array([3.0]), "b": np.array([4.0])})
    assert oracle.params == {"a": [-3.0 * (1 / 5)], "b": [-4.0 * (1 / 5)]}


# ---- its numbers


@given(a=FLOATS, b=FLOATS)
def test_numbers_follow_ieee(a, b):
    x, y, p, q = HostNumber(a), HostNumber(b), np.float64(a), np.float64(b)
    with np.errstate(all="ignore"):
        pairs = [(x + y, p + q), (x - b, p - q), (a - y, p - q), (x * y, p * q), (x / y, p / q), (a / y, p / q)]
        pairs += [(-x, -p), (abs(x), abs(p))]
        assert [bool(x < y), bool(x >= b), bool(a == y), bool(x != y)] == [p < q, p >= q, p == q, p != q]
    for got, expected in pairs:
        assert isinstance(got, HostNumber)
        equal = float(got) == expected and math.copysign(1, got) == np.copysign(1, expected)
        assert equal or (math.isnan(got) and np.isnan(expected))


def test_numbers_become_the_dtype_of_the_array_they_meet():
    g = np.ones(3, np.float32)
    for value in (HostNumber(0.1) * g, g * HostNumber(0.1), g / HostNumber(0.1), 1 - g * HostNumber(0.1), g ** HostNumber(2.0)):
        assert value.dtype == np.float32
    np.testing.assert_array_equal(g * HostNumber(1 - 0.999), g * np.float32(1 - 0.999))


def test_counts_are_whole_as_long_as_whole_numbers_meet():
    t = HostCount(3)
    assert isinstance(t - 1, HostCount)
    assert isinstance(2 * t + 1, HostCount)
    assert not isinstance(t / 2, HostCount)
    assert not isinstance(t * 0.5, HostCount)
    assert float(HostNumber(0.9) ** t) == powers(0.9, 3)
    assert float(HostNumber(0.9) ** (t - 4)) == 1 / 0.9
    assert float(HostNumber(2.0) ** -1) == 0.5


class Line(Optimizer):
    lr: Scalar = 0.5

    def update(self, w, g, s, h, xp):
        return h.lr * g


def test_an_oracle_starts_from_the_weights_as_they_are():
    w = np.ones(2)
    opt = Line(w, engine="eager")
    opt.step(np.ones(2))
    oracle = Oracle(opt)
    oracle.step({"0": np.ones(2)})
    assert oracle.params["0"].tolist() == [0.0, 0.0]
    assert w.tolist() == [0.5, 0.5]
