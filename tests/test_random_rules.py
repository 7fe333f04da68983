"""Rules that nobody wrote: random expressions over arrays, numbers, slots and reductions, engines against the oracle.

What no rule of the list does, one of these may: a total inside of a norm, a slot per optimizer that feeds a reduction,
a number that meets an element at one place and a uniform value at another.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimkit import Optimizer, Scalar, full, norm, total, total_norm, zeros
from optimkit.testing import BACKENDS, Oracle
from optimkit.testing.compare import difference

# An expression is a tuple: (name, *arguments). "e" makes a value per element, "s" a number or one value per parameter.
UNARY = ["negative", "abs", "root", "sign", "square", "floor"]
BINARY = ["add", "subtract", "multiply", "divide", "minimum", "maximum", "choose", "clip"]
REDUCE = ["sum", "mean", "max", "min", "norm", "total", "total_norm"]
CONSTANTS = st.sampled_from([("constant", x) for x in (0.5, 2, 3.0, -1.5, 0.0, 1e-3)])
ELEMENTS = st.sampled_from([("w",), ("g",), ("m",)])
SCALARS = st.sampled_from([("lr",), ("beta",), ("t",), ("u",), ("o",)]) | CONSTANTS


def deeper(elements, scalars):
    """Expressions one level up: (elements, scalars). Few stay as they are."""
    both = elements | scalars
    unary, binary = st.sampled_from(UNARY), st.sampled_from(BINARY)
    more = st.tuples(binary, elements, both) | st.tuples(binary, scalars, elements) | st.tuples(unary, elements)
    reduced = st.tuples(st.sampled_from(REDUCE), elements)
    return more | more | elements, reduced | st.tuples(binary, reduced, scalars) | st.tuples(unary, scalars) | scalars


def expressions():
    elements, scalars = ELEMENTS, SCALARS
    for _ in range(3):
        elements, scalars = deeper(elements, scalars)
    return st.tuples(elements, elements, scalars)


def evaluate(expression, leaves, xp):
    name, *rest = expression
    if name in leaves:
        return leaves[name]
    if name == "constant":
        return rest[0]
    args = [evaluate(each, leaves, xp) for each in rest]
    calls = {
        "negative": lambda a: -a,
        "abs": abs,
        "root": lambda a: xp.sqrt(xp.abs(a)),
        "sign": xp.sign,
        "square": xp.square,
        "floor": xp.floor,
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "multiply": lambda a, b: a * b,
        "divide": lambda a, b: a / (1 + xp.abs(b)),
        "minimum": xp.minimum,
        "maximum": xp.maximum,
        "choose": lambda a, b: xp.where(xp.less(a, b), a, b * 0.5),
        "clip": lambda a, b: xp.clip(a, -xp.abs(b), xp.abs(b)),
        "sum": xp.sum,
        "mean": xp.mean,
        "max": xp.max,
        "min": xp.min,
        "norm": norm,
        "total": total,
        "total_norm": total_norm,
    }
    return calls[name](*args)


class Any(Optimizer):
    """Step, slot and uniform values are given as expressions."""

    lr: Scalar = 0.25
    beta: Scalar = 0.9
    expressions: tuple = ()

    def slots(self):
        return {"m": full(0.5), "u": zeros.per("parameter"), "o": full(1.0).per("optimizer")}

    def update(self, w, g, s, h, xp):
        leaves = {"w": w, "g": g, "m": s.m, "lr": h.lr, "beta": h.beta, "t": h.t, "u": s.u, "o": s.o}
        step, m, u = (evaluate(each, leaves, xp) for each in self.expressions)
        everywhere = total(0.0 * g + u)
        return step, {"m": m, "u": u, "o": xp.clip(everywhere, -10.0, 10.0)}


SHAPES = {"a": (5,), "b": (3, 2), "c": ()}
DTYPES = {dtype: dict.fromkeys(SHAPES, dtype) for dtype in ("float32", "float64")}
DTYPES["mixed"] = {"a": "float64", "b": "float32", "c": "float64"}  # two buckets that share their totals


def run(expressions, name, dtypes):
    backend, rng, dtype = BACKENDS[name], np.random.default_rng(0), DTYPES[dtypes]
    params = {key: backend.make(rng.normal(size=shape), dtype[key]) for key, shape in SHAPES.items()}
    opt = Any(params, expressions=expressions, engine=backend.engine)
    oracle = Oracle(opt)
    for step in range(3):
        grads = {key: np.asarray(rng.normal(size=shape) * 3, dtype[key]) for key, shape in SHAPES.items()}
        if step == 1:
            grads["b"] = None
        opt.step({key: None if g is None else backend.make(g, dtype[key]) for key, g in grads.items()})
        oracle.step(grads)
        for key, w in params.items():
            pairs = {"the weight": (backend.to_numpy(w), oracle.params[key])}
            for slot, x in opt.state[key].items():
                pairs[slot] = (np.float64(x) if slot == "u" else backend.to_numpy(x), oracle.state[key][slot])
            for what, (got, expected) in pairs.items():
                found = difference(got, expected)
                assert not found, f"{name}, {dtypes}, step {step + 1}, {key!r}: {what}: {found}"
        assert not difference(np.float64(opt.state.shared["o"]), oracle.shared["o"])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=100)
@given(expressions())
def test_the_eager_engine_has_the_bits_of_the_oracle(dtype, expressions):
    run(expressions, "numpy-eager", dtype)


@pytest.mark.parametrize("name", ["numpy-llvm", "cupy-cuda"])
@settings(max_examples=4)  # each is compiled
@given(expressions())
def test_the_compiled_engines_have_the_bits_of_the_oracle(name, expressions):
    if BACKENDS[name].available():
        pytest.skip(f"{name}: {BACKENDS[name].available()}")
    run(expressions, name, "float32")
