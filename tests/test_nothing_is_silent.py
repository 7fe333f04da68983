"""What would do nothing, or something else than it seems to, is an error that says so; what is named exactly is that."""

from __future__ import annotations

import collections
from typing import Annotated

import numpy as np
import pytest

import optimkit
from optimkit import SGD, Adam, NonNegative, Optimizer, Scalar
from optimkit.testing import check_transform
from optimkit.transforms import ClipByValue, WeightDecay

ENGINES = ["llvm", "eager"]


# ---- where


def test_a_link_that_selects_nothing_is_refused_when_parameters_are_bound():
    links = [ClipByValue(1.0, where="*.bias")]
    with pytest.raises(ValueError, match=r"ClipByValue: where = '\*.bias' selects none of the parameters W, b"):
        SGD({"W": np.ones(2), "b": np.ones(1)}, lr=0.1, transforms=links)
    opt = SGD(lr=0.1, transforms=links)
    with pytest.raises(ValueError, match="selects none of the parameters W"):
        opt.bind({"W": np.ones(2)})
    assert opt.names == []
    opt.bind({"W": np.ones(2), "a.bias": np.ones(1)})
    links[0].where = "nothing"
    with pytest.raises(ValueError, match="where = 'nothing' selects none"):
        opt.step({"W": np.ones(2)})
    assert opt["W"].data.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"L2: where = .* selects none"):
        SGD({"W": np.ones(2)}, lr=0.1, penalty=optimkit.L2(0.1, where=lambda p: p.shape == (7,)))


def test_a_harness_may_train_some_of_the_parameters_at_a_time():
    assert check_transform(WeightDecay(rate=0.1, where="*strided*"), backends=["numpy-eager"]).passed == ["numpy-eager"]


@pytest.mark.parametrize("act", ["freeze", "set", "link", "functional"])
def test_a_name_that_is_exact_wins_over_a_glob(act):
    params = {"W[0]": np.ones(2), "W0": np.ones(2), "a*": np.ones(1), "ab": np.ones(1)}
    grads = {name: np.ones_like(w) for name, w in params.items()}
    if act == "functional":
        rule = SGD(lr=1.0, transforms=[ClipByValue(0.5, where="W[0]")])
        new, _ = rule.apply(params, grads, rule.init(params))
        assert (new["W[0]"].tolist(), new["W0"].tolist()) == ([0.5, 0.5], [0.0, 0.0])
        return
    links = [ClipByValue(0.5, where="W[0]")] if act == "link" else []
    opt = SGD(params, lr=1.0, transforms=links)
    if act == "freeze":
        opt.freeze("W[0]")
        opt.freeze("a*")
        opt.freeze("a[b]")
    elif act == "set":
        opt.set(where="W[0]", lr=0.5)
    opt.step(grads)
    expected = {"freeze": [1.0, 0.0, 1.0, 1.0], "set": [0.5, 0.0, 0.0, 0.0], "link": [0.5, 0.0, 0.0, 0.0]}
    assert [w[0] for w in params.values()] == expected[act]


# ---- classes


@pytest.mark.parametrize("hint", [float, float | None, tuple[float, float]])
def test_a_number_that_is_annotated_as_a_float_is_refused(hint):
    with pytest.raises(TypeError, match=r"Mine.lr: a float is structure.*`lr: (tuple\[)?NonNegative"):
        type("Mine", (Optimizer,), {"__annotations__": {"lr": hint}, "lr": None, "__module__": __name__})


def test_a_float_that_is_meant_as_structure_says_so():
    class Mine(Optimizer):
        lr: NonNegative = 0.1
        power: Annotated[float, "structure"] = 1.5

        def update(self, w, g, s, h, xp):
            return h.lr * self.power * g, {}

    w = np.ones(2)
    Mine(w, lr=1.0, power=0.5).step(np.ones(2))
    assert w.tolist() == [0.5, 0.5]


def test_a_preset_is_what_it_is_called():
    with pytest.raises(ValueError, match=r"AMSGrad: amsgrad = False is Adam; use optimkit.Adam"):
        optimkit.AMSGrad(np.ones(2), amsgrad=False)
    opt = optimkit.AMSGrad(np.ones(2))
    with pytest.raises(ValueError, match="AMSGrad: amsgrad = False is Adam"):
        opt.amsgrad = False
    assert opt.amsgrad is True


@pytest.mark.parametrize("name", ["_rule", "_m", 3])
def test_slots_have_names_that_can_be_read(name):
    class Mine(Optimizer):
        lr: Scalar = 0.1

        def slots(self):
            return {name: optimkit.zeros}

        def update(self, w, g, s, h, xp):
            return g, {name: g}

    with pytest.raises(TypeError, match=rf"Mine.slots\(\) has {name!r}: the name of a slot is a str without a _ in front"):
        Mine(np.ones(2)).step(np.ones(2))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_constant_that_no_float_can_be_is_refused(sign):
    class Mine(Optimizer):
        lr: Scalar = 0.1

        def update(self, w, g, s, h, xp):
            return g * (sign * 10**400), {}

    with pytest.raises(TypeError, match="a whole number of 401 digits, which no float can be"):
        Mine(np.ones(2)).step(np.ones(2))


