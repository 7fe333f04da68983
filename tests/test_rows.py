"""Values of a warm step in compiled code: host values, and those of each parameter, have the bits that the driver gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from optimizers import CASES, Distance, Trust, make

from optimkit import SGD, Adam, NonFiniteGradientError, Optimizer, Scalar, full, norm, total, total_norm, zeros
from optimkit.arrays import DTYPES
from optimkit.driver import step
from optimkit.driver.explain import plan_alone
from optimkit.engines.choose import llvm_problem
from optimkit.engines.cpu.kernels import compile_text
from optimkit.engines.cpu.rows import ROUNDING, rows_text
from optimkit.fusion.graph import Level, walk
from optimkit.fusion.operations import OPERATIONS
from optimkit.transforms import ClipByGlobalNorm

pytestmark = pytest.mark.skipif(bool(llvm_problem()), reason=llvm_problem() or "llvmlite is there")

# ---- host values

COUNTS = [1, 2, 3, 7, 10, 255, 1000, 65537, 10**6 + 1, 123456789, 10**9 - 1, 10**9]


class Hosts(Optimizer):
    """All operations on numbers."""

    a: Scalar = 0.5
    b: Scalar = 0.25

    def update(self, w, g, s, h, xp):
        a, b, t = h.a, h.b, h.t
        values = [a + b, a - b, a * b, a / b, -a, xp.abs(b), xp.sqrt(a), xp.sign(a), xp.minimum(a, b), xp.maximum(a, b)]
        values += [xp.floor(a), xp.ceil(a), xp.round(b), xp.exp(a), xp.expm1(b), xp.log(a), xp.log1p(b), xp.tanh(a)]
        values += [xp.abs(a) ** b, a**2, a**-3.0, b**0.5, a**t, b**-t, a ** (t - 3), t**a, t**-0.75, xp.imag(a), 2 * t - 1.0]
        values += [xp.where(a == b, a, b), xp.where((a != b) & xp.isfinite(a / b), a, 1.0), xp.where(a > b, t, a)]
        values += [xp.where((a < b) | xp.isnan(xp.log(a)), a, 2.0), xp.where(xp.logical_not(a <= b), b, t)]
        values += [xp.where(b >= t, 1.0, 0.0)]
        step = g
        for value in values:
            step = step + value * g
        return xp.where(a < b, step, -step), {}


NUMBERS = [0.0, -0.0, 1.0, 0.5, -0.5, 2.0, -3.0, 0.9, 0.999, 1 - 1e-9, 1e-8, 1e-320, -2.5, 3.5, 709.9, -750.0, 1e300, -1e200]


def rows_of(plan, dtype, numbers, count):
    """A row of host values from compiled code, in the dtype of the kernel and as it is."""
    text = rows_text(plan, DTYPES[dtype])
    narrow, wide = np.zeros(len(plan.hosts), dtype), np.zeros(len(plan.hosts))
    given = np.array([*numbers, 0.0])
    compile_text(text, 4).held(given.ctypes.data, count, narrow.ctypes.data, wide.ctypes.data)
    return narrow, wide


def check_rows(plan, dtype, numbers, count):
    with np.errstate(all="ignore"):
        expected = np.array(plan.host(numbers, count), np.float64)
        narrow, wide = rows_of(plan, dtype, numbers, count)
        for got, wanted in [(narrow, expected.astype(dtype)), *([(wide, expected)] if plan.uniform_rounds else [])]:
            nans = np.isnan(wanted)
            assert (np.isnan(got) == nans).all(), (numbers, count)
            assert got[~nans].tobytes() == wanted[~nans].tobytes(), (numbers, count)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_rows_of_every_optimizer(name, dtype):
    plan, rng = plan_alone(make(name)._run.chain(), dtype), np.random.default_rng(0)
    for count in [*COUNTS, *rng.integers(1, 10**9, 20).tolist()]:
        for numbers in (rng.uniform(0, 1, len(plan.numbers)), rng.normal(size=len(plan.numbers)) * 10 ** rng.uniform(-9, 9)):
            check_rows(plan, dtype, numbers.tolist(), count)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_all_operations(dtype):
    plan = plan_alone(Hosts()._run.chain(), dtype)
    used = {node.op for node in walk(plan.hosts)}
    assert {*OPERATIONS} - used == {"hypot", "real", "conj"}, "of a number the last two are the number itself"
    for a in NUMBERS:
        for place, b in enumerate(NUMBERS):
            check_rows(plan, dtype, [a, b], COUNTS[place % len(COUNTS)])


class Hypotenuse(Optimizer):
    """An operation on numbers that Python rounds as no C library does."""

    a: Scalar = 0.1
    b: Scalar = 0.3

    def update(self, w, g, s, h, xp):
        return xp.hypot(h.a, h.b * h.t) * g, {}


def test_without_a_text_of_its_rows_a_step_is_not_compiled_but_right():
    assert rows_text(plan_alone(Hypotenuse()._run.chain(), "float64"), DTYPES["float64"]) is None
    w, expected, g = np.ones(5), np.ones(5), np.linspace(-3, 1, 5)
    opt = Hypotenuse(w)
    for t in (1, 2, 3, 4):
        opt.step(g)
        expected -= math.hypot(0.1, 0.3 * t) * g
        assert w.tobytes() == expected.tobytes()
    assert (opt._run.warm, opt._run.warm_tried) == (None, True)


# ---- values of each parameter

VALUES = 24


class Uniforms(Optimizer):
    """All exact operations on values of a parameter and of all, each kept in a slot."""

    lr: Scalar = 0.1

    def slots(self):
        return {"m": zeros, **{f"u{i}": full(0.5).per("parameter") for i in range(VALUES)}}

    def values(self, w, a, b, c, s, h, xp):
        yield from (a + b, a - c, a * h.lr, b / a, -b, xp.sqrt(a), xp.sqrt(b), xp.abs(b), xp.sign(b), xp.minimum(b, c))
        yield from (xp.maximum(b, 0.25), (b / (1 + a)) ** h.t, xp.where(a == b, a, s.u0), xp.where((a != c) & (b < c), b, h.lr))
        yield from (xp.where(xp.isfinite(b / a) | xp.isnan(b), b, 1.0), xp.where(xp.logical_not(a <= b), s.u1, b * s.u2))
        yield from (xp.where(b > 0, h.t, c), xp.where(b >= h.lr, 1.0, 0.0), c, total(s.u3 + b), total_norm(b * s.u4 * w))
        yield from (0.5 * s.u5 + h.lr, xp.clip(c / total(1.0 + 0.0 * a), -9.0, 9.0), xp.where(h.t > 2, a, s.u6))

    def update(self, w, g, s, h, xp):
        a, b = norm(g), xp.sum(g * w) + xp.mean(w) * xp.max(g) - xp.min(w)
        values = list(self.values(w, a, b, total(xp.max(g)), s, h, xp))
        m = 0.5 * s.m + xp.where(values[15] > 0.5, g, -g)
        d = xp.clip(values[11], -2.0, 2.0) + xp.where(values[8] < 0, values[17], 0.25)
        return h.lr * d * m, {"m": m, **{f"u{i}": value for i, value in enumerate(values)}}


RULES = {
    "all operations": (Uniforms, {}),
    "a trust ratio": (Trust, {"transforms": [ClipByGlobalNorm(3.0)]}),
    "slots per optimizer": (Distance, {}),
    "clipped": (Adam, {"transforms": [ClipByGlobalNorm(1.0)]}),
    "a sum": (SGD, {"lr": 0.1}),
}


def bits(x):
    """The bytes of an array, in which one NaN is like another."""
    x = np.array(x)
    x[np.isnan(x)] = np.nan
    return x.tobytes()


def states(opt):
    """Counts and slots, to the bit."""
    saved = opt.state_dict()
    slots = {name: {slot: bits(x) for slot, x in own.pop("slots").items()} for name, own in saved["state"].items()}
    return {**saved, "slots": slots, "shared": [bits(x) for x in opt._run.shared.values()]}


def halves(values):
    return values[: len(values) // 2 + 1], values[len(values) // 2 + 1 :]


def make_pair(rule, n, nonfinite, dtypes):
    """Two optimizers of the same parameters in two groups; the second one has no compiled steps."""
    (kind, settings), pair = RULES[rule], []
    for _ in range(2):
        rng = np.random.default_rng(n)
        weights = [rng.normal(size=1 + place % 7).astype(dtypes[place % len(dtypes)]) for place in range(n)]
        first, second = halves(weights)
        params = [{"params": first}, {"params": second, "lr": 0.5}] if second else first
        pair.append((kind(params, nonfinite=nonfinite, **settings), weights))
    pair[1][0]._run.ready_warm = lambda: None
    return pair


def gradients_of(weights, step, rng):
    """Some are missing, some are zeros of either sign, and now and then one is not finite."""
    grads = [rng.normal(size=w.shape).astype(w.dtype) for w in weights]
    if step % 3 == 2:
        grads[-1][...] = -0.0
    if step in (4, 7):
        grads[len(grads) // 2][-1] = np.nan if step == 4 else -np.inf
    missing = range(step % 2, len(grads), 3) if step in (3, 5, 6) else ()
    return [None if place in missing and len(grads) > 1 else g for place, g in enumerate(grads)]


def outcome(opt, grads):
    """What a step told, to the bit."""
    try:
        result = opt.step([*halves(grads)] if len(grads) > 1 else grads)
    except NonFiniteGradientError as error:
        return str(error)
    return result.applied, None if result.grad_norm is None else bits(result.grad_norm)


@pytest.mark.parametrize("nonfinite", ["allow", "skip", "raise"])
@pytest.mark.parametrize("n", [1, 5, 129, 300])
@pytest.mark.parametrize("rule", RULES)
def test_compiled_steps_have_the_bits_of_the_driver(rule, n, nonfinite, monkeypatch):
    dtypes = ("float32",) if rule == "slots per optimizer" else ("float32", "float64")
    (opt, weights), (plain, others) = make_pair(rule, n, nonfinite, dtypes)
    anew, take_anew = [], step.take_anew
    monkeypatch.setattr(step, "take_anew", lambda run, *args: (anew.append(run), take_anew(run, *args))[1])
    for number in range(9):
        grads = gradients_of(weights, number, np.random.default_rng(number))
        assert outcome(opt, grads) == outcome(plain, grads), number
        assert [*map(bits, weights)] == [*map(bits, others)], number
    assert opt._run.warm is not None
    assert states(opt) == states(plain)
    assert anew.count(plain._run) == 9
    assert anew.count(opt._run) == (1 if nonfinite == "allow" else 3), "the first one, and those that are not finite"


def test_the_rule_has_all_operations_whose_bits_are_the_same_everywhere():
    plan = plan_alone(Uniforms()._run.chain(), "float64")
    used = {node.op for node in plan.program.nodes if node.level is Level.UNIFORM}
    exact = {name for name, operation in OPERATIONS.items() if operation.exact}
    assert exact - used == {"real", "imag", "conj", *ROUNDING}
    assert {"size", "slot", "total", "sum", "max", "min", "sum_of_squares"} <= used


@pytest.mark.parametrize("reason", ["frozen and zeroed", "memory is shared", "another array stands there", "read-only"])
def test_the_driver_goes_on_where_compiled_steps_stopped(reason):
    """Steps that compiled code was not even asked for, right after some that it took with other gradients."""
    weights, optimizers = [], []
    for engine in ("llvm", "eager"):
        w = {name: np.full(5, 0.5, np.float32) for name in "abc"}
        grads = {name: np.linspace(0.1, 1.0, 5, dtype=np.float32) for name in "abc"}
        opt = Adam(w, lr=0.1, engine=engine)
        weights.append(w)
        optimizers.append(opt)
        if reason == "frozen and zeroed":
            opt.freeze("c")
        opt.step(grads)
        opt.step(grads)
        for names in ("ab", "a", "abc", "bc"):
            opt.step({name: grads[name] for name in names})
        if reason == "memory is shared":
            opt.step({"a": grads["a"], "b": grads["a"], "c": grads["c"]})
            for names in ("c", "ab"):
                opt.step({name: grads[name] for name in names})
        elif reason == "another array stands there":
            w["a"] = w["a"].copy()
        elif reason == "read-only":
            grads["b"].flags.writeable = False
            with pytest.raises(ValueError, match="gradient of 'b' is read-only"):
                opt.step({"b": grads["b"], "c": grads["c"]}, zero_grad=True)
            opt.step({"b": grads["b"], "c": grads["c"]})
        opt.step({"b": grads["b"], "c": grads["c"]}, zero_grad=reason != "read-only")
        assert grads["c"].any() == (reason == "read-only")
    for name, w in weights[0].items():
        np.testing.assert_array_equal(w, weights[1][name], name)
        assert optimizers[0].state[name].t == optimizers[1].state[name].t
