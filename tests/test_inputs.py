"""Array inputs: `constant` slots, which a kernel reads and no step writes."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import optimkit
import optimkit.testing
from optimkit import Optimizer, Scalar, Transform, constant, zeros
from optimkit.fusion.show import traffic

ENGINES = ["llvm", "eager"]


class Masked(Optimizer):
    lr: Scalar = 0.5

    def slots(self):
        return {"mask": constant, "m": zeros}

    def update(self, w, g, s, h, xp):
        m = 0.5 * s.m + s.mask * g
        return h.lr * m, {"m": m}


class Floor(Transform):
    """A bound of one's own for each element."""

    def slots(self):
        return {"low": constant(-1.0)}

    def weight(self, w, new, s, h, xp):
        return xp.maximum(new, s.low)


def test_the_two_spellings():
    assert (constant.kind, constant.value, constant(0.25).value) == ("constant", 1.0, 0.25)
    assert constant(0.25).is_constant
    assert not zeros.is_constant
    assert constant.real().is_real


@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_read_and_never_written(engine):
    w = np.zeros((3, 2), np.float32)
    opt = Masked({"w": w}, engine=engine, transforms=[Floor()])
    assert (opt.state["w"]["mask"] == 1).all()
    assert (opt.state["w"]["Floor.low"] == -1).all()
    mask, low = np.array([[1, 0], [0.5, 1], [0, 1]], np.float32), np.full((3, 2), -0.625, np.float32)
    opt.state["w"]["mask"][...], opt.state["w"]["Floor.low"][...] = mask, low
    where = opt.state["w"]["mask"].ctypes.data
    for _ in range(3):
        opt.step({"w": np.ones((3, 2), np.float32)})
    np.testing.assert_array_equal(w, np.maximum(-0.5 * (1 + 1.5 + 1.75) * mask, -0.625).astype(np.float32))
    np.testing.assert_array_equal(opt.state["w"]["mask"], mask)
    assert opt.state["w"]["mask"].ctypes.data == where


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mask_in_protected_memory_is_fine(engine):
    """A write would raise in NumPy, and end the process in a kernel."""
    import mmap

    w = np.zeros(1024, np.float32)
    opt = Masked({"w": w}, engine=engine)
    entry = opt._run.entry("w")
    opt.state["w"]  # makes the slots
    pages = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
    entry.slots[0, "mask"] = np.frombuffer(pages, np.float32)  # zeros
    opt.step({"w": np.ones(1024, np.float32)})
    assert not w.any()


def test_it_costs_its_bytes_read_and_no_more():
    opt = Masked({"w": np.zeros(3, np.float32)})
    opt.step({"w": np.ones(3, np.float32)})
    plan = opt._run.steps.buckets[0].plan
    assert traffic(plan, 0, 4) == (16, 8)  # w, m, mask, g; w, m
    assert ("input", 0, "mask", "element") in plan.stages[0].reads
    assert not [key for key in plan.last.outputs if key[0] == "input"]
    assert "s_mask = load(p_s_mask, i)" in opt.explain()
    assert "store(p_s_mask" not in opt.explain()
    assert "m <- 0.5 * m + mask * g" in opt.explain()


