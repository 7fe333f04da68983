"""Steps in CUDA graphs: counts and rows advance on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit import transforms

OPTIONS = [{}, {"transforms": [transforms.ClipByGlobalNorm(0.5)], "nonfinite": "skip"}]


def bits(x: Any) -> bytes:
    return (x if isinstance(x, np.ndarray) else x.get()).tobytes()


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "clip and skip"])
def test_a_replayed_step_is_a_step(cupy: Any, new_stream: Any, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(5000).astype(np.float32) for _ in range(8)]
    if options:
        grads[4][7] = np.inf
    host = optimkit.AdamW({"w": np.ones(5000, np.float32)}, lr=1e-2, **options)
    device = optimkit.AdamW({"w": cupy.ones(5000, cupy.float32)}, lr=1e-2, capturable=True, **options)
    g = cupy.zeros(5000, cupy.float32)
    stream = new_stream()
    with stream:
        g.set(grads[0])
        device.step({"w": g})
        stream.begin_capture()
        device.step({"w": g})
        graph = stream.end_capture()
        for values in grads[1:6]:
            g.set(values)
            graph.launch()
        device.lr = 3e-3  # seen by the graph
        device.upload_numbers()
        g.set(grads[6])
        graph.launch()
        g.set(grads[7])
        device.step({"w": g})
        stream.synchronize()
    for number, values in enumerate(grads):
        if number == 6:
            host.lr = 3e-3
        host.step({"w": values})
    assert bits(host["w"].data) == bits(device["w"].data)
    assert host.state["w"].t == device.state["w"].t == (7 if options else 8)
    for slot, value in host.state["w"].items():
        assert bits(value) == bits(device.state["w"][slot])


def test_a_capture_that_would_repeat_an_upload_is_refused(cupy: Any, new_stream: Any) -> None:
    opt = optimkit.Adam({"w": cupy.ones(8)}, capturable=True)
    first, other = cupy.ones(8), cupy.ones(8)
    opt.step({"w": first})
    stream = new_stream()
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=r"needs an upload \(an array was replaced.*before the capture"):
                opt.step({"w": other})
        finally:
            stream.end_capture()


def test_a_number_that_changed_is_not_baked_in(cupy: Any, new_stream: Any) -> None:
    g, opt = cupy.ones(8), optimkit.SGD({"w": cupy.ones(8)}, lr=1.0, capturable=True)
    opt.step({"w": g})
    opt.lr = 0.5
    stream = new_stream()
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=r"needs an upload \(a number changed\)"):
                opt.step({"w": g})
        finally:
            stream.end_capture()


def test_counts_on_the_device_without_a_graph(twins: Any) -> None:
    """The same path as in a graph, step by step."""
    pair = twins(lambda p: optimkit.Adam(p), [np.ones(70, np.float32), np.ones(3, np.float32)])
    pair.device = optimkit.Adam(pair.device_arrays, capturable=True)
    for step in range(4):
        pair.step([np.full(70, 0.1 * step, np.float32), None if step == 1 else np.ones(3, np.float32)])
        pair.check()


def test_what_capturable_is_for(cupy: Any) -> None:
    with pytest.raises(ValueError, match=r"capturable = True is for CuPy arrays on the cuda engine"):
        optimkit.Adam(np.ones(3), capturable=True).step(np.ones(3))
    with pytest.raises(ValueError, match=r"capturable = True is for CuPy arrays"):
        optimkit.Adam(cupy.ones(3), capturable=True, engine="eager").step(cupy.ones(3))
    with pytest.raises(ValueError, match=r"nonfinite = 'raise' waits for the device.*use 'skip'"):
        optimkit.Adam(lr=1e-3, capturable=True, nonfinite="raise")
    with pytest.raises(TypeError, match=r"capturable = 1 must be True or False"):
        optimkit.Adam(lr=1e-3, capturable=1)
    with pytest.raises(ValueError, match=r"upload_numbers.*capturable = True"):
        optimkit.Adam(cupy.ones(3)).upload_numbers()


def capture(new_stream: Any, step: Any) -> Any:
    stream = new_stream()
    with stream:
        stream.begin_capture()
        try:
            step()
        finally:
            graph = stream.end_capture()
    return graph, stream


def replay(cupy: Any, graph: Any, stream: Any) -> None:
    """Launch a graph after all that was submitted to the current stream, and wait for it."""
    stream.wait_event(cupy.cuda.get_current_stream().record())
    with stream:
        graph.launch()
        stream.synchronize()


def test_a_capture_without_capturable_is_refused(cupy: Any, new_stream: Any) -> None:
    w, g = cupy.ones(8), cupy.ones(8)
    opt = optimkit.Adam(w)
    opt.step(g)
    before = w.get()

    def step() -> None:
        with pytest.raises(RuntimeError, match=r"would be captured in a CUDA graph.*capturable=True"):
            opt.step(g)

    capture(new_stream, step)
    assert bits(w) == bits(before)
    assert opt.state["0"].t == opt.count == 1


def test_the_first_step_is_not_captured(cupy: Any, new_stream: Any) -> None:
    w, g = cupy.ones(8), cupy.ones(8)
    opt = optimkit.SGD(w, lr=1.0, momentum=0.5, capturable=True)

    def step() -> None:
        with pytest.raises(RuntimeError, match=r"the first step, .* can't be captured.*before the capture"):
            opt.step(g)

    capture(new_stream, step)
    opt.step(g)
    assert (w.get() == 0.0).all()
    assert (opt.state["0"]["b"].get() == 1.0).all()


def test_a_graph_keeps_its_arrays_whatever_is_stepped_meanwhile(cupy: Any, new_stream: Any) -> None:
    """Other gradients, another layout and other groups upload tables; the graph goes on with its own."""
    params = {"a": cupy.zeros((4, 6)), "b": cupy.zeros(3)}
    groups = [{"params": {"a": params["a"]}, "lr": 1.0}, {"params": {"b": params["b"]}, "lr": 10.0}]
    grads = [{"a": cupy.ones((4, 6))}, {"b": cupy.ones(3)}]
    opt = optimkit.SGD(groups, capturable=True, lr=1.0)
    opt.step(grads)
    graph, stream = capture(new_stream, lambda: opt.step(grads))
    strided = cupy.full((8, 6), 100.0)[::2]
    for others in ([None, {"b": cupy.full(3, 7.0)}], [{"a": strided}, None]):
        opt.step(others)
    before = params["a"].get(), params["b"].get()
    replay(cupy, graph, stream)
    assert (params["a"].get() == before[0] - 1.0).all()
    assert (params["b"].get() == before[1] - 10.0).all()


def test_capturing_is_no_step(cupy: Any, new_stream: Any) -> None:
    w, g = cupy.ones(3), cupy.ones(3)
    opt = optimkit.SGD(w, lr=1.0, capturable=True)
    opt.step(g)
    graph, stream = capture(new_stream, lambda: opt.step(g))
    assert opt.count == 1
    assert opt.state["0"].t == 1
    replay(cupy, graph, stream)
    assert opt.state["0"].t == 2
    assert (w.get() == -1.0).all()


def test_a_captured_step_tells_about_the_last_replay(cupy: Any, new_stream: Any) -> None:
    w, g = cupy.ones(3), cupy.ones(3)
    opt = optimkit.SGD(w, lr=0.0, capturable=True, nonfinite="skip")
    opt.step(g)
    found = []
    graph, stream = capture(new_stream, lambda: found.append(opt.step(g)))
    g[...] = cupy.inf
    replay(cupy, graph, stream)
    assert not found[0].applied
    g[...] = 2.0
    replay(cupy, graph, stream)
    assert found[0].applied, "each replay writes another result"
    assert found[0].grad_norm == float(np.sqrt(12.0))


def test_results_of_steps_beside_a_graph_are_their_own(cupy: Any) -> None:
    w = cupy.ones(3)
    opt = optimkit.SGD(w, lr=1.0, capturable=True, nonfinite="skip")
    first, second = opt.step(cupy.ones(3)), opt.step(cupy.full(3, cupy.inf))
    assert first.applied
    assert not second.applied


def test_what_changes_structure_after_a_capture_warns(cupy: Any, new_stream: Any) -> None:
    w, g = cupy.ones(3), cupy.ones(3)
    opt = optimkit.SGD(w, lr=1.0, momentum=0.5, capturable=True)
    opt.step(g)
    graph, stream = capture(new_stream, lambda: opt.step(g))
    opt.load_state_dict(opt.state_dict())
    with pytest.warns(RuntimeWarning, match=r"a CUDA graph of this optimizer goes on with.*capture again"):
        opt.step(g)
    replay(cupy, graph, stream)
    assert graph is not None


def test_two_devices_are_not_captured(cupy: Any, new_stream: Any, two_devices: None) -> None:
    weights, grads = [cupy.ones(3)], [cupy.ones(3)]
    with cupy.cuda.Device(1):
        weights.append(cupy.ones(3))
        grads.append(cupy.ones(3))
    opt = optimkit.SGD(weights, lr=1.0, capturable=True)
    opt.step(grads)

    def step() -> None:
        with pytest.raises(RuntimeError, match=r"several devices can't be captured"):
            opt.step(grads)

    capture(new_stream, step)
    assert [float(w[0]) for w in weights] == [0.0, 0.0]
