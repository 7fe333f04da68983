"""Who turns NumPy's warnings into exceptions gets the steps that others get: nothing raises between two buckets (fault 45)."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest

from optimkit import AdamW
from optimkit.transforms import ClipByGlobalNorm

# Gradients of float32 and of float64 weights: in float32 the first is 0, the second inf, and in the third a clip's factor is 0.
SCALES = [(1e-60, 1e-60), (1e40, 1e40), (1.0, 1e60)]


def run(engine, transforms, guard, scales):
    params = {"a": np.ones(3, np.float32), "b": np.ones(2), "c": np.ones((4, 4), np.float32)[::2, ::2]}
    opt = AdamW(params, lr=1e-3, transforms=transforms, engine=engine)
    for _ in range(3):  # the first is not warm, the others are
        grads = {"a": np.full(3, scales[0]), "b": np.full(2, scales[1]), "c": np.full((2, 2), scales[0])}
        with guard():
            opt.step(grads, zero_grad=True)
        assert not any(g.any() for g in grads.values())
    assert [opt.state[name].t for name in params] == [3, 3, 3]
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
@pytest.mark.parametrize("scales", SCALES)
def test_steps_are_those_of_others(engine, clipped, guard, scales):
    transforms = [ClipByGlobalNorm(1.0)] if clipped else []
    expected = run(engine, transforms, lambda: np.errstate(all="ignore"), scales)
    assert run(engine, transforms, guard, scales) == expected


def test_what_goes_wrong_as_slices_are_written_is_raised(monkeypatch):
    """Memory for a slice may be missing; a step that is not whole is never silent."""
    w = np.ones(5)
    opt = AdamW(w, engine="eager")
    opt.step(np.ones(5))
    program = opt._run.steps.buckets[0].runner.programs[-1]

    def fail(*args):
        raise MemoryError("a slice")

    monkeypatch.setattr(program, "run", fail)
    with pytest.raises(MemoryError, match="a slice"):
        opt.step(np.ones(5))