def test_it_is_saved_loaded_copied_and_stays_on_reset():
    opt = Masked({"w": np.zeros(3)})
    opt.state["w"]["mask"][...] = [1, 0, 2]
    opt.step({"w": np.ones(3)})
    other = Masked({"w": np.zeros(3)})
    other.load_state_dict(opt.state_dict())
    for each in (other, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        np.testing.assert_array_equal(each.state["w"]["mask"], [1, 0, 2])
    opt.reset()
    np.testing.assert_array_equal(opt.state["w"]["mask"], [1, 0, 2])
    np.testing.assert_array_equal(opt.state["w"]["m"], 0)
    opt.replace("w", np.zeros(3), state="reset")
    np.testing.assert_array_equal(opt.state["w"]["mask"], [1, 0, 2])
    with pytest.warns(RuntimeWarning, match="the constant slot 'mask' of parameter 'w' does not fit the new shape, and is 1.0"):
        opt.replace("w", np.zeros(5), state="reset")
    np.testing.assert_array_equal(opt.state["w"]["mask"], 1)


def test_it_follows_the_memory_order_of_its_weight():
    params = {"w": np.zeros((4, 3))}
    opt = Masked(params, lr=1.0)
    mask = np.arange(12.0).reshape(4, 3)
    opt.state["w"]["mask"][...] = mask
    params["w"] = np.zeros((3, 4)).T
    opt.step({"w": np.ones((4, 3))})
    np.testing.assert_array_equal(params["w"], -mask)


def test_the_functional_form_hands_it_on():
    rule = Masked(lr=1.0)
    state = rule.init({"w": np.zeros(2)})
    state["slots"]["w"]["mask"] = np.array([0.0, 2.0])
    params, state = rule.apply({"w": np.zeros(2)}, {"w": np.ones(2)}, state)
    np.testing.assert_array_equal(params["w"], [0, -2])
    np.testing.assert_array_equal(state["slots"]["w"]["mask"], [0, 2])
    assert set(state["slots"]["w"]) == {"mask", "m"}


class Returns(Optimizer):
    lr: Scalar = 0.5

    def slots(self):
        return {"mask": constant}

    def update(self, w, g, s, h, xp):
        return h.lr * s.mask * g, {"mask": s.mask}


class Unread(Optimizer):
    lr: Scalar = 0.5

    def slots(self):
        return {"mask": constant}

    def update(self, w, g, s, h, xp):
        return h.lr * g


class Prior(optimkit.Penalty):
    def slots(self):
        return {"p": constant}

    def penalize(self, w, h, xp):
        return w


def test_what_is_wrong():
    w = np.zeros(2)
    opt = Returns(w)
    with pytest.raises(TypeError, match=r"Returns.update returns the slot 'mask' but it is constant: it is read and never"):
        opt.step(np.ones(2))
    assert not w.any()
    with pytest.raises(ValueError, match="constant has one value per element; use a field annotated Scalar"):
        constant.per("parameter")
    with pytest.raises(ValueError, match=r"constant\('a'\): it starts with a number"):
        constant("a")
    with pytest.raises(ValueError, match=r"constant\(array\(\[0, 1\]\)\): it starts with a number; fill it"):
        constant(np.arange(2))
    with pytest.raises(TypeError, match=r"write opt\.state\['w'\]\['mask'\]\[\.\.\.\] = array"):
        Masked({"w": w}).state["w"]["mask"] = np.ones(2)
    with pytest.raises(TypeError, match=r"Unread: the constant slot 'mask' is declared by slots\(\), but nothing reads it$"):
        Unread(w).step(np.ones(2))
    with pytest.raises(TypeError, match=r"Prior: the constant slot 'p' .* reads it; penalize has no slots: override"):
        optimkit.SGD(w, lr=0.1, penalty=Prior()).step(np.ones(2))
    with pytest.raises(ValueError, match=r"shape \(3,\)|could not broadcast"):
        Masked({"w": w}).state["w"]["mask"][...] = np.ones(3)


def test_a_reference_is_given_the_constants():
    class MaskedDescent(Optimizer):
        lr: Scalar = 0.5

        def slots(self):
            return {"mask": constant}

        def update(self, w, g, s, h, xp):
            return h.lr * s.mask * g

    class Turned(MaskedDescent):
        def update(self, w, g, s, h, xp):
            return -h.lr * s.mask * g

    def reference(w, g, state, t):
        return w - 0.5 * state["mask"] * g

    report = optimkit.testing.check_optimizer(MaskedDescent, reference=reference, backends=["numpy-eager"])
    assert report.passed == ["numpy-eager"]
    with pytest.raises(AssertionError, match="by the reference"):
        optimkit.testing.check_optimizer(Turned, reference=reference, backends=["numpy-eager"])
