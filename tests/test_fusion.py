"""Operations of rules: each against NumPy, on arrays on every engine, on values per parameter, and on numbers of the host."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimkit import Optimizer, zeros
from optimkit.engines.cpu import text as cpu_text
from optimkit.engines.cuda import text as cuda_text
from optimkit.fusion.graph import Graph, Level
from optimkit.fusion.levels import compile_host, constant_text
from optimkit.fusion.operations import DERIVED, OPERATIONS
from optimkit.fusion.trace import Traced
from optimkit.testing.compare import difference

SMALL = 1e-3
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-40, -1e-40, 1e-30, 1e30, -3e38, 89.0]
SPECIAL += [math.inf, -math.inf, math.nan]
MODERATE = [0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, SMALL, -SMALL, 0.25, 7.0, -3.0]

# Each operation as a rule may write it, on the arrays a and b; NumPy's own functions are the reference.
ELEMENT = {
    "add": lambda xp, a, b: a + b,
    "subtract": lambda xp, a, b: a - b,
    "subtract__from_a_number": lambda xp, a, b: 2 - a,
    "multiply": lambda xp, a, b: a * b,
    "divide": lambda xp, a, b: a / b,
    "divide__a_number": lambda xp, a, b: 2 / a,
    "negative": lambda xp, a, b: -a,
    "positive": lambda xp, a, b: xp.positive(+a),
    "sqrt": lambda xp, a, b: xp.sqrt(a),
    "abs": lambda xp, a, b: abs(a) + xp.abs(b),
    "sign": lambda xp, a, b: xp.sign(a),
    "minimum": lambda xp, a, b: xp.minimum(a, b),
    "maximum": lambda xp, a, b: xp.maximum(a, b),
    "floor": lambda xp, a, b: xp.floor(a),
    "ceil": lambda xp, a, b: xp.ceil(a),
    "round": lambda xp, a, b: xp.round(a),
    "clip": lambda xp, a, b: xp.clip(a, -1.0, 2.0),
    "square": lambda xp, a, b: xp.square(a),
    "reciprocal": lambda xp, a, b: xp.reciprocal(a),
    "real": lambda xp, a, b: xp.real(a),
    "conj": lambda xp, a, b: xp.conj(a),
    "imag": lambda xp, a, b: xp.imag(xp.where(xp.isfinite(a), a, 0.0)),
    "power__2": lambda xp, a, b: a**2,
    "power__half": lambda xp, a, b: a**0.5,
    "power__inverse": lambda xp, a, b: a**-1,
    "where": lambda xp, a, b: xp.where(a > b, a, b),
    "equal": lambda xp, a, b: xp.where(a == b, 1.0, 0.0),
    "not_equal": lambda xp, a, b: xp.where(a != b, 1.0, 0.0),
    "less": lambda xp, a, b: xp.where(1.0 < a, 1.0, 0.0),  # noqa: SIM300
    "less_equal": lambda xp, a, b: xp.where(a <= b, 1.0, 0.0),
    "greater": lambda xp, a, b: xp.where(a > b, 1.0, 0.0),
    "greater_equal": lambda xp, a, b: xp.where(a >= b, 1.0, 0.0),
    "isfinite": lambda xp, a, b: xp.where(xp.isfinite(a), 1.0, 0.0),
    "isnan": lambda xp, a, b: xp.where(xp.isnan(a), 1.0, 0.0),
    "logical_and": lambda xp, a, b: xp.where((a > 0) & xp.logical_and(b > 0, b < 2), 1.0, 0.0),
    "logical_or": lambda xp, a, b: xp.where((a > 0) | xp.logical_or(b > 0, b < -1), 1.0, 0.0),
    "logical_not": lambda xp, a, b: xp.where(~(a > 0) & xp.logical_not(b > 0), 1.0, 0.0),
    "exp": lambda xp, a, b: xp.exp(a),
    "expm1": lambda xp, a, b: xp.expm1(a),
    "log": lambda xp, a, b: xp.log(a),
    "log1p": lambda xp, a, b: xp.log1p(a),
    "tanh": lambda xp, a, b: xp.tanh(a),
    "hypot": lambda xp, a, b: xp.hypot(a, b),
    "power": lambda xp, a, b: xp.pow(a, b),
    "power__of_a_number": lambda xp, a, b: 2.0**a,
}
ROUNDED = {"exp", "expm1", "log", "log1p", "tanh", "hypot", "power", "power__of_a_number"}
ULP = 4  # of libm against NumPy's own loops


class EveryOperation(Optimizer):
    """One slot for each operation, per element."""

    def slots(self):
        return dict.fromkeys(ELEMENT, zeros)

    def update(self, w, g, s, h, xp):
        return 0.0 * g, {name: call(xp, w, g) for name, call in ELEMENT.items()}


class EveryUniform(Optimizer):
    """One slot for each operation, per parameter: float64, where the reduction ends."""

    def slots(self):
        return {name: zeros.per("parameter") for name in ELEMENT}

    def update(self, w, g, s, h, xp):
        a, b = xp.sum(w), xp.sum(g)  # of one element
        return 0.0 * g, {name: call(xp, a, b) for name, call in ELEMENT.items()}


def test_no_operation_was_forgotten():
    written = {name.split("__")[0] for name in ELEMENT} | {"pow", "sum", "mean", "max", "min", "count_power"}
    assert {*OPERATIONS, *DERIVED} <= written
    for table in (cpu_text.TABLE, cuda_text.TABLE):
        assert set(OPERATIONS) - set(table) <= {"count_power"}
    assert {name for name in ROUNDED if "__" not in name} == {name for name, each in OPERATIONS.items() if not each.exact}


def close(got, expected):
    """Within a few units in the last place, or to the bit where NumPy has an infinity or NaN."""
    with np.errstate(all="ignore"):
        near = np.abs(got - expected) <= ULP * np.spacing(np.abs(expected))
    return near | (got == expected) | (np.isnan(got) & np.isnan(expected))


def reference(name, a, b):
    with np.errstate(all="ignore"):
        return np.asarray(ELEMENT[name](np, a, b), a.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_operation_equals_numpys(dtype, optimkit_backend):
    bits = optimkit_backend.exact and not optimkit_backend.flushes
    values = np.array(SPECIAL if bits else MODERATE, dtype)
    a, b = (np.ascontiguousarray(x) for x in np.meshgrid(values, values))
    slots = run(EveryOperation, optimkit_backend, {"x": a}, {"x": b}, dtype)["x"]
    for name in ELEMENT:
        got, expected = optimkit_backend.to_numpy(slots[name]), reference(name, a, b)
        if bits and name not in ROUNDED:
            assert not difference(got, expected), f"{name}: {difference(got, expected)}"
        elif bits:
            wrong = ~close(got, expected)
            assert not wrong.any(), f"{name}({a[wrong][0]}, {b[wrong][0]}): {got[wrong][0]}, NumPy has {expected[wrong][0]}"
        else:
            np.testing.assert_allclose(got, expected, rtol={"float32": 1e-5, "float64": 1e-12}[dtype], err_msg=name)


def test_every_operation_on_values_per_parameter(optimkit_backend):
    bits = optimkit_backend.exact
    values = SPECIAL if bits else MODERATE
    few = {"jax": 6}.get(optimkit_backend.library, 3 if optimkit_backend.functional else 1)  # each operation is a call there
    pairs = {f"{i} {k}": (x, y) for i, x in enumerate(values[::few]) for k, y in enumerate(values[1 :: few * few])}
    a, b = ({key: np.array([pair[side]]) for key, pair in pairs.items()} for side in (0, 1))
    found = run(EveryUniform, optimkit_backend, a, b, "float64")
    for key, slots in found.items():
        for name in ELEMENT:
            if name == "power" and pairs[key] == (-math.inf, 0.5):
                continue  # a root has NaN there, a power infinity
            got, expected = np.asarray(float(slots[name])), reference(name, a[key] + 0.0, b[key] + 0.0)[0]
            assert close(got, expected), f"{name}{pairs[key]}: {got}, NumPy has {expected}"


def run(cls, backend, weights, grads, dtype):
    """The slots after one step, by parameter."""
    params = {key: backend.make(x, dtype) for key, x in weights.items()}
    grads = {key: backend.make(x, dtype) for key, x in grads.items()}
    if backend.functional:
        rule = cls()
        return rule.apply(params, grads, rule.init(params))[1]["slots"]
    opt = cls(params, engine=backend.engine)
    opt.step(grads)
    return opt.state


# ---- the host level

NUMPY_NAMES = {"abs": np.abs, "round": np.round, "power": np.power, "where": np.where, "conj": lambda a: a, "real": lambda a: a}
NUMPY_NAMES |= {"imag": lambda a: 0.0, "count_power": np.power}


@pytest.mark.parametrize("name", OPERATIONS)
def test_host_operations_equal_numpys(name):
    operation = OPERATIONS[name]
    stock = [True, False] if operation.domain == "boolean" else [*SPECIAL, 1e300, 800.0]
    first = [True, False] if name == "where" else stock
    second = [0.0, 1.0, 2.0, 7.0, 100.0] if name == "count_power" else stock
    for a in first:
        for b in second if operation.arity > 1 else [None]:
            args = (a,) if operation.arity == 1 else (a, b) if operation.arity == 2 else (a, b, -3.5)
            got = operation.host(*args)
            with np.errstate(all="ignore"):
                expected = NUMPY_NAMES.get(name, getattr(np, name, None))(*(np.asarray(x) for x in args))
            assert isinstance(got, bool | np.bool_ if operation.result == "boolean" else float | int)
            if name == "count_power":  # multiplications, not pow: a rounding for each bit of the exponent
                assert got == pytest.approx(float(expected), rel=1e-14, nan_ok=True)
            else:
                assert close(np.float64(got), np.float64(expected)), f"{name}{args}: {got}, NumPy has {expected}"


@given(base=st.floats(0, 1), count=st.integers(0, 10**6))
def test_powers_of_the_count_are_binary(base, count):
    got = OPERATIONS["count_power"].host(base, count)
    assert got == pytest.approx(base**count, rel=1e-10, abs=1e-300)
    assert np.float32(1 - got) == pytest.approx(np.float32(1 - base**count), rel=6e-8)


def test_the_host_function_is_python_text_that_computes_the_graph():
    graph = Graph()
    lr, beta, t = (graph.leaf("number", Level.HOST, (0, "lr", None)), graph.leaf("number", Level.HOST, (0, "beta", None)), None)
    t = graph.leaf("count", Level.HOST, whole=True)
    x, b, n = (Traced(graph, node) for node in (lr, beta, t))
    power = 1 - b**n
    results = [x / power, -power * 0.5, Traced(graph, graph.apply("where", (n > 2).node, x.node, b.node))]
    host, numbers, text = compile_host(tuple(each.node for each in results))
    values = {(0, "lr", None): 0.1, (0, "beta", None): 0.75}
    for count in (1, 2, 3, 10):
        power = 1 - 0.75**count
        assert host([values[key] for key in numbers], count) == (0.1 / power, -power * 0.5, 0.1 if count > 2 else 0.75)
    assert text.startswith("def host(n, t):\n")
    assert text.count("count_power") == 1  # what is used twice is computed once


@given(value=st.floats(allow_nan=False))
def test_constants_read_back_to_the_same_bits(value):
    back = eval(constant_text(value))
    assert math.copysign(1, back) == math.copysign(1, value)
    assert back == value
