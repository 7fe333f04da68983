"""Every rule of the one list on every backend: engines, dtypes, layouts, sizes, threads; to the bit where it is exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimizers import CASES, SOME, Average, links, make, public

import optimkit
from optimkit.testing import BACKENDS, LAYOUTS, Oracle, check_optimizer
from optimkit.transforms import ClipByGlobalNorm


@pytest.mark.parametrize("name", CASES)
def test_every_engine_equals_the_rule_called_by_hand(name, optimkit_backend):
    cls, settings = CASES[name]
    report = check_optimizer(cls, backends=[optimkit_backend.name], **settings)
    assert report.passed == [optimkit_backend.name]


def test_no_optimizer_transform_or_penalty_was_forgotten():
    tested = {cls for cls, _ in CASES.values()}
    tested |= {type(link) for _, settings in CASES.values() for link in links(settings)}
    for kind in (optimkit.Optimizer, optimkit.Transform):
        missing = public(kind) - tested
        assert not missing, f"not in tests/optimizers.py: {sorted(cls.__name__ for cls in missing)}"


@pytest.mark.parametrize("engine", ["llvm", "eager"])
def test_buckets_share_their_totals(engine):
    """Dtypes and links differ, so there are five buckets; totals of totals need the same passes in all of them."""
    rng = np.random.default_rng(0)
    dtypes = {"a.narrow": "float32", "a.wide": "float64", "b.narrow": "float32", "b.wide": "float64", "b.late": "float64"}
    params = {name: rng.normal(size=40).astype(dtype) for name, dtype in dtypes.items()}
    links = [ClipByGlobalNorm(1.0, where="a.*"), ClipByGlobalNorm(2.0), ClipByGlobalNorm(0.5, where="b.*")]
    links.append(Average(where="*.wide"))
    opt = optimkit.AdamW(params, lr=0.1, transforms=links, nonfinite="skip", engine=engine)
    oracle = Oracle(opt)
    for step in range(4):
        grads = {name: rng.normal(size=40).astype(w.dtype) for name, w in params.items()}
        if step != 2:
            del grads["b.late"]
        opt.step(grads)
        oracle.step(grads)
        for name, w in params.items():
            np.testing.assert_array_equal(w, oracle.params[name], err_msg=f"{name}, step {step + 1}")
    assert len(opt._run.steps.buckets) == 5
    assert opt.state["b.late"].t == 1


@pytest.mark.parametrize("engine", ["llvm", "eager"])
@pytest.mark.parametrize("name", SOME)
def test_the_bits_do_not_depend_on_threads(name, engine):
    """Sizes above the one from which threads are used, and no multiple of any chunk."""
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=1_100_003), "b": rng.normal(size=(7, 301))}
    steps = [{key: rng.normal(size=w.shape).astype(np.float32) for key, w in start.items()} for _ in range(2)]

    def run(threads):
        optimkit.set_num_threads(threads)
        params = {key: w.astype(np.float32) for key, w in start.items()}
        opt = make(name, params, engine=engine)
        oracle = Oracle(opt)
        for grads in steps:
            opt.step(grads)
            if threads == 1:
                oracle.step(grads)
        return params, oracle.params

    one, by_hand = run(1)
    two, _ = run(2)
    for key in start:
        np.testing.assert_array_equal(one[key], by_hand[key])
        np.testing.assert_array_equal(two[key], one[key])


@st.composite
def cuts(draw):
    """A view of a larger array: permuted axes, steps, flips, lengths from 0; (shape of the base, order of axes, slices)."""
    ndim = draw(st.integers(0, 3))
    axes = draw(st.permutations(range(ndim)))
    lengths = [draw(st.integers(0, 6)) for _ in range(ndim)]
    steps = [draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in range(ndim)]
    base = [max(n * abs(step), 1) for n, step in zip(lengths, steps, strict=True)]
    slices = []
    for n, step in zip(lengths, steps, strict=True):
        end = n * abs(step)
        slices.append(slice(0, end, step) if step > 0 else slice(end - 1, None, step) if n else slice(0, 0))
    return base, axes, tuple(slices)


def view(cut, fill):
    base, axes, slices = cut
    whole = np.full(base, fill, np.float32)
    return whole, whole[(*slices, ...)].transpose(axes)


@pytest.mark.parametrize("engine", ["llvm", "eager"])
@given(cut=cuts(), other=cuts())
def test_any_strides_give_the_bits_of_contiguous_arrays(engine, cut, other):
    whole, w = view(cut, 7.0)
    _, g = view(other, np.nan)
    if g.shape != w.shape:
        g = np.empty(w.shape, np.float32)
    rng = np.random.default_rng(0)
    w[...], g[...] = rng.normal(size=w.shape), rng.normal(size=w.shape)
    plain = np.array(w, order="C")
    outside = whole.size - w.size
    for params in (w, plain):
        opt = make("adam", params, engine=engine)
        for _ in range(2):
            opt.step(g if params is w else np.ascontiguousarray(g).reshape(w.shape))
    np.testing.assert_array_equal(w, plain)
    assert (whole == 7.0).sum() >= outside  # what lies between was not touched


@pytest.mark.parametrize("engine", ["llvm", "eager"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gaps_between_strided_elements_stay(layout, engine):
    backend = BACKENDS[f"numpy-{engine}"]
    w, g = (backend.make(np.ones((6, 5)), "float32", layout) for _ in range(2))
    whole = [x if x.base is None else x.base for x in (w, g)]
    gaps = [int(np.isnan(x).sum()) for x in whole]
    make("adam", w, engine=engine).step(g, zero_grad=True)
    assert [int(np.isnan(x).sum()) for x in whole] == gaps
    assert not g.any()
    assert len(set(w.ravel().tolist())) == 1
    assert w[0, 0] != 1
