"""Slots that start from a number start from that of their own group; looking at the state, and compiling, change nothing."""

from __future__ import annotations

import numpy as np
import pytest

import optimkit
from optimkit import Adagrad, Optimizer, Scalar, Transform, full


class Starts(Optimizer):
    """Slots of every extent that start from numbers."""

    lr: Scalar = 0.1
    start: Scalar = 1.0

    def slots(self):
        value = full(self.start)
        return {"a": value, "p": value.per("parameter"), "o": value.per("optimizer")}

    def update(self, w, g, s, h, xp):
        return h.lr * g * s.a * s.p * s.o, {"a": s.a + 1.0, "p": s.p + 1.0, "o": s.o + 1.0}


class Scaled(Transform):
    """A link whose slot starts from its number."""

    start: Scalar = 1.0

    def slots(self):
        return {"c": full(self.start)}

    def gradient(self, w, g, s, h, xp):
        return g * s.c, {"c": s.c}


@pytest.fixture
def backend(optimkit_backend):
    if optimkit_backend.functional:
        pytest.skip("the state of the functional form is the caller's")
    return optimkit_backend


def make(backend, n=4, links=(), **values):
    groups = [{"params": {f"a{i}": backend.make(np.ones(n), "float32") for i in range(2)}, **values}]
    groups += [{"params": {f"b{i}": backend.make(np.ones(n), "float32") for i in range(2)}, "start": 3.0}]
    return Starts(groups, engine=backend.engine, transforms=links)


def grads(backend, n=4):
    return [{f"{group}{i}": backend.make(np.ones(n), "float32") for i in range(2)} for group in "ab"]


def result(opt, backend):
    found = {}
    for name in opt.names:
        view = opt.state[name]
        found[name] = [float(backend.to_numpy(x).reshape(-1)[0]) for x in (opt[name].data, view["a"], view["p"])]
    return found, float(backend.to_numpy(opt.state.shared["o"]))


LOOKS = {
    "no look": lambda opt: None,
    "the state": lambda opt: [dict(view) for view in opt.state.values()],
    "one parameter": lambda opt: opt.state["b1"]["a"],
    "what is shared": lambda opt: opt.state.shared,
    "saved": lambda opt: opt.state_dict(),
    "compiled ahead": lambda opt: opt.warm_up(),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("when", ["before", "between", "not"])
def test_looking_at_the_state_changes_nothing(backend, look, when):
    opt = make(backend, start=2.0)
    if when == "before":
        LOOKS[look](opt)
    opt.set(where="a1", start=5.0)
    if when == "between":
        LOOKS[look](opt)
    opt.set(where="b0", start=7.0)
    opt.step(grads(backend))
    found, shared = result(opt, backend)
    assert {name: own[1:] for name, own in found.items()} == {"a0": [3, 3], "a1": [6, 6], "b0": [8, 8], "b1": [4, 4]}
    assert shared == 3.0  # of the first group
    expected = {"a0": 1 - 0.1 * 2**3, "a1": 1 - 0.1 * 25 * 2, "b0": 1 - 0.1 * 49 * 2, "b1": 1 - 0.1 * 9 * 2}
    assert {name: own[0] for name, own in found.items()} == pytest.approx(expected, rel=1e-6)


def test_each_group_of_adagrad_has_its_own_start(backend):
    groups = [{"params": {"a": backend.make(np.ones(3), "float32")}}]
    groups += [{"params": {"b": backend.make(np.ones(3), "float32")}, "initial_accumulator_value": 0.5}]
    opt = Adagrad(groups, lr=0.1, engine=backend.engine)
    opt.step([{"a": backend.make(np.ones(3), "float32")}, {"b": backend.make(np.ones(3), "float32")}])
    assert [float(backend.to_numpy(opt.state[name]["v"])[0]) for name in "ab"] == [1.0, 1.5]


def test_a_number_that_is_set_before_the_first_update_counts_a_slot_that_was_filled_stays(backend):
    opt = make(backend, start=2.0, links=[Scaled(1.0)])
    opt.warm_up()
    opt.start, opt.transforms[0].start = 4.0, 0.5
    opt.state["a0"]["a"][...] = 9.0
    assert float(backend.to_numpy(opt.state["a1"]["a"])[0]) == 4.0
    assert float(backend.to_numpy(opt.state["a1"]["Scaled.c"])[0]) == 0.5
    opt.start = 6.0
    opt.step(grads(backend))
    found, shared = result(opt, backend)
    assert ([own[1] for own in found.values()], shared) == ([10.0, 7.0, 7.0, 7.0], 7.0)
    opt.start = 8.0  # after the first update it starts nothing
    opt.step(grads(backend))
    found, shared = result(opt, backend)
    assert ([own[1] for own in found.values()], shared) == ([11.0, 8.0, 8.0, 8.0], 8.0)


def test_a_state_that_was_loaded_is_no_start():
    opt, other = (Adagrad({"w": np.ones(2)}, lr=0.1, initial_accumulator_value=0.25) for _ in range(2))
    opt.load_state_dict(other.state_dict())
    opt.initial_accumulator_value = 0.5
    assert opt.state["w"]["v"].tolist() == [0.25, 0.25]
    opt.reset()
    assert opt.state["w"]["v"].tolist() == [0.5, 0.5]
    opt.initial_accumulator_value = 0.75
    opt.step({"w": np.ones(2)})
    assert opt.state["w"]["v"].tolist() == [1.75, 1.75]
    assert optimkit.Adagrad._starts == {"initial_accumulator_value"}
