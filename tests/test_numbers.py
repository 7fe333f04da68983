"""Numbers and options: what is taken, what is refused, how they change, and how they are shown (faults 5, 6, 11)."""

from __future__ import annotations

import decimal
import fractions

import numpy as np
import pytest

import optimkit
from optimkit import SGD, Adam, Param, Scalar, Transform

try:
    import torch
except ImportError:
    torch = None


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    "value",
    [
        *(0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), np.array(0.5), np.array(0.5, ">f8")),
        *([torch.tensor(0.5)] if torch is not None else []),
        *(fractions.Fraction(1, 2), decimal.Decimal("0.5")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_row_6_numbers_of_other_libraries_are_taken_by_their_value(value):
    params = {"w": ones(3)}
    opt = Adam(params, lr=value, betas=np.array([0.5, 0.5]), eps=np.float64(1e-8))
    assert (type(opt.lr), opt.lr, opt.betas) == (float, 0.5, (0.5, 0.5))
    opt.lr = value
    opt.step({"w": ones(3)})
    assert (params["w"].dtype, opt.state["w"]["v"].dtype) == (np.float32, np.float32)
    assert params["w"][0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.True_, np.array(True), "0.1", np.str_("0.1"), b"1", np.array("0.1"), None, 1j, [0.1], np.array([0.1]), {}),
        *(float, 10**400, float("nan"), float("inf"), -1e-9, -1),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_row_5_what_is_no_number_in_range_is_refused(value):
    params = {"w": ones(2)}
    message = r"Adam: lr = .* must be a number in \[0, inf\)"
    with pytest.raises(ValueError, match=message):
        Adam(params, lr=value)
    opt = Adam(params, lr=0.5)
    with pytest.raises(ValueError, match=message):
        opt.lr = value
    with pytest.raises(ValueError, match=message):
        opt.set(lr=value)
    with pytest.raises(ValueError, match=message):
        Adam([{"params": params, "lr": value}])
    assert opt.lr == 0.5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"betas": (0.9, 1.0)}, r"Adam: betas\[1\] = 1.0 must be a number in \[0, 1\)"),
        ({"betas": (-0.1, 0.9)}, r"Adam: betas\[0\] = -0.1 must be"),
        ({"betas": (0.9,)}, "must be 2 numbers, such as"),
        ({"betas": {0.9, 0.99}}, "must be 2 numbers"),
        ({"betas": "09"}, "must be 2 numbers"),
        ({"betas": lambda n: (0.9, 0.99)}, "must be 2 numbers"),
        ({"eps": -1e-8}, "Adam: eps = -1e-08 must be"),
        ({"eps": None}, "Adam: eps = None must be"),
        ({"amsgrad": "yes"}, "Adam: amsgrad = 'yes' must be True or False"),
        ({"amsgrad": 1}, "Adam: amsgrad = 1 must be True or False"),
    ],
)
def test_row_5_other_fields(kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Adam({"w": ones(2)}, **kwargs)
    with pytest.raises(ValueError, match=r"L2: l2 = -1 must be"):
        optimkit.L2(-1)


def test_errors_are_short():
    with pytest.raises(ValueError, match=r"lr = ") as caught:
        Adam(lr=np.ones((100, 100)))
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_row_11_unknown_hyperparameters_list_the_known_ones():
    known = "lr, betas, eps, amsgrad"
    opt = Adam({"w": ones(2)})
    with pytest.raises(TypeError, match=f"Adam has no hyperparameter 'rl'; it has {known}"):
        opt.set(rl=1.0)
    with pytest.raises(TypeError, match=f"Adam has no hyperparameter 'weight_decay'; a group may set {known}"):
        Adam([{"params": ones(2), "weight_decay": 0.1}])
    with pytest.raises(AttributeError, match=r"Adam has no field 'rl'; it has lr"):
        opt.rl = 1.0
    with pytest.raises(AttributeError, match=r"Adam has no attribute 'rl'"):
        _ = opt.rl
    with pytest.raises(AttributeError, match=r"maximize is set when the optimizer is built"):
        opt.maximize = True
    with pytest.raises(TypeError, match=r"Adam got an unexpected keyword argument 'rl'; it takes params, lr, .*, penalty"):
        Adam(rl=1.0)
    with pytest.raises(TypeError, match=r"SGD needs lr: a number in \[0, inf\)"):
        SGD(ones(2))


# ---- schedules


def test_a_schedule_counts_steps_and_its_values_are_checked():
    seen = []

    def lr(n):
        seen.append(n)
        return np.float32(0.5) ** n

    w = np.ones(1)
    opt = SGD(w, lr=lr)
    for _ in range(3):
        opt.step(np.ones(1))
    assert w[0] == 1 - 1.75
    assert set(seen) == {0, 1, 2}
    assert opt.lr == 0.125


@pytest.mark.parametrize("bad", [float("nan"), -1.0, "0.1", None, np.ones(2)], ids=repr)
def test_a_schedule_that_goes_wrong_writes_nothing(bad):
    w, g = ones(2), ones(2)
    opt = SGD(w, lr=lambda n: 0.5 if n == 0 else bad, momentum=0.5)
    opt.step(g)
    before = w.copy(), opt.state["0"]["b"].copy()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"SGD: lr, given by .* for step 1, = "):
            opt.step(g)
    np.testing.assert_array_equal((w, opt.state["0"]["b"]), before)
    assert (opt.count, opt.state["0"].t) == (1, 1)
    with pytest.warns(RuntimeWarning, match="replaced by a number"):
        opt.lr = 1.0
    opt.step(g)
    assert opt.state["0"].t == 2


