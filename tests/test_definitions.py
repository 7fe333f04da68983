"""Definitions of rules: what a class body may have, and errors of class bodies and of what they return (fault 11b)."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
from test_numbers import ones

from optimkit import SGD, Adam, Optimizer, Penalty, Scalar, abs2, full, zeros
from optimkit.rules.numbers import Fraction, NonNegative


class Plain(Optimizer):
    lr: Scalar = 1.0
    power: int = 1

    def update(self, w, g, s, h, xp):
        return h.lr * g**self.power


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


def test_a_penalty_must_penalize():
    class Mine(Penalty):
        rate: Scalar = 0.1

    with pytest.raises(TypeError, match=r"Mine must define penalize\(self, w, h, xp\)"):
        SGD(ones(2), lr=0.1, penalty=Mine()).step(ones(2))
