"""Hooks that get whole arrays (`elementwise = False`): called between the passes, inside of the transaction."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from whole_rules import ENGINES, Recalls, whole

import optimkit
import optimkit.testing
from optimkit import SGD, Adam, Optimizer, Scalar, Transform, norm, zeros
from optimkit.transforms import ClipByGlobalNorm, ClipByValue


@pytest.mark.parametrize("engine", ENGINES)
def test_it_gets_the_real_arrays_in_the_weights_shape(engine):
    seen = []

    def f(w, g, s, h, xp):
        seen.append((w, g, h, xp))
        return g + w

    w = np.arange(12, dtype=np.float32).reshape(3, 4).T  # its memory runs along the first axis
    g = np.asfortranarray(np.ones((4, 3), np.float64))
    opt = SGD({"w": w}, lr=lambda step: 0.5 / (1 + step), transforms=[whole(f, rate=lambda step: step + 0.25)], engine=engine)
    before = w.copy()
    for _ in range(2):
        opt.step({"w": g})
    (first, gradient, h, xp), (_, _, later, _) = seen
    assert xp.asarray is not None
    assert type(first) is type(gradient) is np.ndarray
    assert first.shape == gradient.shape == (4, 3)
    assert first.dtype == gradient.dtype == np.float32
    assert not first.flags.writeable
    assert not gradient.flags.writeable
    assert np.shares_memory(first, w)
    assert (h.rate, h.pair, h.lr, h.t) == (0.25, (1.0, 2.0), 0.5, 1)
    assert type(h.t) is int
    assert (later.rate, later.lr, later.t) == (1.25, 0.25, 2)
    with pytest.raises(AttributeError, match=r"Whole: h\.nothing is no number; h has lr, rate, pair, t"):
        _ = h.nothing
    step = before - np.float32(0.5) * (1 + before)
    np.testing.assert_array_equal(w, step - np.float32(0.25) * (1 + step))
    assert w.flags.writeable


def test_torch_tensors_come_as_tensors():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    seen = []
    w = torch.ones(3, requires_grad=True)
    opt = SGD([w], lr=1.0, transforms=[whole(lambda w, g, s, h, xp: seen.append((w, g)) or torch.flip(g, (0,)))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step([torch.tensor([1.0, 2.0, 3.0])])
    assert all(type(x) is torch.Tensor for x in seen[0])
    assert w.tolist() == [-2.0, -1.0, 0.0]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_stands_around_it_stays_fused(engine):
    """It sees the clipped gradient; the norm of what it returns is clipped again; groups have numbers of their own."""
    seen = {}

    def f(w, g, s, h, xp):
        seen[h.lr] = g.copy()
        return 10 * g

    params = {"a": np.zeros(1), "b": np.zeros(1)}
    groups = [{"params": {"a": params["a"]}}, {"params": {"b": params["b"]}, "lr": 0.5}]
    opt = SGD(groups, lr=1.0, transforms=[ClipByGlobalNorm(5.0), whole(f), ClipByGlobalNorm(25.0)], engine=engine)
    opt.step({"a": np.array([6.0]), "b": np.array([8.0])})
    assert seen == {1.0: [3.0], 0.5: [4.0]}
    assert (params["a"][0], params["b"][0]) == (-15.0, -10.0)
    (bucket,) = opt._run.steps.buckets
    assert [bool(stage.reductions) for stage in bucket.plan.stages] == [True, False, True, False]
    assert bucket.plan.rounds == (1, 2, 3, 4, 5)
    text = opt.explain()
    assert "gradient@2[1] <- g * u" in text
    assert "gradient@2 = Whole.gradient(w, gradient@2[1], lr, rate@2, pair[0]@2, pair[1]@2, t)" in text


def test_a_gradient_that_lies_there_is_handed_over_without_a_pass():
    opt = SGD({"w": np.zeros(3)}, lr=1.0, transforms=[whole(lambda w, g, s, h, xp: 2 * g)])
    opt.step({"w": np.ones(3)})
    (bucket,) = opt._run.steps.buckets
    assert len(bucket.plan.stages) == 1
    assert bucket.plan.buffers == (("result", 1, "gradient", ""),)


class Pull(optimkit.Penalty):
    elementwise = False
    f: object = None

    def penalize(self, w, h, xp):
        return self.f(w)


def test_a_penalty_of_whole_arrays_is_not_broadcast():
    w = np.ones((2, 3))
    opt = SGD({"w": w}, lr=1.0, penalty=Pull(f=lambda w: w - w.mean(axis=0)))
    opt.step({"w": np.zeros((2, 3))})
    for f in (lambda w: w[0], lambda w: w.sum(), lambda w: None, lambda w: w.astype("float32")):
        with pytest.raises(TypeError, match=r"Pull\.penalize returned .*, not a .*shape \(2, 3\), float64") as caught:
            SGD({"w": w}, lr=1.0, penalty=Pull(f=f)).step({"w": np.zeros((2, 3))})
        assert caught.value.__notes__ == ["in Pull.gradient, called with whole arrays for parameter 'w'; nothing was written"]


def test_abs2_computes_so_that_rules_as_they_are_can_take_whole_arrays():
    class WholeAdam(Adam):
        elementwise = False

    one, two = np.ones(3), np.ones(3)
    WholeAdam(one, lr=0.1).step(np.array([1.0, 2.0, 3.0]))
    Adam(two, lr=0.1).step(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(one, two, rtol=1e-15)


def test_arrays_that_are_given_back_are_copied():
    """A hook may return what it was given, or an array that it keeps and changes later."""
    kept = np.ones(3)
    w = np.zeros(3)
    opt = SGD({"w": w}, lr=1.0, transforms=[whole(lambda w, g, s, h, xp: kept)])
    opt.step({"w": np.zeros(3)})
    kept[...] = 5
    opt.step({"w": np.zeros(3)})
    assert w.tolist() == [-6, -6, -6]


BAD = {
    "another shape": (lambda w, g, s, h, xp: g[:1], r"returned a numpy array of shape \(1,\), float32 for parameter 'w', not"),
    "another dtype": (lambda w, g, s, h, xp: g * np.float64(2), r"shape \(3,\), float64 for parameter 'w', not a .*float32"),
    "a number": (lambda w, g, s, h, xp: 2.0, r"Whole.gradient returned a float for parameter 'w'"),
    "nothing": (lambda w, g, s, h, xp: None, "Whole.gradient returns None"),
    "slots": (lambda w, g, s, h, xp: (g, {"m": g}), "Whole.gradient, for parameter 'w', returns the slot 'm', but slots"),
    "a function of rules": (lambda w, g, s, h, xp: g / norm(g), "norm is for rules that are traced; with elementwise = False"),
    "a mask": (lambda w, g, s, h, xp: np.ma.array(g, mask=[1, 0, 0]), "for parameter 'w' is a MaskedArray; pass a plain array"),
    "a write": (lambda w, g, s, h, xp: np.add(g, 1, out=g), "output array is read-only"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_and_nothing_written(name, engine):
    f, message = BAD[name]
    w, g = np.zeros(3, np.float32), np.ones(3, np.float32)
    opt = Adam({"w": w}, transforms=[whole(f)], engine=engine)
    with pytest.raises((TypeError, ValueError), match=message):
        opt.step({"w": g})
    assert not w.any()
    assert g.all()
    assert (opt.state["w"].t, opt.count) == (0, 0)


def test_what_a_class_may_say():
    with pytest.raises(TypeError, match=r"Wrong\.elementwise = 0 must be True or False"):

        class Wrong(Transform):
            elementwise = 0

    with pytest.raises(TypeError, match=r"Field\.elementwise is no field: write `elementwise = False`, without an annotation"):

        class Field(Transform):
            elementwise: bool = False

    class TwoHooks(Transform):
        elementwise = False

        def slots(self):
            return {"m": zeros}

        def gradient(self, w, g, s, h, xp):
            return g

        def weight(self, w, new, s, h, xp):
            return new, {"m": new}

    with pytest.raises(TypeError, match="TwoHooks has slots, elementwise = False and the hooks gradient, weight; with whole"):
        SGD(np.ones(2), lr=0.1, transforms=[TwoHooks()]).step(np.ones(2))

    class Scalars(Recalls):
        def slots(self):
            return {"last": zeros.per("parameter")}

    with pytest.raises(TypeError, match=r"Scalars\.slots\(\)\['last'\] is per parameter; a rule with elementwise = False has"):
        SGD(np.ones(2), lr=0.1, transforms=[Scalars()]).step(np.ones(2))

    class Compares(Transform):
        def gradient(self, w, g, s, h, xp):
            return g > 0

    with pytest.raises(TypeError, match="a comparison is handed to a hook of whole arrays"):
        SGD(np.ones(2), lr=0.1, transforms=[Compares(), whole(lambda *x: x[1])]).step(np.ones(2))


def test_structure_is_traced_once_and_the_hook_called_in_each_step():
    calls = []

    def f(w, g, s, h, xp):
        calls.append(h.rate)
        return g

    link = whole(f)
    opt = SGD({"a": np.ones(2), "b": np.ones(3)}, lr=0.1, transforms=[link, ClipByValue(1.0)])
    opt.step({"a": np.ones(2), "b": np.ones(3)})
    before = optimkit.counters.traces, optimkit.counters.compiles
    link.rate = 0.75
    opt.step({"a": np.ones(2)})
    assert (optimkit.counters.traces, optimkit.counters.compiles) == before
    assert calls == [0.5, 0.5, 0.75]


class Orthogonal(Optimizer):
    """A rule for matrices, with the namespace's linear algebra."""

    elementwise = False
    lr: Scalar = 1.0

    def slots(self):
        return {"m": zeros}

    def update(self, w, g, s, h, xp):
        m = 0.5 * s.m + g
        u, _, v = xp.linalg.svd(m, full_matrices=False)
        return h.lr * (u @ v), {"m": m}


