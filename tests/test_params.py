"""Parameters: the grammar of containers, and the container as the truth."""

from __future__ import annotations

import types

import array_api_strict as strict
import numpy as np
import pytest

import optimkit
from optimkit import SGD, Adam, Param

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")


def ones(*shape):
    return np.ones(shape, np.float32)


class Named:
    """An object of a framework, with one of the three methods that list parameters."""

    def __init__(self, method, listed):
        self.listed = listed
        setattr(self, method, lambda: self.listed)


class Holder:
    def __init__(self, data):
        self.data, self.grad = data, None


def test_param_says_what_it_is():
    p = Param(ones(2, 3), name="psi")
    assert (p.library, p.device, p.dtype, p.shape, p.size) == ("numpy", "cpu", "float32", (2, 3), 6)
    assert repr(p) == "Param('psi', numpy array of shape (2, 3), float32)"
    with pytest.raises(TypeError, match=r"name = 3 must be a str"):
        Param(ones(2), name=3)


def test_row_9_a_param_checks_its_gradient():
    for grad, message in [
        (strict.ones(3), "weight a numpy array"),
        (ones(2), r"has shape \(2,\), its weight \(3,\)"),
        (np.ones(3, int), "is int64; pass one of"),
        ([1.0, 2.0, 3.0], "is a list, not an array"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            Param(ones(3), grad, name="w")


GRAMMAR = {
    "an array": (ones(2), ["0"]),
    "a Param": (Param(ones(2)), ["0"]),
    "a Param with a name": (Param(ones(2), name="psi"), ["psi"]),
    "a list": ([ones(2), ones(3)], ["0", "1"]),
    "a list of named Params": ([Param(ones(2), name="a"), Param(ones(2))], ["a", "1"]),
    "a tuple": ((ones(2), ones(3)), ["0", "1"]),
    "a dict": ({"W": ones(2), "b": ones(1)}, ["W", "b"]),
    "a dict names its Params": ({"W": Param(ones(2), name="x")}, ["W"]),
    "nested": ({"enc": [{"W": ones(2)}, {"W": ones(2), "b": ones(1)}], "s": ones(1)}, ["enc.0.W", "enc.1.W", "enc.1.b", "s"]),
    "layers without parameters": ([{"W": ones(2)}, {}, [], {"W": ones(2)}], ["0.W", "3.W"]),
    "a generator": ((ones(2) for _ in range(2)), ["0", "1"]),
    "pairs": (iter([("a.w", ones(2)), ("a.b", ones(1))]), ["a.w", "a.b"]),
    "values of a dict": ({"x": ones(2), "y": ones(1)}.values(), ["0", "1"]),
    "named_parameters()": (Named("named_parameters", [("l.w", ones(2))]), ["l.w"]),
    "parameters()": (Named("parameters", [ones(2), ones(3)]), ["0", "1"]),
    "params() with a dict": (Named("params", {"w": ones(2), "in": {"b": ones(1)}}), ["w", "in.b"]),
    "objects in a list": ([Named("params", {"W": Param(ones(2), name="W")}), Named("params", {"W": ones(2)})], ["0.W", "1.W"]),
    "a holder": (Holder(ones(2)), ["0"]),
    "holders": ({"a": Holder(ones(2)), "b": ones(1)}, ["a", "b"]),
    "groups": ([{"params": [ones(2)]}, {"params": {"b": ones(1)}, "lr": 0.1}], ["0.0", "b"]),
    "a group of a generator": ([{"params": iter([ones(2)]), "lr": 0.1}], ["0"]),
}
if torch is not None:
    GRAMMAR["torch"] = (torch.nn.Linear(2, 1), ["weight", "bias"])


@pytest.mark.parametrize("case", GRAMMAR)
def test_the_grammar(case):
    source, names = GRAMMAR[case]
    opt = SGD(source, lr=0.1)
    assert opt.names == names == list(opt)
    assert all(name in opt for name in names)
    opt.step({name: torch.ones_like(opt[name].data) if case == "torch" else ones(*opt[name].shape) for name in names})
    for name in names:
        if case != "torch":
            np.testing.assert_array_equal(opt[name].data, np.float32(1) - np.float32(0.1))


def test_groups_are_checked():
    shared = iter([ones(2)])
    with pytest.raises(ValueError, match=r"group 1 has no parameters"):
        SGD([{"params": shared}, {"params": shared}], lr=1.0)
    with pytest.raises(TypeError, match=r"entry 1 of the list of groups is no group"):
        SGD([{"params": [ones(2)]}, ones(2)], lr=1.0)
    with pytest.raises(TypeError, match=r"at 'lr': a float is no parameter.*in a list"):
        SGD({"params": [ones(2)], "lr": 1.0}, lr=1.0)


def test_one_param_in_two_optimizers_has_a_name_in_each():
    p, q = Param(ones(2)), Param(ones(2))
    first = SGD({"enc.w": p, "b": q}, lr=1.0)
    second = SGD([p], lr=1.0)
    assert (first.names, second.names) == (["enc.w", "b"], ["0"])
    first.set(where="enc.*", lr=0.5)
    first.step({"enc.w": ones(2), "b": ones(2)})
    assert (p.data[0], q.data[0]) == (0.5, 0)


def test_the_package_has_these_names():
    assert {"Param", "Scalar", "zeros", "full", "norm", "total"} <= set(dir(optimkit))


def test_gradients_mirror_the_parameters():
    params = {"enc": [ones(2), {"W": ones(3)}], "s": ones(1)}
    opt = SGD(params, lr=1.0)
    opt.step({"enc": [2 * ones(2), {"W": 3 * ones(3)}]})
    assert params["enc"][0][0] == -1
    assert params["enc"][1]["W"][0] == -2
    assert params["s"][0] == 1, "no gradient, no step"
    opt.step({"enc": [None, None], "s": ones(1)})
    assert (params["enc"][0][0], params["s"][0]) == (-1, 0)
    opt.step({"enc.1.W": ones(3)})
    assert params["enc"][1]["W"][0] == -3
    for grads, error, message in [
        ({"x": ones(1)}, KeyError, "there is no such parameter; there are enc, s"),
        ({"enc": [ones(2)]}, ValueError, "1 gradients of 'enc' for 2 parameters"),
        ({"enc": ones(2)}, TypeError, "gradients of 'enc' are numpy array of shape"),
        ({"enc": {ones(1).size}}, TypeError, "gradients of 'enc' are a set"),
        ({"s": 1.0}, TypeError, "gradient of 's'.* a float"),
    ]:
        with pytest.raises(error, match=message):
            opt.step(grads)


def test_gradients_of_params_and_holders_are_read():
    p, holder = Param(ones(2)), Holder(ones(2))
    opt = SGD([p, holder], lr=1.0)
    p.grad, holder.grad = ones(2), 2 * ones(2)
    opt.step()
    assert (p.data[0], holder.data[0]) == (0, -1)
    opt.zero_grad()
    assert not p.grad.any()
    assert not holder.grad.any()
    opt.zero_grad(set_to_none=True)
    assert p.grad is None
    assert holder.grad is None


@needs_torch
def test_gradients_of_tensors_are_read():
    tensor = torch.nn.Parameter(torch.ones(2))
    tensor.grad = torch.ones(2)
    SGD([tensor], lr=1.0).step()
    assert tensor.tolist() == [0, 0]
    params = {"W": ones(2)}
    opt = SGD(params, lr=1.0)
    params["W"] = tensor.data
    with pytest.raises(ValueError, match=r"'W' was a numpy array .* and became a torch array"):
        opt.step({"W": ones(2)})


# ---- the container is the truth (row 11c)


def test_row_11c_a_rebound_array_is_adopted_and_keeps_its_state():
    params = {"enc": {"W": ones(2)}, "list": [ones(2)]}
    opt = SGD(params, lr=1.0, momentum=0.5)
    grads = {"enc": {"W": ones(2)}, "list": [ones(2)]}
    opt.step(grads)
    old = params["enc"]["W"]
    params["enc"]["W"] = params["enc"]["W"] * 10
    params["list"][0] = 5 * ones(2)
    opt.step(grads)
    assert params["enc"]["W"][0] == 0 - 1.5
    assert params["list"][0][0] == 5 - 1.5
    assert old[0] == 0, "the old array is no longer trained"
    opt["enc.W"].data = 7 * ones(2)
    opt.step(grads)
    assert opt["enc.W"].data[0] == params["enc"]["W"][0] == 7 - 1.75


def test_row_11c_what_is_rebound_before_the_first_step():
    params, p = {"a": ones(2), "h": Holder(ones(2)), "b": ones(2)}, Param(ones(2))
    opt = SGD([params, p], lr=1.0)
    params["a"], p.data = 3 * ones(2), 4 * ones(2)
    opt["0.h"].data, opt["0.b"].data = 5 * ones(2), 6 * ones(2)
    opt.step([{"a": ones(2), "h": ones(2), "b": ones(2)}, ones(2)])
    assert (params["a"][0], p.data[0], params["h"].data[0], params["b"][0]) == (2, 3, 4, 5)


def test_row_11c_a_rebound_array_in_another_memory_order_keeps_its_state():
    rng = np.random.default_rng(0)
    start, g = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    a, b = {"W": start.copy(), "x": ones(1)}, {"W": start.copy(), "x": ones(1)}
    one, other = Adam(a), Adam(b)
    for number in range(4):
        if number == 2:
            b["W"] = np.asfortranarray(b["W"])
        one.step({"W": g, "x": ones(1)})
        other.step({"W": g, "x": ones(1)})
    np.testing.assert_array_equal(a["W"], b["W"])


def test_row_11c_a_rebound_container_is_adopted():
    params = {"enc": {"W": ones(2), "in": [ones(1)]}, "b": ones(1)}
    opt = SGD(params, lr=1.0)
    grads = {"enc": {"W": ones(2), "in": [ones(1)]}, "b": ones(1)}
    opt.step(grads)
    params["enc"] = {"in": [3 * ones(1)], "W": 2 * ones(2)}
    opt.step(grads)
    assert (params["enc"]["W"][0], params["enc"]["in"][0][0]) == (1, 2)
    params["enc"] = ones(2)
    with pytest.raises(TypeError, match=r"parameters at 'enc' were a dict and became numpy array"):
        opt.step(grads)


def test_row_11c_an_attribute_of_an_object_is_adopted():
    layer = types.SimpleNamespace(W=ones(2))
    layer.params = lambda: {"W": layer.W}
    opt = SGD([layer], lr=1.0)
    layer.W = 3 * ones(2)
    opt.step([[ones(2)]])
    assert layer.W[0] == 2
    holder = Holder(ones(2))
    opt = SGD({"h": holder}, lr=1.0)
    holder.data = 5 * ones(2)
    opt.step({"h": ones(2)})
    assert holder.data[0] == 4


@pytest.mark.parametrize(
    ("new", "error", "message"),
    [
        (ones(3), ValueError, r"parameter 'W' was a numpy array of shape \(2,\), float32 and became .*\(3,\).*use opt.replace"),
        (np.ones(2), ValueError, "float64; use opt.replace"),
        (strict.ones(2), ValueError, "became a array_api_strict array"),
        (2.0, TypeError, r"parameter 'W' became a float; call opt.remove\('W'\)"),
        (None, TypeError, "became a NoneType"),
        (np.broadcast_to(ones(1), (2,)), ValueError, "'W' is read-only"),
    ],
)
def test_row_11c_what_cannot_be_adopted_is_an_error_and_changes_nothing(new, error, message):
    params = {"a": ones(2), "W": ones(2)}
    opt = SGD(params, lr=1.0, momentum=0.9)
    grads = {"a": ones(2), "W": ones(2)}
    opt.step(grads)
    params["a"] = 5 * ones(2)  # could be adopted, and must not be lost by the error of the other
    good, params["W"] = params["W"], new
    for _ in range(2):
        with pytest.raises(error, match=message):
            opt.step(grads)
    assert opt.state["W"].t == 1
    params["W"] = good
    opt.step(grads)
    assert params["a"][0] == 5 - np.float32(1.9)
    assert good[0] == np.float32(0 - np.float32(1.9))


def test_row_11c_keys_that_come_or_go_behind_the_back_are_errors():
    params = {"a": ones(2), "b": ones(2)}
    opt = SGD(params, lr=1.0)
    params["c"] = ones(2)
    with pytest.raises(ValueError, match=r"'c' came: call opt.add\(...\) with it, so that nothing is left untrained silently"):
        opt.step({"a": ones(2)})
    del params["c"], params["b"]
    with pytest.raises(ValueError, match=r"'b' left it: put it back, or call opt.remove\('b'\)"):
        opt.step({"a": ones(2)})
    assert params["a"][0] == 1
    opt.remove("b")
    opt.step({"a": ones(2)})
    assert params["a"][0] == 0


def test_row_11c_one_array_rebound_under_two_names_is_an_error():
    params = {"a": ones(4), "b": ones(4)}
    opt = SGD(params, lr=1.0)
    params["b"] = params["a"]
    with pytest.raises(ValueError, match=r"'a' and 'b' are the same array"):
        opt.step({"a": ones(4)})
    params["b"] = params["a"][::-1]
    with pytest.raises(ValueError, match=r"'a' and 'b' overlap in memory"):
        opt.step({"a": ones(4)})
    assert params["a"].tolist() == [1, 1, 1, 1]


@needs_torch
def test_row_11c_a_tensor_that_was_changed_in_place():
    tensor = torch.nn.Parameter(torch.ones(2))
    opt = SGD([tensor], lr=1.0)
    tensor.data = 3 * torch.ones(2)
    opt.step([torch.ones(2)])
    assert tensor.tolist() == [2, 2]
    tensor.data = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"float32 on cpu and became .* float64"):
        opt.step([torch.ones(2)])
