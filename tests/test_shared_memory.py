"""Gradients that share memory with a weight or each other give the result of copies, and what is zeroed was read before."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_cases import ENGINES, assert_same, gradients, weights

import optimkit
from optimkit import Adam, arrays
from optimkit.driver.gradients import overlaps
from optimkit.driver.gradients.byte_ranges import ByteRanges
from optimkit.driver.gradients.fingerprints import Fingerprints


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("warm", [False, True])
def test_a_gradient_that_shares_memory_with_a_weight_is_as_a_copy(engine, warm):
    cases = {
        "the weight": lambda w: {"a": w["a"], "b": w["b"]},
        "its reverse": lambda w: {"a": w["a"][::-1], "b": w["b"][::-1]},
        "another weight": lambda w: {"a": w["b"], "b": w["a"]},
        "a part": lambda w: {"a": np.broadcast_to(w["a"][3:4], 64), "b": np.ones(64, np.float32)},
    }
    for make in cases.values():
        one, two = (weights(shapes={"a": (64,), "b": (64,)}) for _ in range(2))
        opt, plain = Adam(one, lr=0.1, engine=engine), Adam(two, lr=0.1, engine=engine)
        for seed in range(3 if warm else 0):  # so that the array that shares memory is one that only moved
            for each in (opt, plain):
                each.step(gradients(seed, shapes={"a": (64,), "b": (64,)}))
        for _ in range(3):
            opt.step(make(one))
            plain.step({name: g.copy() for name, g in make(two).items()})
            assert_same(one, two)
        for each in (opt, plain):
            each.step(gradients(0, shapes={"a": (64,), "b": (64,)}))
        assert_same(one, two)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("warm", [False, True])
def test_gradients_that_share_memory_are_all_read_before_they_are_zeroed(engine, warm):
    one, two = (weights(shapes={"a": (64,), "b": (64,), "c": (64,)}) for _ in range(2))
    opt, plain = Adam(one, engine=engine), Adam(two, engine=engine)
    shapes = dict.fromkeys(one, (64,))
    for seed in range(3 if warm else 0):
        for each in (opt, plain):
            each.step(gradients(seed, shapes=shapes), zero_grad=True)
    for shift in (0, 16, 63, 64):
        buffer = np.random.default_rng(shift).normal(size=200).astype("float32")
        grads = {"a": buffer[:64], "b": buffer[shift : shift + 64], "c": np.ones(64, np.float32)}
        plain.step({name: g.copy() for name, g in grads.items()})
        opt.step(grads, zero_grad=True)
        assert_same(one, two)
        assert not any(g.any() for g in grads.values())
        assert buffer[shift + 64 :].all()
        assert opt._run.gradients.sharing == ({0, 1} if shift < 64 else set())


@pytest.mark.parametrize("kind", ["one array", "columns", "shifted", "the weights", "one weight"])
def test_many_gradients_in_each_others_memory_are_right_and_not_all_compared(kind, monkeypatch):
    tried = []
    exact = arrays.overlap
    monkeypatch.setattr(arrays, "overlap", lambda a, b: tried.append(1) or exact(a, b))
    n = 300
    one, two = ({str(i): np.full(200, i, np.float32) for i in range(n)} for _ in range(2))
    opt, plain = Adam(one), Adam(two)
    matrix, flat = np.empty((200, n), np.float32), np.empty(n + 199, np.float32)
    for _ in range(2):
        matrix[...] = np.random.default_rng(0).normal(size=matrix.shape)
        flat[...] = np.random.default_rng(1).normal(size=flat.shape)
        makers = {
            "one array": lambda i: flat[:200],
            "columns": lambda i: matrix[:, i],
            "shifted": lambda i: flat[i : i + 200],
            "the weights": lambda i: one[str((i + 1) % n)],
            "one weight": lambda i: one["7"],
        }
        grads = {str(i): makers[kind](i) for i in range(n)}
        plain.step({name: g.copy() for name, g in grads.items()})
        opt.step(grads, zero_grad=kind in ("columns", "shifted"))
        assert_same(one, two)
    assert not (matrix if kind == "columns" else flat if kind == "shifted" else np.zeros(1)).any()
    assert len(tried) <= 2 * (overlaps.PAIRS * 2 * n + 1)  # in each of two steps, of n weights and n gradients


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_that_is_replaced_by_one_over_a_gradient_is_seen(engine):
    """The other parameter's gradient looks as before and lies where it lay; the new weight is written over it."""
    memory = np.zeros(24)
    g = memory[8:16]
    params = {"a": np.zeros(8), "b": np.zeros(8)}
    opt = optimkit.SGD(params, lr=1.0, engine=engine)
    for _ in range(2):
        g[...] = np.arange(8)
        opt.step({"a": np.ones(8), "b": g})
    before = params["b"].copy()
    params["a"] = memory[4:12]
    params["a"][...] = 3.0
    expected = before - g
    opt.step({"a": np.ones(8), "b": g})
    assert opt._run.gradients.sharing == {1}
    np.testing.assert_array_equal(params["b"], expected)
    np.testing.assert_array_equal(params["a"], 2.0)


def test_compiled_spans_meet_where_intervals_do():
    looks = pytest.importorskip("optimkit.engines.cpu.step", reason="llvmlite is not installed")
    rng = np.random.default_rng(0)
    seen = set()
    for n in (1, 2, 3, 10, 40):
        opt = Adam({str(i): np.ones(1, np.float32) for i in range(n)})
        for _ in range(60):
            slots = [opt.state[name]["m"] for name in opt.names[: n // 2]]
            spans, fixed = ByteRanges(opt._run.entries, slots), n + n // 2
            each = Fingerprints(spans)
            each.compile(looks.CompiledStep)
            starts = rng.permutation(20 * n)[: fixed + n] * 8
            spans.fixed[:, 0] = starts[:fixed] + (1 << 46)
            spans.fixed[:, 1] = spans.fixed[:, 0] + rng.integers(0, 18, fixed)
            grads = [np.ones(1, np.float32) for _ in range(n)]
            spans.gradients[:, 1] = rng.integers(0, 18, n)
            for place, g in enumerate(grads):
                each.keep(place, g)
                spans.gradients[place] += starts[fixed + place] + (1 << 46) - g.ctypes.data
            assert each.compare(grads) == []
            ranges = [*spans.fixed.tolist(), *(spans.gradients + each.now[:, None]).tolist()]
            ranges = [(low, high) for low, high in ranges if low < high]
            meet = any(a[0] < b[1] and b[0] < a[1] for i, a in enumerate(ranges) for b in ranges[:i])
            assert each.meet(True) == each.meet(False) == meet
            seen.add(meet)
    assert seen == {True, False}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_that_can_not_be_zeroed_is_an_error_before_anything_is_written(engine):
    w, g = weights(), gradients(0)
    opt = Adam(w, engine=engine)
    g["b"].flags.writeable = False
    for warm in range(3):
        before = {name: x.copy() for name, x in w.items()}
        with pytest.raises(ValueError, match="gradient of 'b' is read-only and can't be zeroed"):
            opt.step(g, zero_grad=True)
        assert_same(w, before)
        assert opt.count == warm
        opt.step(g)
    g["b"] = g["b"].copy()
    g["c"] = np.float32(2.0)  # what a sum gives for a weight of shape ()
    opt.step(g)
    with pytest.raises(ValueError, match="gradient of 'c' is read-only"):
        opt.step(g, zero_grad=True)
