"""Setting means what reading gives: what is read can be set, and changes nothing, whatever stands behind it; what is set
is read, to the bit, and schedulers act on it from there.
"""

from __future__ import annotations

import copy
import gc
import pickle
import warnings

import numpy as np
import pytest

import optimkit
from optimkit import lr_scheduler, schedules
from optimkit.transforms import ClipByGlobalNorm

RATES = [0.1, 0.05, 1 / 3, 1e-300, 0.7, 123.456, 5e-324, 3.0000000000000004]


def make(lr=0.1, groups=1, **options):
    params = [{"params": {str(i): np.ones(2)}, **({} if i == 0 else {"lr": 0.3 * i})} for i in range(groups)]
    return optimkit.SGD(params if groups > 1 else {"0": np.ones(2)}, lr=lr, momentum=0.9, **options)


def grads(opt):
    return [{name: np.ones(2)} for name in opt.names] if len(opt._run.roots) > 1 else {name: np.ones(2) for name in opt.names}


def rates_to_come(opt, scheduler, steps=6):
    opt, scheduler = copy.deepcopy((opt, scheduler))
    found = []
    for _ in range(steps):
        found.append(opt.lr)
        opt.step(grads(opt))
        if scheduler is not None:
            scheduler.step()
    return found


SCHEDULERS = {
    "none": lambda opt: None,
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 1, 0.1),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (3 + epoch)),
}


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("lr", [0.1, schedules.exponential(0.1, 0.7)], ids=["number", "schedule"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_setting_what_was_read_changes_nothing(name, lr, groups):
    opt = make(lr, groups)
    scheduler = SCHEDULERS[name](opt)
    for _ in range(2):
        opt.step(grads(opt))
        if scheduler is not None:
            scheduler.step()
        expected, shown = rates_to_come(opt, scheduler), repr(opt)
        opt.lr = opt.lr
        opt.set_lr(opt.get_lr())
        opt.set(lr=opt.lr)
        opt.momentum = opt.momentum
        assert rates_to_come(opt, scheduler) == expected
        assert repr(opt) == shown


@pytest.mark.parametrize("rate", RATES)
def test_what_is_set_is_read_to_the_bit_and_scheduled_from_there(rate):
    opt = make(0.1)
    one, two = lr_scheduler.StepLR(opt, 2, 0.1), lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (3 + epoch))
    one.step()
    one.step()
    opt.lr = rate
    assert opt.lr == rate
    one.step()  # its factor is the same
    assert opt.lr == rate
    one.step()
    two.step()
    assert opt.lr == pytest.approx(rate * 0.1 * (3 / 4), rel=1e-12, abs=5e-324)
    one.set_current_epoch(2)
    two.set_current_epoch(0)
    assert opt.lr == rate


def test_a_list_that_is_read_can_be_set():
    opt = make(0.1, 3)
    lr_scheduler.StepLR(opt, 1, 0.5).step()
    assert opt.lr == [0.05, 0.15, 0.3]
    opt.lr = [0.1, 0.2, opt.lr[2]]
    assert opt.lr == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match=r"SGD: lr = \[0.1, 0.2\] must be one value, or a list of 3, one for each group"):
        opt.lr = [0.1, 0.2]
    with pytest.raises(ValueError, match=r"SGD: lr = -1.0 must be a number"):
        opt.lr = [0.1, -1.0, 0.1]
    assert opt.lr == [0.1, 0.2, 0.3]
    adam = optimkit.Adam([{"params": np.ones(1)}, {"params": np.ones(1), "betas": (0.5, 0.6)}])
    adam.betas = adam.betas
    assert adam.betas == [(0.9, 0.999), (0.5, 0.6)]
    adam.betas = [0.7, 0.8]  # one pair for all
    assert adam.betas == (0.7, 0.8)


