"""State of device parameters: live views, files from GPU to CPU and back, copies, rebinding."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit import transforms


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((40, 30)).astype(np.float32)


def build(w: Any, **options: Any) -> Any:
    return optimkit.AdamW({"w": w}, lr=1e-2, transforms=[transforms.ClipByGlobalNorm(1.0)], **options)


def bits(opt: Any) -> bytes:
    data = opt["w"].data
    return (data if isinstance(data, np.ndarray) else data.get()).tobytes()


@pytest.mark.parametrize("nonfinite", ["allow", "skip"])
def test_resume_across_devices_to_the_bit(cupy: Any, nonfinite: str) -> None:
    host, device = build(draw(0), nonfinite=nonfinite), build(cupy.asarray(draw(0)), nonfinite=nonfinite)
    for seed in range(1, 4):
        host.step({"w": draw(seed)})
        device.step({"w": cupy.asarray(draw(seed))})
    to_host = build(host["w"].data.copy(), nonfinite=nonfinite)
    to_host.load_state_dict(device.state_dict())
    to_device = build(device["w"].data.copy(), nonfinite=nonfinite)
    to_device.load_state_dict(host.state_dict())
    others = [copy.deepcopy(device), pickle.loads(pickle.dumps(device))]
    for seed in range(4, 6):
        for opt in (host, to_host):
            opt.step({"w": draw(seed)})
        for opt in (device, to_device, *others):
            opt.step({"w": cupy.asarray(draw(seed))})
    assert {bits(opt) for opt in (host, device, to_host, to_device, *others)} == {bits(host)}
    assert {opt.state["w"].t for opt in (host, device, to_host, to_device, *others)} == {5}


def test_a_saved_state_does_not_alias(cupy: Any) -> None:
    opt = build(cupy.asarray(draw(0)))
    opt.step({"w": cupy.asarray(draw(1))})
    saved = opt.state_dict()
    before = saved["state"]["w"]["slots"]["m"].get()
    opt.step({"w": cupy.asarray(draw(2))})
    np.testing.assert_array_equal(saved["state"]["w"]["slots"]["m"].get(), before)


def test_live_views(cupy: Any) -> None:
    opt = optimkit.SGD({"w": cupy.zeros(4)}, lr=1.0, momentum=0.5)
    g = cupy.ones(4)
    opt.step({"w": g})
    view = opt.state["w"]["b"]
    view[...] = 10.0
    opt.step({"w": g})
    assert (opt["w"].data.get() == -1.0 - 6.0).all()
    assert (view.get() == 6.0).all()


class Counting(optimkit.Optimizer):
    """A slot per parameter and one per optimizer."""

    lr: optimkit.Scalar = 1.0

    def slots(self) -> dict[str, Any]:
        return {"n": optimkit.zeros.per("parameter"), "k": optimkit.zeros.per("optimizer")}

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        return h.lr * g * 0.0 + s.n + s.k, {"n": s.n + 1.0, "k": s.k + 10.0}


def test_live_views_of_slots_per_parameter_and_optimizer(cupy: Any) -> None:
    opt = Counting({"w": cupy.zeros(3)})
    g = cupy.ones(3)
    opt.step({"w": g})
    assert float(opt.state["w"]["n"]) == 1.0
    assert float(opt.state.shared["k"]) == 10.0
    opt.state["w"]["n"][...] = 100.0
    opt.state.shared["k"][...] = 1000.0
    opt.step({"w": g})
    assert (opt["w"].data.get() == -1100.0).all()
    saved = opt.state_dict()
    assert saved["state"]["w"]["slots"]["n"] == 101.0
    assert saved["shared"] == {"k": 1010.0}
    fresh = Counting({"w": cupy.zeros(3)})
    fresh.load_state_dict(saved)
    fresh.step({"w": g})
    assert (fresh["w"].data.get() == -1111.0).all()
    on_host = Counting({"w": np.zeros(3)})
    on_host.load_state_dict(saved)
    on_host.step({"w": np.ones(3)})
    assert (on_host["w"].data == -1111.0).all()


def test_rebound_replaced_and_added_parameters(cupy: Any) -> None:
    params = {"w": cupy.ones(5, cupy.float32)}
    opt = optimkit.SGD(params, lr=1.0, momentum=0.5, nonfinite="skip")
    opt.step({"w": cupy.ones(5, cupy.float32)})
    params["w"] = params["w"] * 2.0  # rebound: its state stays
    opt.step({"w": cupy.ones(5, cupy.float32)})
    assert (params["w"].get() == 0.0 - 1.5).all()
    opt.replace("w", cupy.zeros(7, cupy.float64), state="reset")
    opt.add({"v": cupy.zeros(2, cupy.float32)})
    opt.step({"w": cupy.ones(7), "v": cupy.ones(2, cupy.float32)})
    assert (params["w"].get() == -1.0).all()
    assert [opt.state[name].t for name in ("w", "v")] == [1, 1]
    params["w"] = np.zeros(7)
    with pytest.raises((TypeError, ValueError), match=r"'w'.*opt\.replace"):
        opt.step({"w": cupy.ones(7)})


def test_a_weight_whose_memory_order_changes_keeps_its_state(twins: Any) -> None:
    pair = twins(lambda p: optimkit.Adam(p, lr=0.1), [draw(0)])
    pair.step([draw(1)])
    pair.check()
    import cupy

    for opt, xp in ((pair.host, np), (pair.device, cupy)):
        opt["0"].data = xp.asfortranarray(opt["0"].data)
    pair.host_arrays, pair.device_arrays = [pair.host["0"].data], [pair.device["0"].data]
    pair.step([draw(2)])
    pair.check()
