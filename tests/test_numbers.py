"""Numbers and the definitions of rules: what is taken, what is refused, and errors of class bodies (faults 5, 6, 11)."""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

import optimkit
from optimkit import SGD, Adam, Optimizer, Param, Penalty, Scalar, Transform, abs2, full, zeros
from optimkit.rules.numbers import Fraction, NonNegative

try:
    import torch
except ImportError:
    torch = None


def ones(*shape):
    return np.ones(shape, np.float32)


class Plain(Optimizer):
    lr: Scalar = 1.0
    power: int = 1

    def update(self, w, g, s, h, xp):
        return h.lr * g**self.power


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
    opt.lr = 1.0
    opt.step(g)
    assert opt.state["0"].t == 2


def test_a_schedule_that_raises_writes_nothing():
    w = ones(2)
    opt = SGD(w, lr=lambda n: 1 / n)
    with pytest.raises(ZeroDivisionError):
        opt.step(ones(2))
    assert (w[0], opt.count) == (1, 0)


# ---- definitions


def define(body: Callable[[dict[str, Any]], None] | None = None, base=Optimizer, **names):
    annotations = names.pop("annotations", {})
    return types.new_class("Mine", (base,), exec_body=lambda space: space.update(__annotations__=annotations, **names))


def update(self, w, g, s, h, xp):
    return h.lr * g


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"lr": 0.1}, r"Mine.lr = 0.1 has no annotation and would be ignored; write `lr: Scalar = 0.1` for a number"),
        ({"flag": True}, "write `flag: bool = True`"),
        ({"betas": (0.9, 0.99)}, r"write `betas: tuple\[Scalar, Scalar\] = \(0.9, 0.99\)`"),
        ({"order": 2}, r"`order: ClassVar\[int\] = 2` for a constant"),
        ({"annotations": {"step": Scalar}, "step": 0.1}, "Mine.step: this name is taken by Optimizer; call the field"),
        ({"annotations": {"t": Scalar}, "t": 0.1}, "Mine.t: this name is taken"),
        ({"annotations": {"names": int}, "names": 3}, "Mine.names: this name is taken"),
        ({"annotations": {"state": int}, "state": 3}, "Mine.state: this name is taken"),
        ({"annotations": {"lr": "Scaler"}, "lr": 0.1}, r"can't be resolved \(NameError.*; import the name at module level"),
        ({"annotations": {"lr": "optimkit.Scaler"}, "lr": 0.1}, r"Mine: an annotation can't be resolved \("),
        ({"annotations": {"lr": "Scalar["}, "lr": 0.1}, r"Mine: an annotation can't be resolved \(SyntaxError"),
        ({"annotations": {"a": list[Scalar]}, "a": ()}, "Mine.a: numbers are annotated Scalar, Scalar | None or tuple"),
        ({"annotations": {"a": tuple[Scalar, ...]}, "a": ()}, "Mine.a: numbers are annotated"),
        ({"annotations": {"a": tuple[Scalar, int]}, "a": (1, 2)}, "Mine.a: numbers are annotated"),
        ({"annotations": {"a": Scalar | int}, "a": 1}, "Mine.a: numbers are annotated"),
        ({"annotations": {"a": Fraction}, "a": 1.5}, r"Mine: a = 1.5 must be a number in \[0, 1\)"),
    ],
)
def test_row_11b_bodies_that_would_be_ignored(names, message):
    with pytest.raises((TypeError, ValueError), match=message):
        define(update=update, **names)


def test_row_11b_defaults_of_a_base_class_are_changed_by_annotation():
    for names, message in [
        ({"amsgrad": True}, "Mine.amsgrad = True has no annotation and would be ignored; write `amsgrad: bool = True`"),
        ({"lr": 0.5}, "write `lr: Scalar = 0.5` for another default"),
        ({"betas": None}, "Mine.betas = None has no annotation"),
    ]:
        with pytest.raises(TypeError, match=message):
            define(base=Adam, **names)

    class Faster(Adam):
        lr: NonNegative = 0.5
        amsgrad: bool = True

    assert (Faster().lr, Faster().amsgrad, Faster.lr, Adam.lr) == (0.5, True, 0.5, 1e-3)


