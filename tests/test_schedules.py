"""Schedules and schedulers: closed forms of the step and of the epoch, and their composition (faults 26 to 29, with
`test_schedulers`)."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

import optimkit
from optimkit import lr_scheduler, schedules

STORED = json.loads((Path(__file__).parent / "trajectories" / "torch.json").read_text())["schedules"]
FAR = 10**6

SCHEDULES = {
    "constant": schedules.constant(0.3),
    "step": schedules.step(0.3, step_size=4, gamma=0.5),
    "multistep": schedules.multistep(0.3, milestones=[2, 7, 7], gamma=0.1),
    "exponential": schedules.exponential(0.3, 0.9),
    "linear": schedules.linear(0.0, 0.3, steps=5),
}
SCHEDULERS = {
    "StepLR": {"step_size": 4, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 7, 7], "gamma": 0.1},
    "ExponentialLR": {"gamma": 0.9},
    "LambdaLR": {"f": lambda epoch: 1 / (1 + epoch)},
    "MultiplicativeLR": {"f": lambda epoch: 1 / (1 + 0.1 * epoch)},
}


def make_optimizer(lr=0.1, **kwargs):
    return optimkit.Adam({"W": np.ones((3, 2)), "b": np.ones(2)}, lr=lr, **kwargs)


def make_scheduler(name, opt):
    return getattr(lr_scheduler, name)(opt, **SCHEDULERS[name])


def by_name(epoch):  # a function that pickles
    return 0.9**epoch


def test_the_lists_above_are_complete():
    assert set(SCHEDULES) == set(schedules.__all__)
    assert set(SCHEDULERS) == set(lr_scheduler.__all__) - {"LRScheduler"}


# ---- schedules


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", [0.3] * 8),
        ("step", [0.3] * 4 + [0.15] * 4),
        ("multistep", [0.3] * 2 + [0.03] * 5 + [0.0003]),
        ("exponential", [0.3 * 0.9**n for n in range(8)]),
        ("linear", [0.0, 0.06, 0.12, 0.18, 0.24, 0.3, 0.3, 0.3]),
    ],
)
def test_schedules_have_the_values_of_their_formula(name, values):
    assert [SCHEDULES[name](n) for n in range(8)] == pytest.approx(values, rel=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_plain_values(name):
    schedule = SCHEDULES[name]
    assert pickle.loads(pickle.dumps(schedule)) == schedule == copy.deepcopy(schedule)
    assert eval(repr(schedule), vars(schedules)) == schedule
    assert hash(schedule) == hash(copy.copy(schedule))
    with pytest.raises(AttributeError):
        schedule.value = 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_defined_past_the_end(name):
    assert math.isfinite(SCHEDULES[name](FAR))
    assert SCHEDULES[name](FAR) <= 0.3


def test_growth_without_bound_becomes_infinite_and_the_optimizer_refuses_it():
    assert schedules.exponential(1.0, 1.1)(FAR) == math.inf
    w = np.ones(2)
    opt = optimkit.SGD(w, lr=lambda n: schedules.exponential(1.0, 1.1)(n * FAR))
    opt.step(np.ones(2))
    with pytest.raises(ValueError, match=r"SGD: lr, .* = inf must be a number in \[0, inf\)"):
        opt.step(np.ones(2))
    assert w.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.step(0.1, 0), r"step: step_size = 0 must be a whole number from 1"),
        (lambda: schedules.step(0.1, 2.5), r"step: step_size = 2\.5 must be a whole number from 1"),
        (lambda: schedules.step(0.1, True), r"step: step_size = True must be a whole number"),
        (lambda: schedules.step(0.1, 3, gamma=-0.5), r"step: gamma = -0\.5 must be a number in \[0, inf\)"),
        (lambda: schedules.multistep(0.1, [3, -1]), r"multistep: milestones\[1\] = -1 must be a whole number from 0"),
        (lambda: schedules.multistep(0.1, 30), r"multistep: milestones = 30 must be a list of whole numbers, such as"),
        (lambda: schedules.multistep(0.1, "30"), r"multistep: milestones = '30' must be a list"),
        (lambda: schedules.exponential(0.1, math.nan), r"exponential: gamma = nan must be a number in \[0, inf\)"),
        (lambda: schedules.exponential("0.1", 0.9), r"exponential: value = '0\.1' must be a finite number"),
        (lambda: schedules.exponential(None, 0.9), r"exponential: value = None must be a finite number"),
        (lambda: schedules.constant(math.inf), r"constant: value = inf must be a finite number"),
        (lambda: schedules.constant(10**400), r"constant: value = 1000.* must be a finite number"),
        (lambda: schedules.constant(by_name), r"constant: value = <function by_name .* must be a finite number"),
        (lambda: schedules.linear(0.0, 0.1, 0), r"linear: steps = 0 must be a whole number from 1"),
        (lambda: schedules.linear(0.0, True, 10), r"linear: end = True must be a finite number"),
    ],
)
def test_bad_arguments_are_named_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numpy_numbers_are_taken():
    schedule = schedules.multistep(np.float32(0.5), np.array([4, 2]), np.float64(0.5))
    assert schedule == schedules.multistep(0.5, (2, 4), 0.5)
    assert all(type(each) is int for each in schedule.milestones)
    assert schedules.step(0.1, np.int64(3)).step_size == 3


def test_a_schedule_is_the_value_of_any_number_and_compiles_nothing():
    w = np.ones(4)
    opt = optimkit.Adam(w, lr=schedules.exponential(1e-2, 0.5), betas=(schedules.linear(0.5, 0.9, 10), 0.999))
    opt.step(np.ones(4))
    before = optimkit.counters.traces, optimkit.counters.compiles
    rates = []
    for _ in range(5):
        rates.append(opt.lr)
        opt.step(np.ones(4))
    assert rates == [1e-2 * 0.5**n for n in range(1, 6)]
    assert opt.betas[0] == pytest.approx(0.5 + 0.04 * 6)
    assert (optimkit.counters.traces, optimkit.counters.compiles) == before


def test_a_penalty_with_a_schedule_has_no_value():
    w = np.array([1.0, -2.0])
    assert optimkit.ElasticNet(0.5, 0.25).value(w) == 0.5 * 3 + 0.25 * 5
    with pytest.raises(TypeError, match=r"L2\.value: l2 is a schedule; write L2\(l2=l2\(opt\.count\), \.\.\.\)\.value\(w\)"):
        optimkit.L2(schedules.constant(0.5)).value(w)


def test_a_schedule_counts_steps_from_0_skipped_ones_too():
    asked = []
    opt = optimkit.SGD(np.ones(2), lr=lambda n: asked.append(n) or 0.1, nonfinite="skip")
    for g in (1.0, np.nan, 1.0):
        opt.step(np.full(2, g))
    assert sorted(set(asked)) == [0, 1, 2]
    assert opt.state[opt.names[0]].t == 2


# ---- schedulers


@pytest.mark.parametrize("case", STORED, ids=lambda case: case["name"])
def test_schedulers_follow_the_stored_trajectories(case):
    opt = make_optimizer(lr=case["base_lr"])
    chained = []
    for each in case["chain"]:
        args = {name: eval(value) if name == "f" else value for name, value in each["args"].items()}
        chained.append(getattr(lr_scheduler, each["class"])(opt, **args))
    rates = [opt.lr]
    for _ in range(len(case["lrs"]) - 1):
        for scheduler in chained:
            scheduler.step()
        rates.append(opt.lr)
    np.testing.assert_allclose(rates, case["lrs"], rtol=1e-14, atol=0)


def test_chained_schedulers_compose():  # fault 29
    opt = make_optimizer(lr=1.0)
    first, second = lr_scheduler.StepLR(opt, 1, 0.5), lr_scheduler.MultiStepLR(opt, [2], 0.1)
    rates = []
    for _ in range(4):
        rates.append(opt.lr)
        first.step()
        second.step()
    assert rates == [1.0, 0.5, 0.25 * 0.1, 0.125 * 0.1]


def test_lambda_composes_where_torch_overwrites():
    opt = make_optimizer(lr=1.0)
    lr_scheduler.LambdaLR(opt, lambda epoch: 0.5)
    lr_scheduler.LambdaLR(opt, lambda epoch: 0.1)
    assert opt.lr == 0.05


def test_the_factor_of_epoch_0_holds_from_construction():
    opt = make_optimizer(lr=0.5)
    lr_scheduler.LambdaLR(opt, lambda epoch: (epoch + 1) / 5)
    assert opt.lr == 0.1
    w = np.ones(2)
    plain = optimkit.SGD(w, lr=0.5)
    lr_scheduler.LambdaLR(plain, lambda epoch: (epoch + 1) / 5)
    plain.step(np.ones(2))
    assert w.tolist() == [0.9, 0.9]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_before_and_after_a_step(name):
    opt = make_optimizer(lr=1.0)
    scheduler = make_scheduler(name, opt)
    assert scheduler.get_current_epoch() == 0
    assert scheduler.get_last_lr() == scheduler.get_current_lr() == opt.lr == opt.get_lr() == 1.0
    for epoch in range(1, 10):
        before = opt.lr
        scheduler.step()
        assert scheduler.get_current_epoch() == epoch
        assert scheduler.get_last_lr() == before
        assert scheduler.get_current_lr() == opt.lr


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_epoch_can_be_set(name):
    opt, other = make_optimizer(), make_optimizer()
    walked, jumped = make_scheduler(name, opt), make_scheduler(name, other)
    rates = [opt.lr]
    for _ in range(12):
        walked.step()
        rates.append(opt.lr)
    for epoch in (12, 3, 0, 7):
        jumped.set_current_epoch(epoch)
        assert jumped.get_current_epoch() == epoch
        assert other.lr == rates[epoch]
    jumped.step()
    assert (jumped.get_current_epoch(), other.lr, jumped.get_last_lr()) == (8, rates[8], rates[7])


@pytest.mark.parametrize("name", ["StepLR", "MultiStepLR", "ExponentialLR"])
def test_schedulers_are_defined_past_the_end(name):
    opt = make_optimizer()
    scheduler = make_scheduler(name, opt)
    scheduler.set_current_epoch(FAR)
    assert 0 <= opt.lr < 0.1
