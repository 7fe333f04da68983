"""What a rule may say: misuse is an error that names the class and says what to write (fault 11b, with `test_definitions`)."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest

import optimkit
from optimkit import Optimizer, Scalar, abs2, norm, total, total_norm, zeros
from optimkit.fusion.trace import Namespace


def rule(body, slots=None, **fields):
    """An optimizer with this update, and what it does in its first step."""
    namespace = {"update": body, "__annotations__": {"lr": Scalar, **dict.fromkeys(fields, Scalar)}, "lr": 0.1, **fields}
    if slots is not None:
        namespace["slots"] = lambda self: slots
    return type("Mine", (Optimizer,), namespace)


MISUSE = {
    "if": (lambda self, w, g, s, h, xp: g if g > 0 else -g, {}, r"xp\.where"),
    "and": (lambda self, w, g, s, h, xp: xp.where(g > 0 and w > 0, g, w), {}, r"xp\.where"),
    "chain": (lambda self, w, g, s, h, xp: xp.where(0 < g < 1, g, w), {}, r"xp\.where"),
    "builtin max": (lambda self, w, g, s, h, xp: max(g, w), {}, r"xp\.maximum"),
    "float": (lambda self, w, g, s, h, xp: float(h.lr) * g, {}, r"float\(\)"),
    "int": (lambda self, w, g, s, h, xp: int(h.t) * g, {}, r"int\(\)"),
    "math": (lambda self, w, g, s, h, xp: math.sqrt(h.lr) * g, {}, r"xp\.sqrt"),
    "numpy": (lambda self, w, g, s, h, xp: np.sqrt(g), {}, r"xp\.sqrt\(x\), not np\.sqrt"),
    "numpy on two": (lambda self, w, g, s, h, xp: np.maximum(g, w), {}, "xp|np"),
    "loop": (lambda self, w, g, s, h, xp: sum(x for x in g), {}, "no loops"),
    "index": (lambda self, w, g, s, h, xp: g[0], {}, "no indexing"),
    "self.lr": (lambda self, w, g, s, h, xp: self.lr * g, {}, r"Mine: self\.lr .* write h\.lr"),
    "h.structure": (lambda self, w, g, s, h, xp: h.maximize * g, {}, r"Mine: h\.maximize"),
    "h.unknown": (lambda self, w, g, s, h, xp: h.rate * g, {}, r"Mine: h\.rate is no number; h has .*lr"),
    "s.unknown": (lambda self, w, g, s, h, xp: s.m * g, {}, r"Mine: s\.m is no slot; slots\(\) declares none"),
    "xp.unknown": (lambda self, w, g, s, h, xp: xp.sin(g), {}, r"xp\.sin is not an operation .*: abs, add"),
    "too many arguments": (lambda self, w, g, s, h, xp: xp.sqrt(g, w), {}, r"xp\.sqrt takes 1 argument"),
    "array": (lambda self, w, g, s, h, xp: g * np.ones(3), {}, r"met a ndarray: .* Arrays belong into slots"),
    "string": (lambda self, w, g, s, h, xp: g * "a", {}, "met a str"),
    "comparison as step": (lambda self, w, g, s, h, xp: g > 0, {}, r"xp\.where\(condition, 1\.0, 0\.0\)|xp\.where"),
    "undeclared slot": (lambda self, w, g, s, h, xp: (g, {"m": g}), {}, "Mine.update returns the slot 'm' but slots"),
    "missing slot": (lambda self, w, g, s, h, xp: g, {"m": zeros}, "Mine: the slot 'm' is declared by slots"),
    "comparison as slot": (lambda self, w, g, s, h, xp: (g, {"m": g > 0}), {"m": zeros}, "slot 'm' is a comparison"),
    "no slot": (lambda self, w, g, s, h, xp: g, {"m": 0.0}, r"Mine\.slots\(\)\['m'\] = 0\.0 must be a slot"),
    "wrong tuple": (lambda self, w, g, s, h, xp: (g, g), {}, r"Mine\.update must return a value, or \(value, \{slot"),
    "nothing": (lambda self, w, g, s, h, xp: None, {}, r"Mine\.update returns None"),
    "elements per parameter": (
        lambda self, w, g, s, h, xp: (g, {"m": g}),
        {"m": zeros.per("parameter")},
        "one value per element, but it is declared per parameter",
    ),
    "parameters per optimizer": (
        lambda self, w, g, s, h, xp: (g, {"m": xp.sum(g)}),
        {"m": zeros.per("optimizer")},
        "differs between parameters, but it is declared per optimizer; take total",
    ),
    "reduction of a number": (lambda self, w, g, s, h, xp: g * xp.sum(h.lr), {}, "reduces the elements of an array"),
    "total of a number": (lambda self, w, g, s, h, xp: g * total(h.lr), {}, "total of a number"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_says_what_to_write(name):
    body, slots, message = MISUSE[name]
    w = np.ones(3)
    with pytest.raises((TypeError, AttributeError), match=message):
        rule(body, slots)(w, engine="eager").step(np.ones(3))
    assert w.tolist() == [1, 1, 1]


def test_values_do_not_outlive_their_trace():
    kept = []

    def update(self, w, g, s, h, xp):
        kept.append(g)
        return g + kept[0]

    cls = rule(update)
    cls(np.ones(3), engine="eager").step(np.ones(3))
    with pytest.raises(TypeError, match="pure function"):
        cls(np.ones(3), engine="eager", maximize=True).step(np.ones(3))


@pytest.mark.parametrize("function", [abs2, norm, total, total_norm])
def test_functions_of_rules_work_in_rules_only(function):
    with pytest.raises(TypeError, match="inside an update or a hook"):
        function(np.ones(3))


def test_a_namespace_computes_what_its_subclass_says():
    class Recorded(Namespace):
        def _apply(self, op, *args):
            return op, *args

    assert Recorded().clip(1, None, 2) == ("minimum", 1, 2)
    assert Recorded().sqrt(3) == ("sqrt", 3)
    assert Namespace.pi == math.pi
    assert operator.attrgetter("inf")(Recorded()) == math.inf


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean", r"no \.mean: write xp\.mean\("),
        ("real", r"write xp\.real\("),
        ("shape", r"no \.shape: it is one element at a time"),
    ],
)
def test_what_arrays_have_and_values_of_a_rule_do_not(name, message):
    class Asks(optimkit.Optimizer):
        lr: optimkit.Scalar = 0.5

        def update(self, w, g, s, h, xp):
            return getattr(g, name), {}

    with pytest.raises(AttributeError, match=message):
        Asks(np.zeros(3)).step(np.ones(3))


@pytest.mark.parametrize("root", [np.sqrt(2.0), np.float32(1.5), np.int64(2), np.array(0.5)], ids=lambda x: type(x).__name__)
def test_numpy_numbers_are_constants(root):
    class Scaled(optimkit.Optimizer):
        lr: optimkit.Scalar = 0.5

        def update(self, w, g, s, h, xp):
            return h.lr * root * g, {}

    for engine in ("eager", "llvm"):
        w = np.zeros(3)
        Scaled(w, engine=engine).step(np.ones(3))
        np.testing.assert_array_equal(w, -0.5 * float(root))
