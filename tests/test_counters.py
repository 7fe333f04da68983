"""What must not happen, counted: traces and compiles while numbers change, checks of gradients that stay."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

import optimkit
from optimkit import L2, Optimizer, Scalar, Transform, counters, schedules, zeros
from optimkit.transforms import ClipByGlobalNorm


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """A cache folder of its own, so that a compile is a compile; what all rules share is compiled before."""
    shared = optimkit.SGD(params(), lr=0.1, transforms=[ClipByGlobalNorm(1.0)])
    for _ in range(2):
        shared.step(grads())
    tmp_path.chmod(0o700)
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path))
    return tmp_path


def make_rule(name):
    """A class that was never traced, with a kernel that was never compiled: its name stands in the text."""

    def slots(self):
        return {"m": zeros}

    def update(self, w, g, s, h, xp):
        m = h.beta * s.m + (1 - h.beta) * g
        return h.lr / (1 - h.beta**h.t) * (-m if self.turned else m), {"m": m}

    fields = {"__annotations__": {"lr": Scalar, "beta": Scalar, "turned": bool}, "lr": 0.1, "beta": 0.9, "turned": False}
    return type(name, (Optimizer,), {"slots": slots, "update": update, **fields})


class Count:
    """What was counted since the last look."""

    def __init__(self):
        self.look()

    def look(self):
        now = (counters.traces, counters.compiles, counters.cache_hits)
        found = tuple(b - a for a, b in zip(getattr(self, "before", now), now, strict=True))
        self.before = now
        return dict(zip(["traces", "compiles", "cache_hits"], found, strict=True))


NONE = {"traces": 0, "compiles": 0, "cache_hits": 0}


def params():
    return {"W": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}


def grads():
    return {"W": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}


def test_one_trace_and_one_compile_while_numbers_change_every_step(fresh_cache):
    cls = make_rule("ChangesEveryStep")
    count = Count()
    opt = cls(params())
    opt.step(grads())
    assert count.look() == {"traces": 1, "compiles": 1, "cache_hits": 0}
    opt.step(grads())
    assert count.look() == {"traces": 0, "compiles": 1, "cache_hits": 0}  # what fills its rows of numbers in a warm step
    for step in range(20):
        opt.lr = 0.1 / (1 + step)
        opt.beta = 0.5 + step / 100
        opt.step(grads())
    opt.lr = schedules.exponential(0.1, 0.9)
    opt.step(grads())
    with pytest.warns(RuntimeWarning, match="the schedule .* of lr was replaced by a number"):
        opt.set(where="b", lr=0.5)  # another group: another row of the table
    opt.step(grads())
    optimkit.lr_scheduler.StepLR(opt, 1, 0.5).step()
    opt.step({"W": grads()["W"]})
    opt.step(grads(), zero_grad=True)
    assert count.look() == NONE
    assert opt.state["W"].t == 26


def test_structure_makes_another_kernel_once(fresh_cache):
    cls = make_rule("ChangesStructure")
    opt = cls(params())
    opt.step(grads())
    count = Count()
    opt.turned = True
    opt.step(grads())
    assert count.look() == {"traces": 1, "compiles": 1, "cache_hits": 0}
    opt.turned = False
    opt.step(grads())
    assert count.look() == NONE


def test_another_optimizer_of_the_class_shares_trace_and_kernel(fresh_cache):
    cls = make_rule("IsShared")
    cls(params(), lr=0.5).step(grads())
    count = Count()
    opt = cls(params(), lr=0.25, beta=0.5)
    opt.step(grads())
    assert count.look() == NONE
    cls({"x": np.ones((7, 7, 7), np.float32)}).step({"x": np.ones((7, 7, 7), np.float32)})
    assert count.look() == NONE
    cls(np.ones(3)).step(np.ones(3))  # another dtype: another kernel
    assert count.look()["compiles"] == 1


def test_a_kernel_is_kept_on_disk(fresh_cache, monkeypatch):
    from optimkit.engines.cpu import kernels

    cls = make_rule("IsKept")
    cls(params()).step(grads())
    assert list(fresh_cache.glob("*"))
    count = Count()
    monkeypatch.setattr(kernels, "_compiled", OrderedDict())  # as in another process
    cls(params()).step(grads())
    found = count.look()
    assert found["compiles"] == 0
    assert found["cache_hits"] >= 1


def test_numbers_of_links_and_penalties_compile_nothing(fresh_cache):
    class Scale(Transform):
        rate: Scalar = 1.0

        def step(self, w, d, s, h, xp):
            return h.rate * d

    clip, scale, penalty = ClipByGlobalNorm(1.0), Scale(), L2(0.1)
    opt = make_rule("HasLinks")(params(), transforms=[clip, scale], penalty=penalty)
    opt.step(grads())
    opt.step(grads())
    w = opt["W"].data.copy()
    count = Count()
    clip.max_norm, scale.rate, penalty.l2 = 0.5, 0.0, 0.2
    opt.step(grads())
    assert count.look() == NONE
    np.testing.assert_array_equal(opt["W"].data, w)  # and the new rate, 0, was used


def test_gradients_that_look_the_same_are_not_checked_again():
    opt = make_rule("KeepsGradients")(params())
    opt.step(grads())
    before = counters.gradients_checked
    for _ in range(5):
        opt.step(grads())
    assert counters.gradients_checked == before
    opt.step({**grads(), "b": np.zeros(2)})  # another dtype
    assert counters.gradients_checked == before + 1


def test_the_eager_engine_compiles_nothing():
    cls = make_rule("IsEager")
    count = Count()
    cls(params(), engine="eager").step(grads())
    assert count.look() == {"traces": 1, "compiles": 0, "cache_hits": 0}


def test_a_warm_step_allocates_little():
    """Nothing of the size of the parameters: under 1 MB for 8 MB of weights."""
    import tracemalloc

    for engine in ("llvm", "eager"):
        big = np.zeros(2_000_000, np.float32)
        opt = optimkit.AdamW(big, engine=engine, transforms=[ClipByGlobalNorm(1.0)])
        g = np.ones_like(big)
        for _ in range(3):
            opt.step(g)
        tracemalloc.start()
        opt.step(g)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if engine == "llvm":
            assert peak < 1 << 20, engine
        else:  # buffers of 64k elements are kept; reductions widen a slice to float64
            assert peak < 8 << 20, engine
