"""Steps as transactions on the device: skip decides there, raise waits, results are fetched when read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit import NonFiniteGradientError, transforms

CLIP = {"transforms": [transforms.ClipByGlobalNorm(0.5)]}


def poisoned(shape: tuple[int, ...], bad: float) -> np.ndarray:
    g = np.ones(shape, np.float32)
    g[..., -1] = bad
    return g


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, CLIP], ids=["plain", "clip"])
def test_skip_leaves_everything_but_the_gradients(twins: Any, options: dict[str, Any], bad: float) -> None:
    weights = [np.ones((9, 11), np.float32), np.ones(5, np.float32)]
    pair = twins(lambda p: optimkit.AdamW(p, nonfinite="skip", **options), weights)
    for g in (poisoned((9, 11), 2.0), poisoned((9, 11), bad), poisoned((9, 11), 3.0)):
        host, device = pair.step([g, np.ones(5, np.float32)], zero_grad=True)
        assert host.applied == device.applied == bool(np.isfinite(g).all())
        pair.check()
        assert not any(g.any() for g in pair.device_grads)
    assert pair.device.state["0"].t == 2


def test_skip_does_not_wait(cupy: Any, traffic: Any) -> None:
    w, g = cupy.ones(4000, cupy.float32), cupy.asarray(poisoned((4000,), np.nan))
    opt = optimkit.Adam(w, nonfinite="skip")
    opt.step(g)
    with traffic() as count:
        result = opt.step(g)
    assert sum(count["syncs"].values()) + count["copies"]["DtoH"]["count"] == 0
    assert repr(result) == "StepResult(on the device)"
    assert not result.applied
    assert np.isnan(result.grad_norm)
    assert repr(result) == "StepResult(applied=False, grad_norm=nan)"


def test_results_can_be_read_later(cupy: Any) -> None:
    w = cupy.ones(4, cupy.float32)
    opt = optimkit.SGD(w, lr=0.0, nonfinite="skip")
    results = [opt.step(cupy.full(4, value, cupy.float32)) for value in (1.0, np.nan, 3.0)]
    assert [result.applied for result in results] == [True, False, True]
    assert results[0].grad_norm == 2.0
    assert results[2].grad_norm == 6.0


def test_raise_names_the_gradient_and_writes_nothing(cupy: Any) -> None:
    params = {"good": cupy.ones(3, cupy.float32), "bad": cupy.ones((2, 2), cupy.float32)}
    opt = optimkit.Adam(params, nonfinite="raise")
    opt.step({"good": cupy.ones(3, cupy.float32)})
    before = {name: w.get() for name, w in params.items()}
    with pytest.raises(NonFiniteGradientError, match=r"gradient of 'bad' has NaN or Inf; nothing was written"):
        opt.step({"good": cupy.ones(3, cupy.float32), "bad": cupy.asarray(poisoned((2, 2), np.inf))})
    for name, w in params.items():
        np.testing.assert_array_equal(w.get(), before[name])
    assert [opt.state[name].t for name in params] == [1, 0]
    assert opt.step({"bad": cupy.ones((2, 2), cupy.float32)}).applied


def test_clip_without_a_policy_does_not_spread_nan(twins: Any) -> None:
    pair = twins(lambda p: optimkit.SGD(p, lr=1.0, **CLIP), [np.ones(3, np.float32), np.ones(4, np.float32)])
    pair.step([poisoned((3,), np.nan), np.ones(4, np.float32)])
    pair.check()
    assert np.isfinite(pair.device_arrays[1].get()).all()


def test_zero_gradients_are_no_division_by_zero(twins: Any) -> None:
    pair = twins(lambda p: optimkit.Adam(p, nonfinite="skip", **CLIP), [np.ones(3, np.float32)])
    host, device = pair.step([np.zeros(3, np.float32)])
    assert device.applied
    assert host.grad_norm == device.grad_norm == 0.0
    pair.check()


def test_frozen_and_missing_parameters(twins: Any) -> None:
    pair = twins(lambda p: optimkit.AdamW(p, nonfinite="skip", **CLIP), [np.ones(300, np.float32) for _ in range(3)])
    g = [np.full(300, value, np.float32) for value in (1.0, 2.0, 3.0)]
    pair.step(g)
    pair.step([g[0], None, g[2]])
    pair.check()
    for opt in (pair.host, pair.device):
        opt.freeze("0")
    pair.step(g)
    pair.check()
    for opt in (pair.host, pair.device):
        opt.unfreeze("0")
    pair.step(g)
    pair.check()
    assert [pair.device.state[name].t for name in pair.device.names] == [3, 3, 4]


def test_no_gradients_at_all(cupy: Any) -> None:
    opt = optimkit.Adam([cupy.ones(3)], nonfinite="skip")
    result = opt.step([None])
    assert (result.applied, result.grad_norm) == (False, None)


def test_shared_and_aliasing_gradients(twins: Any, cupy: Any) -> None:
    """A gradient that is the weight itself, and one array as the gradient of two: as with copies."""
    pair = twins(lambda p: optimkit.SGD(p, lr=0.5, momentum=0.9), [np.arange(6.0), np.ones(6), np.ones(6)])
    both = cupy.full(6, 2.0)
    pair.host.step([pair.host_arrays[0].copy(), np.full(6, 2.0), np.full(6, 2.0)])
    pair.device.step([pair.device_arrays[0], both, both])
    pair.host_grads = pair.device_grads = []
    pair.check()
    pair.device.step([None, both, both], zero_grad=True)
    pair.host.step([None, np.full(6, 2.0), np.full(6, 2.0)])
    pair.check()
    assert not both.any()
