"""Schedulers and their optimizer: rates that are set, groups, what is refused, state and resume (faults 26 to 29, with
`test_schedules`)."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
from test_schedules import SCHEDULERS, by_name, make_optimizer, make_scheduler

import optimkit
from optimkit import lr_scheduler, schedules

# ---- rates and groups


def test_print_lr(capsys):
    opt = make_optimizer(lr=1.0)
    scheduler = lr_scheduler.StepLR(opt, 1, 0.5)
    scheduler.step()
    scheduler.print_lr()
    assert capsys.readouterr().out == "epoch 1: learning rate adjusted to [0.5]\n"
    opt.set(where="b", lr=0.1)
    scheduler.print_lr()
    assert capsys.readouterr().out == "epoch 1: learning rate adjusted to [0.5, 0.1]\n"


def test_a_scheduler_multiplies_a_schedule():
    opt = optimkit.SGD(np.ones(2), lr=schedules.step(1.0, 1, 0.5))
    scheduler = lr_scheduler.ExponentialLR(opt, 0.1)
    scheduler.step()
    opt.step(np.zeros(2))
    assert opt.lr == 0.5 * 0.1


def test_all_groups_are_scheduled_those_made_later_too():
    opt = optimkit.SGD([{"params": {"W": np.ones(2)}}, {"params": {"b": np.ones(2)}, "lr": 0.5}], lr=1.0)
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    scheduler.step()
    assert opt.lr == [0.5, 0.25]
    assert scheduler.get_last_lr() == [1.0, 0.5]
    opt.add({"c": np.ones(2)}, lr=4.0)
    opt.set(where="W", lr=8.0)
    assert opt.lr == [8.0, 0.25, 2.0]
    scheduler.step()
    assert opt.lr == [4.0, 0.125, 1.0]


def test_an_optimizer_may_be_bound_after_its_scheduler_was_made():
    opt = optimkit.SGD(lr=1.0)
    lr_scheduler.LambdaLR(opt, lambda epoch: 0.25)
    w = np.ones(2)
    opt.bind([{"params": w, "lr": 2.0}])
    opt.step([np.ones(2)])
    assert w.tolist() == [0.5, 0.5]


def test_schedulers_compile_nothing():
    opt = make_optimizer()
    grads = {"W": np.ones((3, 2)), "b": np.ones(2)}
    opt.step(grads)
    before = optimkit.counters.traces, optimkit.counters.compiles
    scheduler = lr_scheduler.ExponentialLR(opt, 0.9)
    for _ in range(5):
        opt.step(grads)
        scheduler.step()
    assert (optimkit.counters.traces, optimkit.counters.compiles) == before


def test_step_says_whether_it_was_applied_so_that_a_scheduler_can_wait():  # fault 26
    opt = optimkit.SGD(np.ones(2), lr=1.0, nonfinite="skip")
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    for g in (1.0, math.inf, 1.0):
        if opt.step(np.full(2, g)).applied:
            scheduler.step()
    assert (scheduler.get_current_epoch(), opt.lr) == (2, 0.25)


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda opt: lr_scheduler.StepLR(opt, 0), r"StepLR: step_size = 0 must be a whole number from 1"),
        (lambda opt: lr_scheduler.StepLR(opt, 1, -1.0), r"StepLR: gamma = -1\.0 must be a number in \[0, inf\)"),
        (lambda opt: lr_scheduler.MultiStepLR(opt, [1.5]), r"MultiStepLR: milestones\[0\] = 1\.5 must be a whole number"),
        (lambda opt: lr_scheduler.ExponentialLR(opt, math.inf), r"ExponentialLR: gamma = inf must be a number"),
        (lambda opt: lr_scheduler.LambdaLR(opt, 0.9), r"LambdaLR: f = 0\.9 must be a function of the epoch, such as"),
        (lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: -1.0), r"LambdaLR: the factor of epoch 0 = -1\.0 must be"),
        (lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: None), r"LambdaLR: the factor of epoch 0 = None must be"),
    ],
)
def test_bad_schedulers_are_named_and_change_nothing(make, message):
    opt = make_optimizer(lr=0.1)
    with pytest.raises(ValueError, match=message):
        make(opt)
    assert opt.lr == 0.1


def test_a_bad_value_later_on_changes_nothing():
    opt = make_optimizer(lr=0.1)
    scheduler = lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.5 if epoch < 3 else math.nan)
    scheduler.step()
    scheduler.step()
    with pytest.raises(ValueError, match=r"MultiplicativeLR: f\(3\) = nan must be a number in \[0, inf\)"):
        scheduler.step()
    assert (scheduler.get_current_epoch(), opt.lr, scheduler.get_last_lr()) == (2, 0.025, 0.05)
    with pytest.raises(ValueError, match=r"MultiplicativeLR: epoch = -1 must be a whole number from 0"):
        scheduler.set_current_epoch(-1)


def test_a_rate_that_overflows_changes_nothing():
    opt = optimkit.SGD([{"params": {"W": np.ones(2)}}, {"params": {"b": np.ones(2)}, "lr": 1e300}], lr=1.0)
    scheduler = lr_scheduler.ExponentialLR(opt, 10.0)
    scheduler.step()
    with pytest.raises(ValueError, match=r"ExponentialLR: the learning rate of epoch 300 = \[.*inf\] must be a number"):
        scheduler.set_current_epoch(300)
    assert (scheduler.get_current_epoch(), opt.lr) == (1, [10.0, 1e301])
    saved = scheduler.state_dict()
    with pytest.raises(ValueError, match="nothing was changed"):
        scheduler.load_state_dict(saved | {"settings": {"gamma": 100.0}, "epoch": 300})
    assert (scheduler.state_dict(), opt.lr) == (saved, [10.0, 1e301])
    with pytest.raises(ValueError, match=r"LambdaLR: the learning rate of epoch 0 = .*inf"):
        lr_scheduler.LambdaLR(opt, lambda epoch: 1e10)
    assert opt.lr == [10.0, 1e301]


def test_a_rate_that_overflows_after_it_was_set_writes_nothing():
    w = np.ones(2)
    opt = optimkit.SGD(lr=1.0)
    lr_scheduler.LambdaLR(opt, lambda epoch: 100.0)
    opt.bind([{"params": w, "lr": 1e307}])
    with pytest.raises(ValueError, match=r"SGD: lr = 1e\+307 times the schedulers' factors is too large"):
        opt.step([np.ones(2)])
    assert (w == 1.0).all()
    opt.lr = 0.1
    opt.step([np.ones(2)])
    assert (w == 0.9).all()


def test_only_optimizers_with_a_rate_are_scheduled():
    with pytest.raises(TypeError, match=r"StepLR: optimizer = 0\.1 must be an optimkit optimizer"):
        lr_scheduler.StepLR(0.1, 3)

    class NoRate(optimkit.Optimizer):
        speed: optimkit.Scalar = 0.1

        def update(self, w, g, s, h, xp):
            return h.speed * g, {}

    with pytest.raises(TypeError, match=r"NoRate has no number lr that could be scheduled; it has speed"):
        lr_scheduler.StepLR(NoRate(np.ones(2)), 3)


# ---- state


def run(opt, chained, grads, start, stop):
    for n in range(start, stop):
        opt.step({name: g * (n + 1) for name, g in grads.items()})
        if n % 3 == 2:
            for scheduler in chained:
                scheduler.step()


@pytest.mark.parametrize("order", ["optimizer first", "schedulers first"])
def test_resume_is_exact(order):  # fault 28
    rng = np.random.default_rng(7)
    grads = {"W": rng.standard_normal((3, 2)), "b": rng.standard_normal(2)}

    def build():
        params = {"W": np.ones((3, 2)), "b": np.ones(2)}
        opt = optimkit.Adam(params, lr=schedules.exponential(0.1, 0.97))
        return params, opt, [make_scheduler(name, opt) for name in SCHEDULERS]

    params, opt, chained = build()
    run(opt, chained, grads, 0, 40)

    early, opt_early, chained_early = build()
    run(opt_early, chained_early, grads, 0, 17)
    saved = json.loads(json.dumps([scheduler.state_dict() for scheduler in chained_early]))
    weights, state = copy.deepcopy(early), opt_early.state_dict()

    late, opt_late, chained_late = build()
    for name, w in weights.items():
        late[name][...] = w
    if order == "optimizer first":
        opt_late.load_state_dict(state)
    for scheduler, own in zip(chained_late, saved, strict=True):
        scheduler.load_state_dict(own)
    if order == "schedulers first":
        opt_late.load_state_dict(state)
    assert opt_late.lr == opt_early.lr
    assert [s.get_last_lr() for s in chained_late] == [s.get_last_lr() for s in chained_early]
    run(opt_late, chained_late, grads, 17, 40)
    assert opt_late.lr == opt.lr
    assert all((late[name] == params[name]).all() for name in params)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_state_dict_is_a_copy_with_the_settings(name):
    opt = make_optimizer()
    scheduler = make_scheduler(name, opt)
    scheduler.set_current_epoch(5)
    saved = scheduler.state_dict()
    kept = copy.deepcopy(saved)
    scheduler.step()
    assert saved == kept
    assert saved["settings"] == {key: value for key, value in SCHEDULERS[name].items() if key != "f"}
    other = make_optimizer()
    fresh = make_scheduler(name, other)
    fresh.load_state_dict(saved)
    assert fresh.state_dict() == saved


def test_loading_restores_the_settings():
    saved = lr_scheduler.StepLR(make_optimizer(), 7, 0.25).state_dict() | {"epoch": 14}
    opt = make_optimizer(lr=1.0)
    scheduler = lr_scheduler.StepLR(opt, 3, 0.5)
    scheduler.load_state_dict(saved)
    assert opt.lr == 0.0625
    assert repr(scheduler) == "StepLR(step_size=7, gamma=0.25, epoch=14, lr=0.0625)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheduler": "ExponentialLR"}, "it was saved by ExponentialLR"),
        ({"format": 9}, "its format is 9, this version reads 1"),
        ({"last_lr": "0.1"}, "its last_lr is '0.1', no learning rate"),
        ({"last_lr": []}, "its last_lr is [], no learning rate"),
        ({"epoch": -1}, "epoch = -1 must be a whole number from 0"),
        ({"settings": {"gamma": 0.5}}, "its settings are {'gamma': 0.5}, here are step_size, gamma"),
        ({"settings": {"step_size": 0, "gamma": 0.5}}, "step_size = 0 must be a whole number from 1"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    opt = make_optimizer(lr=1.0)
    scheduler = lr_scheduler.StepLR(opt, 3, 0.5)
    scheduler.set_current_epoch(4)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        scheduler.load_state_dict(before | change)
    assert message in str(caught.value)
    assert scheduler.state_dict() == before
    assert opt.lr == 0.5


def test_what_is_no_state_dict_is_refused():
    with pytest.raises(
        ValueError, match=r"it is no state_dict of a scheduler: it lacks format, scheduler, epoch, last_lr, settings"
    ):
        lr_scheduler.StepLR(make_optimizer(), 3).load_state_dict({})


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_continue_alone(how):
    opt = make_optimizer(lr=1.0)
    schedulers = [lr_scheduler.StepLR(opt, 1, 0.5), lr_scheduler.LambdaLR(opt, by_name)]
    for scheduler in schedulers:
        scheduler.step()
    twin, twins = how((opt, schedulers))
    assert twins[0].optimizer is twin
    assert twin.lr == opt.lr == 0.5 * 0.9
    for scheduler in twins:
        scheduler.step()
    assert (twin.lr, opt.lr) == (0.25 * 0.9**2, 0.5 * 0.9)
    another = lr_scheduler.LambdaLR(twin, lambda epoch: 0.5)
    assert twin.lr == 0.25 * 0.9**2 * 0.5
    assert len({another._key, *(scheduler._key for scheduler in twins)}) == 3