def test_a_rule_for_matrices():
    rng = np.random.default_rng(0)
    w, m = np.zeros((4, 3)), np.zeros((4, 3))
    expected = w.copy()
    opt = Orthogonal({"w": w}, lr=0.5, transforms=[ClipByValue(1.0)], penalty=optimkit.L2(0.25))
    for _ in range(3):
        g = rng.normal(size=(4, 3))
        opt.step({"w": g})
        m = 0.5 * m + (np.clip(g, -1, 1) + 0.5 * expected)
        u, _, v = np.linalg.svd(m, full_matrices=False)
        expected = expected - 0.5 * (u @ v)
        np.testing.assert_allclose(w, expected, rtol=1e-12)
    np.testing.assert_allclose(opt.state["w"]["m"], m, rtol=1e-12)


class Singular(Transform):
    """Divided by the largest singular value of each matrix."""

    elementwise = False

    def gradient(self, w, g, s, h, xp):
        if g.ndim < 2 or g.size == 0:
            return g
        assert np.isfinite(np.asarray(g)).all()
        return g / xp.linalg.matrix_norm(g, ord=2, keepdims=True)


def test_linear_algebra_can_be_checked():
    """LAPACK is not asked for the singular values of NaN."""
    backends = ["numpy-eager", "numpy-llvm"]
    report = optimkit.testing.check_transform(Singular(), backends=backends, dtypes=["float64"])
    assert report.passed == backends
