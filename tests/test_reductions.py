"""Reductions: one order on every engine and any number of threads, in float64, finite whenever the elements are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optimkit
from optimkit import Optimizer, full, norm, total, total_norm, zeros
from optimkit.engines import canonical
from optimkit.testing import BACKENDS, Oracle
from optimkit.transforms import ClipByGlobalNorm

SIZES = [0, 1, 127, 128, 129, 2047, 2048, 2049, 16384, 16385, 70_001, 300_007]
ENGINES = ["llvm", "eager"]


class Measured(Optimizer):
    """Keeps what it measures: a slot per parameter for each reduction, and per optimizer for each total."""

    def slots(self):
        each = dict.fromkeys(["sum", "mean", "max", "min", "norm"], zeros.per("parameter"))
        return each | dict.fromkeys(["total", "total_norm"], zeros.per("optimizer")) | {"largest": full(-1).per("optimizer")}

    def update(self, w, g, s, h, xp):
        found = {name: getattr(xp, name)(g) for name in ("sum", "mean", "max", "min")}
        found |= {"norm": norm(g), "total": total(g), "total_norm": total_norm(g)}
        return 0.0 * w, found | {"largest": xp.maximum(s.largest, total(xp.max(g)))}


def measure(grads, engine, dtype="float32", make=np.array):
    """The reductions of some gradients, by parameter, and the totals."""
    params = {name: make(np.zeros(g.shape, dtype)) for name, g in grads.items()}
    opt = Measured(params, engine=engine)
    opt.step({name: make(g) for name, g in grads.items()})
    return {name: {key: float(x) for key, x in opt.state[name].items()} for name in grads}, {
        key: float(x) for key, x in opt.state.shared.items()
    }


def fold(values, combine, start):
    """The canonical order, said in plain loops: lanes of 128 one after the other, then a tree over the lanes."""
    lanes = [start] * 128
    for i, value in enumerate(values):
        lanes[i % 128] = combine(lanes[i % 128], value)
    half = 64
    while half:
        lanes = [combine(lanes[i], lanes[i + half]) for i in range(half)]
        half //= 2
    return lanes[0]


def plain_sum(values):
    units = [fold(values[i : i + 2048], lambda a, b: a + b, 0.0) for i in range(0, len(values), 2048)]
    return fold(units, lambda a, b: a + b, 0.0) if units else 0.0


@pytest.mark.parametrize("size", [size for size in SIZES if size < 20_000])
def test_the_canonical_order_is_that_of_the_plain_loops(size):
    x = np.random.default_rng(size).normal(size=size)
    values = x.tolist()
    assert float(canonical.reduce(np, "sum", x)) == plain_sum(values)
    assert float(canonical.reduce(np, "sum_of_squares", x)) == plain_sum([value * value for value in values])
    if size:
        assert float(canonical.reduce(np, "max", x)) == max(values)
        assert float(canonical.reduce(np, "min", x)) == min(values)


def test_the_order_matters_so_that_the_test_above_says_something():
    x = np.random.default_rng(0).normal(size=5000)
    assert plain_sum(x.tolist()) != sum(x.tolist())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reductions_are_right_and_in_the_canonical_order(engine, dtype):
    rng = np.random.default_rng(1)
    grads = {str(size): rng.normal(size=size).astype(dtype) for size in SIZES if size}
    found, totals = measure(grads, engine, dtype)
    for name, g in grads.items():
        wide = g.astype(np.float64)
        exact, squares = math.fsum(wide), math.fsum(x * x for x in wide.tolist())
        assert found[name]["sum"] == float(canonical.reduce(np, "sum", g)) == pytest.approx(exact, rel=1e-9, abs=1e-9)
        assert found[name]["mean"] == found[name]["sum"] / g.size
        assert found[name]["max"] == g.max()
        assert found[name]["min"] == g.min()
        assert found[name]["norm"] == pytest.approx(math.sqrt(squares), rel=1e-14, abs=0)
    assert totals["total"] == plain_sum([each["sum"] for each in found.values()])
    assert totals["total_norm"] == pytest.approx(math.hypot(*(each["norm"] for each in found.values())), rel=1e-14, abs=0)
    assert totals["largest"] == plain_sum([each["max"] for each in found.values()])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_bits_do_not_depend_on_threads(engine):
    grads = {"a": np.random.default_rng(2).normal(size=1_200_001).astype(np.float32)}
    results = []
    for threads in (1, 2, 5):
        optimkit.set_num_threads(threads)
        results.append(measure(grads, engine))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("layout", ["fortran", "negative", "negative strided", "permuted"])
@pytest.mark.parametrize("engine", ENGINES)
def test_reductions_follow_the_memory_order_of_the_weight(engine, layout):
    """The elements of the gradient are taken in the order in which the weight lies; the oracle sorts them by address."""
    backend = BACKENDS[f"numpy-{engine}"]
    g = np.random.default_rng(3).normal(size=(71, 67))
    w = backend.make(np.zeros(g.shape), "float64", layout)
    opt = Measured(w, engine=engine)
    oracle = Oracle(opt)
    opt.step(g)
    oracle.step({"0": g})
    assert opt.state["0"]["sum"] == oracle.state["0"]["sum"]
    in_order = {"fortran": g.ravel(order="F"), "negative": g.ravel()[::-1]}
    if layout in in_order:
        assert float(opt.state["0"]["sum"]) == plain_sum(in_order[layout].tolist())


@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_without_a_gradient_add_nothing_to_totals(engine):
    params = {name: np.zeros(3) for name in "abc"}
    opt = Measured(params, engine=engine)
    opt.step({"a": np.array([3.0, 0, 0]), "c": np.array([0, -4.0, 0])})
    assert float(opt.state.shared["total_norm"]) == 5.0
    assert float(opt.state.shared["total"]) == -1.0
    assert float(opt.state.shared["largest"]) == 3.0  # the largest of nothing, -inf, is not in it
    assert opt.state["b"]["norm"] == 0.0


EXTREMES = [("float32", 3e38), ("float32", 1e-45), ("float64", 1e308), ("float64", 1e200), ("float64", 1e-200)]
EXTREMES += [("float64", 5e-324)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "size"), EXTREMES)
def test_a_norm_of_finite_numbers_is_finite_and_right(engine, dtype, size):  # fault 19
    g = np.full(4, size, dtype)
    g[1] = 0.0
    expected = math.sqrt(3) * float(g[0]) if math.isfinite(math.sqrt(3) * float(g[0])) else math.inf
    found, totals = measure({"a": g[:2], "b": g[2:]}, engine, dtype)
    assert totals["total_norm"] == pytest.approx(expected, rel=1e-14, abs=0)
    assert found["b"]["norm"] == pytest.approx(math.sqrt(2) * float(g[0]), rel=1e-14, abs=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_clipping_huge_and_tiny_gradients_by_their_norm(engine):  # faults 18, 19
    for size, expected in ((1e200, 1 / math.sqrt(2)), (1e-200, 1e-200), (0.0, 0.0)):
        w = np.zeros(2)
        opt = optimkit.SGD(w, lr=1.0, transforms=[ClipByGlobalNorm(1.0)], engine=engine)
        result = opt.step(np.full(2, -size))
        assert w == pytest.approx([expected] * 2, rel=1e-14, abs=0)
        assert result.grad_norm == pytest.approx(math.sqrt(2) * size, rel=1e-14, abs=0)


@given(st.lists(st.floats(-1e308, 1e308, allow_nan=False), min_size=1, max_size=20))
def test_norms_agree_with_hypot(values):
    expected = math.hypot(*values)
    _, totals = measure({"a": np.array(values)}, "eager", "float64")
    assert totals["total_norm"] == pytest.approx(expected, rel=1e-13, abs=5e-324)


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_and_inf_come_through(engine):
    for values, expected in (([1.0, math.nan], math.nan), ([1.0, math.inf], math.inf)):
        found, totals = measure({"a": np.array(values, np.float32)}, engine)
        assert found["a"]["norm"] == pytest.approx(expected, nan_ok=True)
        assert found["a"]["max"] == pytest.approx(expected, nan_ok=True)
        assert totals["total_norm"] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_parameter_changes_nothing(engine):  # fault 22
    g = np.array([3.0, 4.0])
    found, totals = measure({"a": g, "empty": np.zeros((0, 3))}, engine, "float64")
    assert totals["total_norm"] == found["a"]["norm"] == 5.0
    assert math.isnan(found["empty"].pop("mean"))
    assert found["empty"] == {"sum": 0.0, "max": -math.inf, "min": math.inf, "norm": 0.0}