def test_row_11b_a_field_that_is_a_method():
    with pytest.raises(TypeError, match=r"Mine.eps is a field and a method"):

        class Mine(Adam):
            def eps(self):
                return 1e-8

    with pytest.raises(TypeError, match=r"Other.lr is a field and a method"):

        class Other(Optimizer):
            lr: Scalar

            def lr(self):
                return 0.1

    class Scheduled(Plain):
        lr: Scalar = lambda n: 0.5

    assert Scheduled().lr == 0.5


def test_constants_of_a_class_are_allowed():
    class Mine(Plain):
        order: ClassVar[int] = 2
        _private = 3

        def update(self, w, g, s, h, xp):
            return h.lr * g * self.order

    w = np.ones(1)
    Mine(w, lr=0.25).step(np.ones(1))
    assert w[0] == 0.5


def test_fields_without_a_default_are_required():
    class Mine(Plain):
        rate: Scalar
        depth: int

    with pytest.raises(TypeError, match=r"Mine needs rate: a finite number"):
        Mine(depth=1)
    with pytest.raises(TypeError, match=r"Mine needs depth"):
        Mine(rate=1.0)
    assert Mine(rate=1.0, depth=2).depth == 2


def test_structure_is_hashable_and_rules_are_pure():
    class Mine(Plain):
        shape: Any = ()

        def update(self, w, g, s, h, xp):
            self.power = 3
            return h.lr * g

    for value in ([1, 2], np.ones(2), {}):
        with pytest.raises(TypeError, match=r"Mine: shape = .* is structure, part of a kernel's key, and must be hashable"):
            Mine(shape=value)
    w = ones(2)
    with pytest.raises(TypeError, match=r"Mine: self.power = ... in an update; rules are pure"):
        Mine(w).step(ones(2))
    assert w[0] == 1


def test_dataclass_inheritance():
    @dataclasses.dataclass
    class Mixin:
        mu: Fraction = 0.5

    @dataclasses.dataclass
    class Mine(Mixin, Optimizer):
        lr: Scalar = 0.25

        def slots(self):
            return {"b": zeros}

        def update(self, w, g, s, h, xp):
            b = h.mu * s.b + g
            return h.lr * b, {"b": b}

    w = np.ones(1)
    opt = Mine(w, mu=0.0)
    opt.step(np.ones(1))
    opt.lr = 0.5
    opt.step(np.ones(1))
    assert w[0] == 0.25
    with pytest.raises(ValueError, match=r"mu = 1 must be"):
        Mine(w, mu=1)


def test_an_init_of_ones_own():
    class Good(SGD):
        def __init__(self, params, rate):
            super().__init__(params, lr=2 * rate)

    class Bad(SGD):
        def __init__(self, params):
            self.lr = 0.1

    w = np.ones(1)
    Good(w, 0.25).step(np.ones(1))
    assert w[0] == 0.5
    with pytest.raises(AttributeError, match=r"Bad is not initialised.*super\(\).__init__\(params"):
        Bad(w).step(np.ones(1))


def test_a_class_defined_again_is_another_rule():
    results = []
    for factor in (1.0, 2.0):

        class Mine(Optimizer):
            lr: Scalar = 0.25

            def update(self, w, g, s, h, xp, factor=factor):
                return factor * h.lr * g

        w = np.ones(1)
        Mine(w).step(np.ones(1))
        results.append(w[0])
    assert results == [0.75, 0.5]


SCRIPT = """
from __future__ import annotations
import copy, pickle
import numpy as np
from optimkit import Optimizer, Scalar, zeros
class Mine(Optimizer):
    lr: Scalar = 0.25
    flag: bool = True
    def slots(self):
        return {"b": zeros}
    def update(self, w, g, s, h, xp):
        b = s.b + g
        return h.lr * (b if self.flag else g), {"b": b}
w = np.ones(2, np.float32)
opt = Mine({"w": w})
opt.step({"w": w * 0 + 1})
other = pickle.loads(pickle.dumps(opt))
other.step({"w": np.ones(2, np.float32)})
print(other["w"].data.tolist(), w.tolist())
"""


