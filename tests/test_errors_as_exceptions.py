"""Who turns NumPy's warnings into exceptions gets the steps that others get: nothing raises between two buckets (fault 45)."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest

from optimkit import AdamW
from optimkit.transforms import ClipByGlobalNorm


def run(engine, transforms, guard):
    params = {"a": np.ones(3, np.float32), "b": np.ones(2), "c": np.ones((4, 4), np.float32)[::2, ::2]}
    opt = AdamW(params, lr=1e-3, transforms=transforms, engine=engine)
    for step in range(4):
        scale = 10.0 ** (-60 + 100 * (step % 2))  # lost in float32: 0 and inf
        grads = {"a": np.full(3, scale), "b": np.full(2, scale), "c": np.full((2, 2), scale)}
        with guard():
            opt.step(grads, zero_grad=True)
        assert not any(g.any() for g in grads.values())
    assert [opt.state[name].t for name in params] == [4, 4, 4]
    return {name: w.tobytes() for name, w in params.items()}


@contextlib.contextmanager
def filtered():
    """As with `python -W error`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("engine", ["llvm", "eager"])
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("guard", [lambda: np.errstate(all="raise"), filtered], ids=["errstate", "-W error"])
def test_steps_are_those_of_others(engine, clipped, guard):
    transforms = [ClipByGlobalNorm(1.0)] if clipped else []
    expected = run(engine, transforms, lambda: np.errstate(all="ignore"))
    assert run(engine, transforms, guard) == expected
