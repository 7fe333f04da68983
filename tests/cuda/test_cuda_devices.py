"""Parameters on several devices in one optimizer: one bucket each, totals over all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit import transforms

pytestmark = pytest.mark.usefixtures("two_devices")


def spread(cupy: Any, values: list[Any]) -> list[Any]:
    found = []
    for number, value in enumerate(values):
        with cupy.cuda.Device(number % 2):
            found.append(None if value is None else cupy.asarray(value))
    return found


CLIP = {"transforms": [transforms.ClipByGlobalNorm(0.5)]}


@pytest.mark.parametrize("options", [{}, CLIP, {**CLIP, "nonfinite": "skip"}], ids=["plain", "clip", "skip"])
def test_two_devices_compute_what_one_host_does(cupy: Any, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    shapes = [(300,), (4000,), (17, 3), (1,)]
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    there = spread(cupy, weights)
    host, device = optimkit.AdamW(weights, **options), optimkit.AdamW(there, **options)
    for step in range(6):
        grads: list[Any] = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        if step == 2 and options.get("nonfinite") == "skip":
            grads[1][3] = np.nan  # on the second device; the first must not move either
        if step in (3, 4):
            grads[1] = grads[3] = None  # the second device has nothing to do
        a, b = host.step(grads), device.step(spread(cupy, grads))
        assert a.applied == b.applied
        assert a.grad_norm == b.grad_norm or a.grad_norm != a.grad_norm
        for x, y in zip(weights, there, strict=True):
            assert x.tobytes() == y.get().tobytes()
        for name in host.names:
            assert host.state[name].t == device.state[name].t


def test_nothing_waits(cupy: Any, traffic: Any) -> None:
    there = spread(cupy, [np.ones(300, np.float32)] * 4)
    grads = spread(cupy, [np.ones(300, np.float32)] * 4)
    opt = optimkit.Adam(there, transforms=[transforms.ClipByGlobalNorm(0.5)], nonfinite="skip")
    for _ in range(2):
        opt.step(grads)
    with traffic() as count:
        opt.step(grads)
    assert sum(count["syncs"].values()) == 0
    assert count["copies"]["HtoD"]["count"] == count["copies"]["DtoH"]["count"] == 0
    assert count["copies"]["peer"]["count"] > 0


def test_a_gradient_on_another_device_is_an_error(cupy: Any) -> None:
    w, g = spread(cupy, [np.ones(3), np.ones(3)])
    opt = optimkit.Adam({"w": w})
    with pytest.raises(ValueError, match=r"gradient of 'w' is on .*Device 1.*its weight on .*Device 0.*move it there"):
        opt.step({"w": g})
    assert (w.get() == 1.0).all()


def test_the_current_device_does_not_matter(cupy: Any) -> None:
    w, g = cupy.ones(3), cupy.ones(3)
    opt = optimkit.SGD(w, lr=1.0)
    with cupy.cuda.Device(1):
        opt.step(g)
        assert cupy.cuda.Device().id == 1
    assert (w.get() == 0.0).all()
