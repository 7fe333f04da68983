"""Runs that go on with the same bits: from saved state, from copies and from pickles (fault 38)."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from test_state import Drift, ones

import optimkit
from optimkit import SGD, Adam, Param, lr_scheduler, schedules, transforms

try:
    import torch
except ImportError:
    torch = None


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "enc": {"W": np.asfortranarray(rng.normal(size=(5, 7)).astype(np.float32)), "b": rng.normal(size=7).astype(np.float32)},
        "strided": np.asarray(rng.normal(size=(6, 8)), np.float32)[::2, ::-2],
        "double": rng.normal(size=3),
        "scalar": np.array(0.5, np.float32),
    }


def make_grads(step):
    rng = np.random.default_rng(100 + step)
    grads = {
        "enc": {"W": rng.normal(size=(5, 7)).astype(np.float32), "b": rng.normal(size=7).astype(np.float32)},
        "strided": rng.normal(size=(3, 4)).astype(np.float32),
        "double": rng.normal(size=3),
        "scalar": np.array(rng.normal(), np.float32),
    }
    if step % 3 == 1:
        del grads["double"]  # counts of updates differ
    return grads


def adam(params):
    tail = [transforms.ClipByGlobalNorm(1.0), transforms.WeightDecay(0.1, where="*.W")]
    opt = Adam(params, lr=schedules.exponential(0.1, 0.9), amsgrad=True, transforms=tail, penalty=optimkit.L2(0.01))
    opt.set(where="enc.*", eps=1e-3)
    return opt


KINDS = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9),
    "adam with everything": adam,
    "eager": lambda params: Adam(params, engine="eager"),
    "all extents": Drift,
}


def leaves(params):
    return [params["enc"]["W"], params["enc"]["b"], params["strided"], params["double"], params["scalar"]]


def run(opt, start, stop):
    for step in range(start, stop):
        if step == 3:
            opt.freeze("*.b")
        opt.step(make_grads(step))


def finish(kind):
    params = make_params()
    run(KINDS[kind](params), 0, 8)
    return leaves(params)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("stop", [0, 1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_resume_has_the_same_bits(kind, stop):
    first = make_params()
    opt = KINDS[kind](first)
    run(opt, 0, stop)
    saved = pickle.loads(pickle.dumps(opt.state_dict()))
    second = copy.deepcopy(first)
    resumed = KINDS[kind](second)
    resumed.load_state_dict(saved)
    run(resumed, stop, 8)
    same(leaves(second), finish(kind))
    assert resumed.count == 8


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("stop", [0, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_row_38_copies_and_pickles_go_on_with_the_same_bits(kind, stop, how):
    params = make_params()
    opt = KINDS[kind](params)
    run(opt, 0, stop)
    before = [w.copy() for w in leaves(params)]
    other_params, other = how((params, opt))
    run(other, stop, 8)
    same(leaves(other_params), finish(kind))
    same(leaves(params), before)
    run(opt, stop, 8)
    same(leaves(params), finish(kind))
    assert repr(other) == repr(opt)


def test_row_38_copies_of_every_kind_of_container():
    model = torch.nn.Linear(3, 2) if torch is not None else None
    for make, grads in [
        (lambda: ones(2), ones(2)),
        (lambda: [Param(ones(2), name="psi"), {"W": ones(3)}], [ones(2), {"W": ones(3)}]),
        (lambda: iter([ones(2)]), [ones(2)]),
        (lambda: [{"params": [ones(2)], "lr": 0.5}, {"params": {"b": ones(1)}}], [[ones(2)], {"b": ones(1)}]),
        *([] if torch is None else [(model.parameters, [torch.ones(2, 3), torch.ones(2)])]),
        *([] if torch is None else [(lambda: model, [torch.ones(2, 3), torch.ones(2)])]),
    ]:
        opt = Adam(make(), lr=0.1)
        opt.step(grads)
        other = copy.deepcopy(opt)
        opt.step(grads)
        other.step(grads)
        for name in opt.names:
            assert other[name].data is not opt[name].data
            np.testing.assert_array_equal(np.asarray(other[name].data.tolist()), np.asarray(opt[name].data.tolist()))


def test_a_copy_keeps_groups_factors_and_frozen_parameters():
    params = {"a": ones(2), "b": ones(2), "c": ones(2)}
    opt = SGD(params, lr=1.0)
    opt.set(where="b", lr=0.5)
    scheduler = lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    scheduler.step()
    opt.freeze("c")
    other, other_scheduler = pickle.loads(pickle.dumps((opt, scheduler)))
    other_scheduler.step()
    assert (opt.lr, other.lr) == ([0.5, 0.25], [0.25, 0.125])
    other.step({"a": ones(2), "b": ones(2), "c": ones(2)})
    assert [float(other[name].data[0]) for name in "abc"] == [0.75, 0.875, 1]
