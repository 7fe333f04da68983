"""Parameters that come and go, and change: bind, add, remove and replace; reset, freeze and set."""

from __future__ import annotations

import types

import numpy as np
import pytest
from test_params import Holder, ones

from optimkit import SGD, Adam, Param

# ---- bind, add, remove, replace


def test_bind_comes_once():
    opt = Adam(lr=0.5)
    with pytest.raises(RuntimeError, match=r"Adam has no parameters yet"):
        opt.step(ones(1))
    assert opt.bind({"w": ones(2)}) is opt
    assert opt.names == ["w"]
    with pytest.raises(ValueError, match=r"has parameters already; use opt.add"):
        opt.bind([ones(1)])


def test_added_parameters_start_their_own_count_in_their_own_group():
    params = {"a": ones(2)}
    opt = Adam(params, lr=0.5)
    opt.step({"a": ones(2)})
    params["b"] = ones(2)
    opt.add({"b": params["b"]}, lr=0.25)
    assert opt.lr == [0.5, 0.25]
    opt.step({"a": ones(2), "b": ones(2)})
    assert (opt.state["a"].t, opt.state["b"].t) == (2, 1)
    assert params["b"][0] == pytest.approx(0.75)
    params["b"] = 4 * ones(2)  # it belongs to the container, which is the truth
    opt.step({"b": ones(2)})
    assert params["b"][0] == pytest.approx(3.75)


def test_a_container_that_has_grown_can_be_added_as_it_is():
    params = [ones(2)]
    opt = SGD(params, lr=1.0)
    with pytest.raises(ValueError, match=r"all parameters of this container are there already"):
        opt.add(params)
    params.append({"W": ones(1)})
    opt.add(params)
    assert opt.names == ["0", "1.W"]
    opt.step([ones(2), {"W": ones(1)}])
    assert params[1]["W"][0] == 0
    params[1]["b"] = ones(1)
    opt.add(params[1])
    assert opt.names == ["0", "1.W", "1.b"]
    other = {"elsewhere": ones(1)}
    opt.add(other)
    opt.step({"elsewhere": ones(1), "0": ones(2)})
    assert (other["elsewhere"][0], params[0][0]) == (0, -1)


def test_adding_checks_everything_before_anything_changes():
    params = {"a": ones(4)}
    opt = SGD(params, lr=1.0)
    for new, values, error, message in [
        ({"a": ones(1)}, {}, ValueError, "two parameters are called 'a'"),
        ({"b": params["a"]}, {}, ValueError, "'a' and 'b' are the same array"),
        ({"b": params["a"][1:]}, {}, ValueError, "overlap"),
        ({"b": ones(1)}, {"momemtum": 0.9}, TypeError, "has no hyperparameter 'momemtum'; a group may set lr, momentum"),
        ({"b": ones(1)}, {"lr": -1}, ValueError, r"lr = -1 must be a number in \[0, inf\)"),
        ({}, {}, ValueError, "no parameters"),
    ]:
        with pytest.raises(error, match=message):
            opt.add(new, **values)
    assert (opt.names, opt.lr) == (["a"], 1.0)
    opt.step({"a": ones(4)})


@pytest.mark.parametrize("taken_out", [False, True])
@pytest.mark.parametrize("make", [dict, lambda d: list(d.values())], ids=["dict", "list"])
def test_a_removed_parameter_may_stay_in_its_container_or_leave(make, taken_out):
    params = make({"a": ones(2), "b": ones(2), "c": ones(2)})
    keys = list(params) if isinstance(params, dict) else [0, 1, 2]
    b, c = params[keys[1]], params[keys[2]]
    opt = SGD(params, lr=1.0)
    opt.step(make({"a": ones(2), "b": ones(2), "c": ones(2)}))
    opt.remove(str(keys[1]))
    if taken_out:
        del params[keys[1]]
    opt.step(make({"a": ones(2), "c": ones(2)} if taken_out else {"a": ones(2), "b": ones(2), "c": ones(2)}))
    assert (b[0], c[0]) == (0, -1)
    params[keys[2] if isinstance(params, dict) or not taken_out else 1] = 9 * ones(2)
    opt.step({str(keys[2]): ones(2)})
    assert opt[str(keys[2])].data[0] == 8
    with pytest.raises(KeyError, match=r"there is no parameter"):
        opt.remove(str(keys[1]))


def test_replace_keeps_resets_or_maps_the_state():
    params = {"W": ones(2, 2), "b": ones(1)}
    opt = Adam(params, lr=0.1)
    grads = {"W": ones(2, 2), "b": ones(1)}
    opt.step(grads)
    opt.replace("W", 5 * np.ones((2, 2)))
    assert (params["W"].dtype, opt.state["W"].t, opt.state["W"]["m"].dtype) == (np.float64, 1, np.float64)
    np.testing.assert_allclose(opt.state["W"]["m"], 0.1, rtol=1e-6)
    opt.replace("W", ones(3, 2), state=lambda x: np.concatenate([x, np.zeros((1, 2))]))
    np.testing.assert_allclose(opt.state["W"]["m"], np.float32([[0.1, 0.1], [0.1, 0.1], [0, 0]]), rtol=1e-6)
    assert opt.state["W"].t == 1
    opt.replace("W", ones(4), state="reset")
    assert (opt.state["W"].t, opt.state["W"]["m"].tolist()) == (0, [0, 0, 0, 0])
    assert opt.state["b"].t == 1
    opt.step({"W": ones(4), "b": ones(1)})
    assert params["W"][0] == pytest.approx(0.9)


