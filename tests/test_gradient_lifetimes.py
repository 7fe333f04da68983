"""How long things live: a step keeps no gradient, and the caller's own stay the caller's; a dropped optimizer is gone."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from gradient_cases import ENGINES, LAYOUTS, assert_same, gradients, weights

from optimkit import Adam, AdamW, Param
from optimkit.transforms import ClipByGlobalNorm


@pytest.fixture
def uncollected():
    """What dies, dies by its count of references."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_gradient_outlives_its_step(uncollected, engine, layout):
    params = weights()
    opt = AdamW(params, transforms=[ClipByGlobalNorm(1.0)], engine=engine)
    for seed in range(4):
        grads = {name: LAYOUTS[layout](g) for name, g in gradients(seed).items()}
        alive = {name: weakref.ref(g) for name, g in grads.items()}
        result = opt.step(grads)
        del grads
        assert result.applied
        assert [name for name, g in alive.items() if g() is not None] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_no_gradient_outlives_a_step_that_fails_or_is_skipped(uncollected, engine):
    opt = Adam(weights(), nonfinite="skip", engine=engine)
    for bad in (None, "shape", "nan", "shape", "nan"):
        grads = gradients(0)
        grads["a"][0, 0] = np.nan if bad == "nan" else 1.0
        if bad == "shape":
            grads["e"] = np.zeros(7, np.float32)
        alive = [weakref.ref(g) for g in grads.values()]
        if bad == "shape":
            with pytest.raises(ValueError, match=r"gradient of 'e' has shape \(7,\), its weight \(2, 1, 3\)"):
                opt.step(grads)
        else:
            assert opt.step(grads).applied == (bad is None)
        del grads
        assert [g() for g in alive if g() is not None] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_no_tensor_outlives_its_step(uncollected, engine):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    params = {name: torch.from_numpy(w) for name, w in weights().items()}
    opt = Adam(params, engine=engine)
    expected = weights()
    twin = Adam(expected, engine=engine)
    for seed in range(4):
        grads = {name: torch.from_numpy(g) for name, g in gradients(seed).items()}
        alive = [weakref.ref(g) for g in grads.values()]
        opt.step(grads)
        twin.step(gradients(seed))
        del grads
        assert [g() for g in alive if g() is not None] == []
    assert_same({name: w.numpy() for name, w in params.items()}, expected)


def test_a_copy_of_a_gradient_that_overlaps_its_weight_is_not_kept(uncollected):
    w = {"a": np.ones(1 << 16, np.float32)}
    opt = Adam(w)
    opt.step({"a": w["a"][::-1]})
    tracemalloc.start()
    try:
        opt.step({"a": w["a"][::-1]})
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < 1 << 16 < w["a"].nbytes <= most


def test_the_callers_own_grad_stays_the_callers(uncollected):
    p = Param(np.ones(3, np.float32))
    p.grad = g = np.ones(3, np.float32)
    opt = Adam([p])
    opt.step()
    assert p.grad is g
    alive = weakref.ref(g)
    p.grad = None
    del g
    assert alive() is None
    assert not opt.step().applied


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_optimizer_that_is_dropped_is_gone_at_once(uncollected, optimkit_backend, steps):
    """On a GPU its slots are memory that somebody waits for."""
    if optimkit_backend.functional:
        pytest.skip("the functional form keeps nothing")
    w, g = (optimkit_backend.make(np.ones(100), "float32") for _ in range(2))
    opt = Adam({"w": w}, nonfinite="skip", engine=optimkit_backend.engine)
    for _ in range(steps):
        opt.step({"w": g})
    buckets = opt._run.steps.buckets if steps else []
    alive = [weakref.ref(x) for x in (opt._run, *buckets, *(bucket.runner for bucket in buckets))]
    del opt, buckets
    assert [x() for x in alive if x() is not None] == []