def test_a_schedule_that_is_replaced_is_said():
    opt = make(schedules.exponential(0.1, 0.5))
    with pytest.warns(RuntimeWarning, match=r"SGD: the schedule .* of lr was replaced by a number; opt.scale_lr\(factor\)"):
        opt.lr *= 0.5
    opt.step(grads(opt))
    assert opt.lr == 0.05
    adam = optimkit.Adam(np.ones(1), betas=(lambda t: 0.5, 0.999))
    assert adam.betas == (0.5, 0.999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adam.betas = (0.5, 0.9)  # the first one as it was read: it stays a schedule
    assert callable(adam._run.groups[0].values["betas"][0])
    with pytest.warns(RuntimeWarning, match=r"Adam: the schedule .* of betas was replaced by a number$"):
        adam.betas = (0.6, 0.9)


@pytest.mark.parametrize("lr", [0.1, schedules.exponential(0.1, 0.5)], ids=["number", "schedule"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scale_lr_multiplies_everything(name, lr):
    opt = make(lr, 3)
    scheduler = SCHEDULERS[name](opt)
    expected = rates_to_come(opt, scheduler)
    opt.scale_lr(0.25)
    assert callable(lr) == (" * exponential(" in repr(opt))
    assert opt.lr == [0.25 * rate for rate in expected[0]]
    for now, before in zip(rates_to_come(opt, scheduler), expected, strict=True):
        assert now == pytest.approx([0.25 * rate for rate in before], rel=1e-15)
    for factor, message in ((-1.0, "factor = -1.0 must be"), ("2", "factor = '2' must be")):
        with pytest.raises(ValueError, match=message):
            opt.scale_lr(factor)
    opt.scale_lr(1e308)
    now = opt.lr
    with pytest.raises(ValueError, match=r"SGD: lr, scaled by 1e\+308, = inf must be"):
        opt.scale_lr(1e308)
    assert opt.lr == now


def test_a_rate_can_not_be_set_where_a_factor_is_0():
    opt = make(0.1)
    scheduler = lr_scheduler.LambdaLR(opt, lambda epoch: epoch / 4)
    assert opt.lr == 0.0
    opt.lr = opt.lr
    with pytest.raises(ValueError, match=r"SGD: lr = 0.2 can't be set while a scheduler's factor is 0.*scale_lr"):
        opt.lr = 0.2
    opt.scale_lr(2.0)
    scheduler.step()
    assert opt.lr == 0.05


def test_a_saved_state_has_the_rate_that_was_set():
    opt = make(0.1)
    scheduler = lr_scheduler.StepLR(opt, 1, 0.1)
    scheduler.step()
    opt.lr = 1 / 3
    again = make(0.1)
    other = lr_scheduler.StepLR(again, 1, 0.1)
    again.load_state_dict(opt.state_dict())
    other.load_state_dict(scheduler.state_dict())
    assert again.lr == opt.lr == 1 / 3
    assert rates_to_come(again, other) == rates_to_come(opt, scheduler)
    old = opt.state_dict()
    del old["groups"][0]["rate"]
    again.load_state_dict(old)
    for rate in ("x", [1.0], [1.0, 0.0], [1.0, float("inf")], [True, 1.0], None):
        bad = opt.state_dict()
        bad["groups"][0]["rate"] = rate
        with pytest.raises(ValueError, match="nothing was changed:\n  - its groups have a rate of"):
            again.load_state_dict(bad)


def test_factors_of_schedulers_that_are_no_more_are_one():
    opt = make(1.0)
    kept = lr_scheduler.LambdaLR(opt, lambda epoch: 0.75)
    for _ in range(300):
        lr_scheduler.LambdaLR(opt, lambda epoch: 0.999)
        gc.collect(0)
    assert len(opt._run.groups[0].factors) <= 3
    assert opt.lr == pytest.approx(0.75 * 0.999**300, rel=1e-12)
    copied, scheduler = pickle.loads(pickle.dumps((make(1.0), None)))
    assert (copied.lr, scheduler) == (1.0, None)
    both = copy.deepcopy((opt, kept))
    lr_scheduler.StepLR(both[0], 5)
    both[1].f = lambda epoch: 0.5
    both[1].set_current_epoch(0)
    assert both[0].lr == pytest.approx(0.5 * 0.999**300, rel=1e-12), "the copy of a scheduler has the copy of its factor"


def test_structure_that_was_set_is_shown():
    opt = optimkit.Adam({"W": np.ones(2), "b": np.ones(1)})
    opt.set(amsgrad=True)
    assert opt.amsgrad is True
    assert "amsgrad=True" in repr(opt)
    opt.set(where="b", amsgrad=False)
    assert opt.amsgrad == [True, False]
    assert "amsgrad=[True, False]" in repr(opt)
    opt.amsgrad = opt.amsgrad
    assert opt.amsgrad == [True, False]
    opt.step({"W": np.ones(2), "b": np.ones(1)})
    assert [list(opt.state[name]) for name in "Wb"] == [["m", "v", "v_max"], ["m", "v"]]
    opt.amsgrad = True
    assert opt.amsgrad is True
    assert optimkit.Adam.amsgrad is False
    assert optimkit.AMSGrad.amsgrad is True


def test_a_copy_has_a_state_of_its_own_and_the_same_arrays():
    params = {"w": np.ones(3)}
    opt = optimkit.Adam(params, lr=0.1, transforms=[ClipByGlobalNorm(1.0)])
    opt.step({"w": np.ones(3)})
    other = copy.copy(opt)
    assert other["w"].data is params["w"]
    before = opt.state["w"]["m"].copy()
    other.step({"w": np.full(3, 2.0)})
    other.lr, other.transforms[0].max_norm = 0.5, 2.0
    other.freeze("w")
    assert (opt.count, opt.state["w"].t, opt.lr, opt.transforms[0].max_norm) == (1, 1, 0.1, 1.0)
    assert np.array_equal(opt.state["w"]["m"], before)
    params["w"] = params["w"].copy()
    opt.step({"w": np.ones(3)})
    other.unfreeze("w")
    other.step({"w": np.ones(3)})
    assert opt["w"].data is other["w"].data is params["w"]
    assert (opt.count, other.count) == (2, 3)


def test_a_transform_that_is_shared_keeps_the_numbers_of_the_other():
    clip = ClipByGlobalNorm(1.0)
    one, two = (optimkit.SGD(np.ones(2), lr=0.1, transforms=[clip]) for _ in range(2))
    saved = one.state_dict()
    one.load_state_dict(saved)  # nothing differs: it stays shared
    assert one.transforms[0] is clip
    clip.max_norm = 5.0
    with pytest.warns(RuntimeWarning, match=r"ClipByGlobalNorm\(.*\) is shared with another optimizer, which keeps"):
        one.load_state_dict(saved)
    assert (one.transforms[0].max_norm, two.transforms[0].max_norm) == (1.0, 5.0)
    one.load_state_dict(two.state_dict())
    assert (one.transforms[0].max_norm, clip.max_norm) == (5.0, 5.0)
    one.step(np.full(2, 10.0))
    assert np.linalg.norm(one["0"].data - 1.0) == pytest.approx(0.5)