def test_a_rule_defined_in_main_with_annotations_as_strings():
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout == "[0.25, 0.25] [0.75, 0.75]\n", done.stderr


# ---- what rules do wrong (row 11b)


def rule(update, **names):
    return define(update=update, annotations={"lr": Scalar, "flag": bool}, lr=0.1, flag=False, **names)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (lambda self, w, g, s, h, xp: self.lr * g, r"Mine: self.lr is a number.*write h.lr"),
        (lambda self, w, g, s, h, xp: h.flag * g, "Mine: h.flag is structure: write self.flag"),
        (lambda self, w, g, s, h, xp: h.rl * g, "Mine: h.rl is no number; h has lr, t"),
        (lambda self, w, g, s, h, xp: g if g > 0 else w, "can't branch on a value.*xp.where"),
        (lambda self, w, g, s, h, xp: float(h.lr) * g, "can't turn a value into a Python number"),
        (lambda self, w, g, s, h, xp: xp.fft(g), "xp.fft is not an operation of an update rule; there are: abs"),
        (lambda self, w, g, s, h, xp: g * s.m, r"Mine: s.m is no slot; slots\(\) declares none"),
        (lambda self, w, g, s, h, xp: (g, {"m": g}), r"returns the slot 'm' but slots\(\) does not declare it"),
        (lambda self, w, g, s, h, xp: None, "Mine.update returns None"),
        (lambda self, w, g, s, h, xp: (g, g), "Mine.update must return a value, or"),
        (lambda self, w, g, s, h, xp: g > 0, "of a comparison: write xp.where"),
        (lambda self, w, g, s, h, xp: g * np.ones(2), "array"),
        (lambda self, w, g, s, h, xp: g * "a", "Mine|str"),
    ],
)
def test_row_11b_misuse_names_the_class_and_what_to_write(update, message):
    w = ones(2)
    with pytest.raises((TypeError, AttributeError), match=message):
        rule(update)(w).step(ones(2))
    assert w.tolist() == [1, 1]


def test_row_11b_missing_slots():
    mine = rule(lambda self, w, g, s, h, xp: h.lr * g, slots=lambda self: {"m": zeros})
    with pytest.raises(TypeError, match=r"Mine: the slot 'm' is declared by slots\(\), but update does not return it"):
        mine(ones(2)).step(ones(2))
    mine = rule(lambda self, w, g, s, h, xp: (h.lr * g, {"m": g}), slots=lambda self: {"m": 0.0})
    with pytest.raises(TypeError, match=r"slots\(\)\['m'\] = 0.0 must be a slot: zeros"):
        mine(ones(2)).step(ones(2))
    mine = rule(lambda self, w, g, s, h, xp: g, slots=lambda self: ["m"])
    with pytest.raises(TypeError, match=r"Mine.slots\(\) = \['m'\] must be a dict, such as {'m': zeros}"):
        mine(ones(2)).step(ones(2))
    with pytest.raises(TypeError, match=r"Mine must define update"):
        define(annotations={"lr": Scalar}, lr=0.1)()
    with pytest.raises(ValueError, match=r"full\('a'\)"):
        full("a")
    with pytest.raises(TypeError, match=r"abs2 works inside an update"):
        abs2(ones(2))


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


def test_a_penalty_must_penalize():
    class Mine(Penalty):
        rate: Scalar = 0.1

    with pytest.raises(TypeError, match=r"Mine must define penalize\(self, w, h, xp\)"):
        SGD(ones(2), lr=0.1, penalty=Mine()).step(ones(2))


def test_reprs_show_numbers_and_no_arrays():
    params = {"w": ones(1000), "p": Param(ones(3))}
    opt = Adam(params, lr=0.5, penalty=optimkit.L2(0.25), amsgrad=True)
    opt.step({"w": ones(1000)})
    opt.lr = 0.125
    text = repr(opt)
    assert text == "Adam(lr=0.125, betas=(0.9, 0.999), eps=1e-08, penalty=L2(l2=0.25), amsgrad=True; 2 parameters)"
    for each in (opt, opt.state, opt.state["w"], params["p"]):
        assert "array(" not in repr(each)
