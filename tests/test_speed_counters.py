"""What a warm step must not do, counted: compile, check, call Python for each parameter, allocate. Nothing here is timed."""

from __future__ import annotations

import gc
import sys
import tracemalloc

import numpy as np
import pytest

import optimkit
from optimkit import SGD, Adam, AdamW, Param
from optimkit.transforms import ClipByGlobalNorm, ClipByValue

pytest.importorskip("llvmlite", reason="llvmlite is not installed")
MEGABYTE = 1 << 20


def arrays(n, seed=0, size=6):
    rng = np.random.default_rng(seed)
    return {f"p{i}": rng.normal(size=size).astype("float32") for i in range(n)}


def count():
    now = optimkit.counters
    return now.compiles, now.cache_hits, now.gradients_checked, now.traces


def calls(function):
    """How many functions Python calls, those in C included."""
    found = 0

    def hook(frame, event, argument):
        nonlocal found
        found += event in ("call", "c_call")

    gc.disable()  # a collection calls the hooks that others (hypothesis) put there
    sys.setprofile(hook)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


# A schedule, so that a number changes in every step; a total; a link that has no state.
MAKERS = {
    "sgd": lambda params: SGD(params, lr=lambda t: 0.1 / (t + 1)),
    "adam": lambda params: Adam(params, nonfinite="skip"),
    "adamw with clipping": lambda params: AdamW(params, transforms=[ClipByGlobalNorm(1.0), ClipByValue(0.5)]),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_warm_step_compiles_traces_and_checks_nothing(name, replaced):
    opt, grads = MAKERS[name](arrays(7)), arrays(7, 1)
    for _ in range(3):
        opt.step(grads)
    before = count()
    for seed in range(4):
        if name != "sgd":
            opt.lr = 0.1 / (seed + 1)
        opt.step(arrays(7, seed) if replaced else grads, zero_grad=seed == 2)
    assert count() == before
    opt.step({**grads, "p3": np.ones(6)})  # one of another dtype is one to check
    assert count()[2:] == (before[2] + 1, before[3])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_warm_step_calls_nothing_for_each_parameter(name, replaced):
    found = []
    for n in (200, 900):  # both above 128, from where totals go the same way
        opt = MAKERS[name](arrays(n))
        steps = [arrays(n, seed) for seed in range(4)]
        for grads in steps[:3]:
            opt.step(grads)
        found.append(calls(lambda opt=opt, steps=steps: opt.step(steps[3] if replaced else steps[2])))
        opt.step(steps[0])
    rows = 900 // 128 - 200 // 128  # a total adds so many more rows of partial sums
    extra = {"sgd": 0, "adam": 1, "adamw with clipping": 2}[name]
    assert 0 <= found[1] - found[0] <= 3 * extra * rows


@pytest.mark.parametrize("grads", ["passed", "held"])
def test_params_and_tensors_cost_a_few_calls_each(grads):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for make in (lambda x: Param(x), torch.from_numpy):
        found = []
        for n in (10, 110):
            params = [make(x) for x in arrays(n).values()]
            values = [x if make is not torch.from_numpy else torch.from_numpy(x) for x in arrays(n, 1).values()]
            for p, g in zip(params, values, strict=True):
                p.grad = g
            opt = Adam(params)
            for _ in range(3):
                opt.step(None if grads == "held" else values)
            found.append(calls(lambda opt=opt, values=values: opt.step(None if grads == "held" else values)))
        each = (found[1] - found[0]) / 100
        assert each <= (12 if make is torch.from_numpy else 1)


def big(layout, n=1 << 21):
    x = np.random.default_rng(0).normal(size=n).astype("float32").reshape(1024, -1)
    return {
        "plain": lambda: x,
        "fortran": lambda: np.array(x, order="F"),
        "strided": lambda: np.repeat(x, 2, axis=1)[:, ::2],
        "float64": lambda: x.astype("float64"),
    }[layout]()


PAIRS = [("plain", "plain"), ("fortran", "plain"), ("strided", "strided"), ("plain", "float64")]


@pytest.mark.parametrize(("weight", "gradient"), PAIRS)
def test_a_warm_step_allocates_less_than_a_megabyte(weight, gradient):
    opt = AdamW({"a": big(weight), **arrays(200)}, transforms=[ClipByGlobalNorm(1.0)])
    grads = {"a": big(gradient), **arrays(200, 1)}
    assert grads["a"].nbytes >= 8 * MEGABYTE
    for _ in range(2):
        opt.step(grads, zero_grad=True)
    tracemalloc.start()
    try:
        opt.step({name: x if name == "a" else x.copy() for name, x in grads.items()}, zero_grad=True)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MEGABYTE // 4


def test_state_is_allocated_once():
    opt, grads = Adam(arrays(300)), arrays(300, 1)
    opt.step(grads)
    where = {(name, slot): x.ctypes.data for name, slots in opt.state.items() for slot, x in slots.items()}
    for _ in range(3):
        opt.step(grads)
    opt.freeze("p1*")
    opt.step(grads)
    assert where == {(name, slot): x.ctypes.data for name, slots in opt.state.items() for slot, x in slots.items()}


def test_buckets_are_not_made_anew_for_a_number_a_weight_or_a_frozen_parameter():
    params = arrays(5)
    opt, grads = Adam(params), arrays(5, 1)
    opt.step(grads)
    bucket = opt._run.steps.buckets[0]
    opt.lr = 0.5
    opt.step(grads)
    params["p1"] = np.ones(6, np.float32)
    opt.step(grads)
    opt.freeze("p2")
    opt.step(grads)
    opt.unfreeze()
    opt.step({"p0": grads["p0"]})
    assert opt._run.steps.buckets == [bucket]
    assert bucket.t.tolist() == [5, 4, 3, 4, 4]


def test_another_optimizer_of_the_same_structure_traces_and_loads_nothing():
    seen = []
    for lr, betas in ((1e-3, (0.9, 0.999)), (lambda t: 0.1, (0.5, 0.9))):
        opt = Adam(arrays(3), lr=lr, betas=betas)
        opt.step(arrays(3, 1))
        opt.step(arrays(3, 2))
        compiles, loaded, _, traces = count()
        seen.append((compiles, loaded, traces))
    assert seen[0] == seen[1]