def test_a_schedule_that_raises_writes_nothing():
    w = ones(2)
    opt = SGD(w, lr=lambda n: 1 / n)
    with pytest.raises(ZeroDivisionError):
        opt.step(ones(2))
    assert (w[0], opt.count) == (1, 0)


# ---- options and links


def test_options_are_checked():
    for kwargs, error, message in [
        ({"penalty": 0.1}, TypeError, r"penalty = 0.1 must be a Penalty, such as optimkit.L2"),
        ({"transforms": optimkit.L2(0.1)}, TypeError, "must be a list of Transforms"),
        ({"transforms": ["clip"]}, TypeError, "must be a list of Transforms"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite = 'ignore' must be one of 'allow', 'raise', 'skip'"),
        ({"engine": "fast"}, ValueError, "engine = 'fast' must be None"),
        ({"maximize": "no"}, TypeError, "maximize = 'no' must be True or False"),
    ]:
        with pytest.raises(error, match=message):
            SGD(ones(2), lr=0.1, **kwargs)


def test_numbers_of_links_may_change_and_be_none():
    class Noisy(Transform):
        limit: Scalar | None = None

        def gradient(self, w, g, s, h, xp):
            return g if h.limit is None else xp.clip(g, -h.limit, h.limit)

    link, w = Noisy(), np.ones(1)
    opt = SGD(w, lr=1.0, transforms=[link])
    opt.step(4 * np.ones(1))
    link.limit = 0.5
    opt.step(4 * np.ones(1))
    link.limit = 0.25
    opt.step(4 * np.ones(1))
    link.limit = None
    opt.step(4 * np.ones(1))
    assert w[0] == 1 - 4 - 0.5 - 0.25 - 4
    with pytest.raises(TypeError, match=r"where = 3 must be a glob on names"):
        link.where = 3
    with pytest.raises(TypeError, match=r"where = \['a'\] must be a glob"):
        optimkit.L2(0.1, where=["a"])


# ---- what is shown


def test_reprs_show_numbers_and_no_arrays():
    params = {"w": ones(1000), "p": Param(ones(3))}
    opt = Adam(params, lr=0.5, penalty=optimkit.L2(0.25), amsgrad=True)
    opt.step({"w": ones(1000)})
    opt.lr = 0.125
    text = repr(opt)
    assert text == "Adam(lr=0.125, betas=(0.9, 0.999), eps=1e-08, penalty=L2(l2=0.25), amsgrad=True; 2 parameters)"
    for each in (opt, opt.state, opt.state["w"], params["p"]):
        assert "array(" not in repr(each)
