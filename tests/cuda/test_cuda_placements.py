"""Strided slots and inputs on the CUDA engine: the same bits as dense ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit import Optimizer, Scalar, constant, zeros
from optimkit.engines.cuda.launches import CudaLaunches
from optimkit.engines.protocol import Shared


class Scaled(Optimizer):
    lr: Scalar = 0.25

    def slots(self) -> Any:
        return {"m": zeros, "scale": constant}

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        m = 0.5 * s.m + s.scale * g
        return h.lr * m / (1 + optimkit.norm(m)), {"m": m}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slots_and_inputs_may_be_strided(cupy: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (130, 41), "b": (5, 3)}
    grads = {name: cupy.asarray(rng.normal(size=shape).astype(dtype)) for name, shape in shapes.items()}
    results = []
    for strided in (False, True):
        opt = Scaled({name: cupy.ones(shape, dtype) for name, shape in shapes.items()})
        opt.step(grads)
        for name, slots in opt.state.items():
            slots["scale"][...] = cupy.asarray(np.random.default_rng(1).normal(size=shapes[name]).astype(dtype))
        (bucket,) = opt._run.steps.buckets
        if strided:
            for member in bucket.members:
                for key in [key for key in member.arrays if isinstance(key, tuple)]:
                    x = member.arrays[key]
                    wide = cupy.full(tuple(n + 3 for n in x.shape), np.nan, x.dtype)
                    member.arrays[key] = wide[tuple(slice(2, n + 2) for n in x.shape)]
                    member.arrays[key][...] = x
            bucket.runner = bucket.engine.runner(bucket.plan, bucket.entries[0].dtype, bucket.members)
            device = opt._run.steps.device
            device.launches = CudaLaunches([bucket.runner], [bucket.places], Shared(len(shapes)))
            device.active = []  # its launches are told anew of what is active
            bucket.runner.presence_changed(bucket.active)
            opt._run.gradients = None
        for _ in range(2):
            opt.step(grads)
        results.append({(m.name, key): cupy.asnumpy(x) for m in bucket.members for key, x in m.arrays.items()})
    for key, x in results[0].items():
        np.testing.assert_array_equal(results[1][key], x, err_msg=str(key))


def test_hooks_get_cupy_arrays_and_cost_what_they_say(cupy: Any) -> None:
    """A value that lies nowhere is written for the hook in one more launch; a gradient is handed over as it is."""
    seen = []

    class Filter(optimkit.Transform):
        elementwise = False

        def gradient(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
            seen.append((type(w), type(g), g.shape, h.t))
            return (g + cupy.roll(g, 1, axis=0)) / 2

    g = cupy.asarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    for links, launches in (([Filter()], 1), ([optimkit.transforms.ClipByValue(100.0), Filter()], 2)):
        w = cupy.zeros((4, 3), np.float32)
        opt = optimkit.SGD({"w": w}, lr=1.0, transforms=links, nonfinite="allow")
        opt.step({"w": g})
        before = optimkit.counters.launches
        opt.step({"w": g})
        assert optimkit.counters.launches - before == launches
        np.testing.assert_array_equal(cupy.asnumpy(w), -2 * cupy.asnumpy((g + cupy.roll(g, 1, axis=0)) / 2))
    assert seen == [(cupy.ndarray, cupy.ndarray, (4, 3), t) for t in (1, 2, 1, 2)]


def test_a_hook_of_whole_arrays_cannot_be_captured(cupy: Any) -> None:
    class Plain(optimkit.Transform):
        elementwise = False

        def gradient(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
            return g

    opt = optimkit.SGD({"w": cupy.zeros(3)}, lr=1.0, transforms=[Plain()], capturable=True)
    with pytest.raises(ValueError, match=r"capturable = True: Plain\.gradient gets whole arrays"):
        opt.step({"w": cupy.ones(3)})


def test_a_count_on_the_device_reaches_a_hook(cupy: Any) -> None:
    counts = []

    class Counted(optimkit.Transform):
        elementwise = False

        def step(self, w: Any, d: Any, s: Any, h: Any, xp: Any) -> Any:
            counts.append(h.t)
            return d

    w = cupy.zeros(3)
    opt = optimkit.SGD({"w": w}, lr=1.0, transforms=[Counted()], nonfinite="skip")
    for g in (1.0, float("nan"), 1.0):
        opt.step({"w": cupy.full(3, g)})
    assert counts == [1, 2]  # it is not called in the step that is left out
    assert cupy.asnumpy(w).tolist() == [-2.0] * 3


def test_what_belongs_to_a_weight_lies_on_its_device(cupy: Any) -> None:
    """Slots, and what hooks get and give, whatever device is the current one."""
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device")
    seen = []

    class Halved(optimkit.Transform):
        elementwise = False

        def slots(self) -> Any:
            return {"mask": constant(1.0), "last": zeros}

        def gradient(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
            seen.append({x.device.id for x in (w, g, s.mask, s.last)})
            return 0.5 * s.mask * g, {"last": g}

    with cupy.cuda.Device(1):
        w, stepped, g = cupy.ones((2, 3)).T, cupy.ones((2, 3)).T, cupy.ones((3, 2))
    rule = optimkit.SGD(lr=1.0, momentum=0.5, transforms=[optimkit.transforms.ClipByValue(9.0), Halved()])
    state = rule.init({"w": w})
    opt = optimkit.SGD({"w": stepped}, lr=1.0, momentum=0.5, transforms=list(rule.transforms))
    assert {x.device.id for x in opt.state["w"].values()} == {1}
    assert {x.device.id for x in state["slots"]["w"].values()} == {1}
    opt.step({"w": g})
    new, state = rule.apply({"w": w}, {"w": g}, state)
    assert {x.device.id for x in [new["w"], *state["slots"]["w"].values()]} == {1}
    assert seen == [{1}, {1}]
    np.testing.assert_array_equal(cupy.asnumpy(new["w"]), np.full((3, 2), 0.5))