def test_replace_checks_everything_before_anything_changes():
    params = {"W": ones(2), "b": ones(3)}
    opt = Adam(params)
    before = params["W"]
    for new, state, error, message in [
        (ones(3), "keep", ValueError, "its state can't be kept; use state='reset', or a function"),
        (ones(3), "rest", ValueError, "state = 'rest' must be 'keep', 'reset' or a function"),
        (ones(3), lambda x: x, ValueError, r"made 'm' of shape \(2,\), not \(3,\)"),
        (params["b"], "reset", ValueError, "same array"),
        ([1.0], "keep", TypeError, "'W' is a list, not an array"),
        (np.ones(2, int), "keep", TypeError, "int64"),
    ]:
        opt.step({"W": ones(2)})
        with pytest.raises(error, match=message):
            opt.replace("W", new, state)
        assert params["W"] is before
    assert opt.state["W"].t == 6


def test_replace_where_the_container_cannot_be_changed():
    with pytest.raises(TypeError, match=r"stands in a tuple, which can't be changed; pass a dict or a list"):
        SGD((ones(2),), lr=1.0).replace("0", ones(2))
    layer = types.SimpleNamespace(W=ones(2))
    layer.params = lambda: {"W": layer.W}
    opt = SGD(layer, lr=1.0)
    with pytest.raises(TypeError, match=r"put the new array there first"):
        opt.replace("W", ones(3), state="reset")
    layer.W = ones(3)
    opt.replace("W", layer.W, state="reset")
    opt.step({"W": ones(3)})
    assert layer.W.tolist() == [0, 0, 0]
    p, holder = Param(ones(2)), Holder(ones(2))
    opt = SGD([p, holder], lr=1.0)
    opt.replace("0", ones(3), state="reset")
    opt.replace("1", ones(4), state="reset")
    opt.step([ones(3), ones(4)])
    assert (p.shape, holder.data.shape) == ((3,), (4,))


# ---- reset, freeze, set


def test_reset_forgets_state_and_counts():
    opt = Adam({"a.w": ones(2), "b.w": ones(2)})
    grads = {"a.w": ones(2), "b.w": ones(2)}
    opt.step(grads)
    opt.reset("a.*")
    assert (opt.state["a.w"].t, opt.state["b.w"].t) == (0, 1)
    assert not opt.state["a.w"]["m"].any()
    opt.step(grads)
    assert (opt.state["a.w"].t, opt.state["b.w"].t) == (1, 2)
    opt.reset()
    assert (opt.state["a.w"].t, opt.state["b.w"].t, opt.count) == (0, 0, 2)


def test_frozen_parameters_are_left_alone():
    params = {"a": ones(2), "b": ones(2)}
    opt, grads = Adam(params, lr=0.1), {"a": ones(2), "b": ones(2)}
    opt.step(grads)
    before = params["b"].copy()
    opt.freeze(lambda p: p.name == "b")
    opt.step(grads)
    opt.step(grads)
    np.testing.assert_array_equal(params["b"], before)
    assert (opt.state["a"].t, opt.state["b"].t) == (3, 1)
    opt.unfreeze("b")
    opt.step(grads)
    assert opt.state["b"].t == 2
    assert params["b"][0] < before[0]
    for where, error in [("c*", ValueError), (3, TypeError), (["a"], TypeError)]:
        with pytest.raises(error, match=r"where = "):
            opt.freeze(where)


def test_numbers_may_differ_between_groups():
    params = {"W": ones(2), "b": ones(2), "c": ones(2)}
    opt = SGD(params, lr=1.0)
    opt.set(where="b", lr=0.5)
    opt.set(where=lambda p: p.name == "c", lr=0.25)
    assert opt.lr == [1.0, 0.5, 0.25]
    opt.step({"W": ones(2), "b": ones(2), "c": ones(2)})
    assert (params["W"][0], params["b"][0], params["c"][0]) == (0, 0.5, 0.75)
    assert "lr=[1.0, 0.5, 0.25]" in repr(opt)
    with pytest.raises(ValueError, match=r"lr = -1 must be a number"):
        opt.set(where="b", lr=-1)
    with pytest.raises(ValueError, match=r"dampening = 0.5 does nothing without momentum"):
        opt.set(where="[bc]", dampening=0.5)
    assert opt.lr == [1.0, 0.5, 0.25]
    other = SGD({"W": ones(2), "b": ones(2)}, lr=1.0)
    with pytest.raises(ValueError, match=r"dampening = 0.5 does nothing"):
        other.set(where="b", dampening=0.5)
    assert len(other.state_dict()["groups"]) == 1
    opt.lr = 2.0
    assert opt.lr == 2.0
    opt.set(momentum=0.9)
    assert list(opt.state["b"]) == ["b"]