# ---- steps and schedules


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_of_nobody_has_no_norm(engine):
    opt = Adam({"W": np.ones(2)}, lr=0.1, nonfinite="skip", engine=engine)
    for grads in ({}, {"W": np.ones(2)}, {}, {"W": None}):
        result = opt.step(grads)
        assert (result.applied, result.grad_norm) == ((True, np.sqrt(2)) if grads.get("W") is not None else (False, None))


def test_an_attribute_error_in_a_schedule_is_told_as_what_it_is():
    class Nothing:
        pass

    opt = SGD(np.ones(2), lr=lambda t: Nothing().rate)
    with pytest.raises(RuntimeError, match=r"SGD: lr, given by a schedule, could not be read: AttributeError: 'Nothing'"):
        _ = opt.lr
    with pytest.raises(AttributeError, match="'Nothing' object has no attribute 'rate'"):
        opt.step(np.ones(2))
    assert opt.count == 0


# ---- containers


def test_a_container_that_contains_itself_is_refused():
    params = {"W": np.ones(2)}
    params["again"] = {"deep": [params]}
    with pytest.raises(ValueError, match=r"parameters at 'again.deep.0': this dict contains itself"):
        SGD(params, lr=0.1)
    loop = [np.ones(1)]
    loop.append(loop)
    with pytest.raises(ValueError, match="this list contains itself"):
        SGD(lr=0.1).init(loop)
    twice = {"a": {"x": np.ones(1)}}
    twice["b"] = {"y": np.ones(1), "c": {}}
    SGD(twice, lr=0.1)
    grads = {"a": {"x": np.ones(1)}}
    grads["b"] = grads
    with pytest.raises(KeyError, match="gradients have 'a', but there is no such parameter"):
        SGD(twice, lr=0.1).step(grads)


def test_a_container_that_is_very_deep_is_refused():
    params = np.ones(2)
    for _ in range(5000):
        params = [params]
    with pytest.raises(ValueError, match=r"containers are nested more than 100 deep"):
        SGD(params, lr=0.1)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_renamed_key_of_a_defaultdict_is_not_made_again(steps):
    params = collections.defaultdict(lambda: np.zeros(2))
    params["a"], params["b"] = np.ones(2), np.ones(2)
    opt = SGD(params, lr=0.1)
    for _ in range(steps):
        opt.step({"a": np.ones(2), "b": np.ones(2)})
    params["c"] = params.pop("a")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"the container of parameters was changed; 'a' left it.*'c' came"):
            opt.step({"b": np.ones(2)})
        assert sorted(params) == ["b", "c"]
    params["a"] = params.pop("c")
    assert opt.step({"b": np.ones(2)}).applied


# ---- groups


def test_a_gradient_that_is_there_twice_is_refused():
    opt = SGD({"e": {"W": np.ones(2)}}, lr=1.0)
    g = np.ones(2)
    for grads in ({"e": {"W": g}, "e.W": 2 * g}, {"e.W": 2 * g, "e": {"W": g}}):
        with pytest.raises(ValueError, match=r"the gradient of 'e\.W' is there twice, by its place and by its name"):
            opt.step(grads)
    assert opt["e.W"].data.tolist() == [1.0, 1.0]
    opt.step({"e": {"W": None}, "e.W": g})
    opt.step({"e.W": g, "e": {}})
    assert opt["e.W"].data.tolist() == [-1.0, -1.0]


def test_groups_that_share_a_key_of_their_containers_match():
    W, b, c = (np.ones(2) for _ in range(3))
    opt = SGD([{"params": {"enc": {"W": W}}}, {"params": {"enc": {"b": b}, "dec": {"c": c}}, "lr": 0.5}], lr=1.0)
    opt.step({"enc": {"W": np.ones(2), "b": np.ones(2)}, "dec": {"c": np.ones(2)}})
    assert (W[0], b[0], c[0]) == (0.0, 0.5, 0.5)
    opt.step({"enc": {"b": np.ones(2)}, "enc.W": np.ones(2)})
    assert (W[0], b[0], c[0]) == (-1.0, 0.0, 0.5)
    with pytest.raises(KeyError, match="gradients have 'x'"):
        opt.step({"enc": {"x": np.ones(2)}})
    lists = SGD([{"params": {"enc": [W]}}, {"params": {"enc": {"q": b}}}], lr=1.0)
    with pytest.raises(ValueError, match="groups share the key 'enc', a list and a dict; pass a list of gradient containers"):
        lists.step({"enc": [np.ones(2)]})


def test_what_is_added_is_in_the_group_that_the_optimizer_was_built_with():
    opt = SGD({"a": np.ones(1), "b": np.ones(1)}, lr=1.0)
    opt.set(where="a", lr=9.0)
    for name in "cde":
        opt.add({name: np.ones(1)})
    assert [opt._run.entry(name).group.values["lr"] for name in "abcde"] == [9.0, 1.0, 1.0, 1.0, 1.0]
    assert opt.lr == [1.0, 9.0]
    for name in "bcde":
        opt.remove(name)
    assert opt.lr == 9.0
    opt.add({"f": np.ones(1)})
    assert opt.lr == [1.0, 9.0]
    opt.remove("f")
    optimkit.lr_scheduler.StepLR(opt, 1, 0.5).step()
    opt.add({"g": np.ones(1)})
    assert opt.lr == [0.5, 4.5]
    opt.remove("g")
    opt.lr = 3.0
    opt.add({"h": np.ones(1)})
    assert opt.lr == 3.0
