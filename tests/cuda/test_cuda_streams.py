"""Streams: whatever touches the state comes after what touched it before, on other streams too; memory goes back in order.

The emulated device does everything as it is submitted, so disorder shows in no value there. These tests follow what is
submitted instead: events, waits and launches, with a clock for each stream that says what has surely been done by then.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit import transforms
from optimkit.arrays import StreamOrder

CLIP = {"transforms": [transforms.ClipByGlobalNorm(1.0)]}
OPTIONS = {"plain": {}, "skip": {"nonfinite": "skip", **CLIP}, "eager": {"engine": "eager"}}


class Clocks:
    """What has surely been done before whatever is submitted to each stream next, as numbers of operations."""

    def __init__(self, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cupy, self.count = cupy, 0
        self.done: dict[int, set[int]] = {}
        self.events: dict[int, set[int]] = {}
        self.all_done: set[int] = set()  # the host has waited for these
        self.waits: list[int] = []
        self.records: list[int] = []
        runtime, driver = cupy.cuda.runtime, cupy.cuda.driver
        record, wait, launch = runtime.eventRecord, runtime.streamWaitEvent, driver.launchKernel

        def recording(event: int, stream: int) -> None:
            record(event, stream)
            self.records.append(stream)
            self.events[event] = set(self.of(stream))

        def waiting(stream: int, event: int) -> None:
            wait(stream, event)
            self.waits.append(stream)
            self.of(stream).update(self.events[event])

        def launching(*arguments: Any) -> None:
            if not runtime.streamIsCapturing(arguments[8]):
                self.check(arguments[8])
            launch(*arguments)

        monkeypatch.setattr(runtime, "eventRecord", recording)
        monkeypatch.setattr(runtime, "streamWaitEvent", waiting)
        settle = StreamOrder.settle

        def settling(order: StreamOrder) -> None:
            settle(order)
            self.all_done = set(range(self.count))

        monkeypatch.setattr(driver, "launchKernel", launching)
        monkeypatch.setattr(StreamOrder, "settle", settling)

    def of(self, stream: int) -> set[int]:
        return self.done.setdefault(stream, set())

    def check(self, stream: int) -> None:
        missing = set(range(self.count)) - self.of(stream) - self.all_done
        assert not missing, f"operation {self.count} on stream {stream} waits for nothing of {sorted(missing)}"

    def run(self, stream: Any, operation: Callable[[], Any], touches: bool = True) -> Any:
        """Run an operation on a stream; one that touches the state there must come after all before it."""
        with stream:
            self.of(stream.ptr).add(self.count)
            found = operation()
            if touches:
                self.check(stream.ptr)
                self.count += 1
        return found


@pytest.fixture
def clocks(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(cupy, monkeypatch)


@pytest.fixture
def streams(cupy: Any) -> Iterator[list[Any]]:
    """The null stream, two of CuPy's, and one that somebody else made."""
    held = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there is `Stream.from_external` from CuPy 14 on
        external = cupy.cuda.ExternalStream(held[2].ptr)
    yield [cupy.cuda.Stream.null, *held[:2], external]
    cupy.cuda.Device().synchronize()


def build(cupy: Any, **options: Any) -> tuple[Any, list[Any]]:
    weights = {"a": cupy.ones(300, cupy.float32), "b": cupy.ones((5, 7), cupy.float32)}
    grads = [{name: cupy.full_like(w, 0.1 * k) for name, w in weights.items()} for k in range(12)]
    cupy.cuda.Device().synchronize()
    return optimkit.AdamW(weights, lr=1e-2, **options), grads


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_load_on_one_stream_is_whole_before_a_step_on_another(
    cupy: Any, clocks: Clocks, streams: list[Any], options: dict[str, Any]
) -> None:
    opt, grads = build(cupy, **options)
    clocks.run(streams[1], lambda: opt.step(grads[0]))
    saved = clocks.run(streams[1], opt.state_dict)
    clocks.run(streams[0], lambda: opt.load_state_dict(saved))
    clocks.run(streams[1], lambda: opt.step(grads[1]))
    clocks.run(streams[2], opt.state_dict)
    clocks.run(streams[0], lambda: opt.step(grads[2]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_any_order_of_operations_on_any_streams(
    cupy: Any, clocks: Clocks, streams: list[Any], options: dict[str, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    opt, grads = build(cupy, **options)
    saved = opt.state_dict()
    clocks.run(streams[0], lambda: None)
    view = {"add": 0}

    def add() -> None:
        view["add"] += 1
        opt.add({f"c{view['add']}": cupy.ones(3, cupy.float32)})
        opt.step(grads[0])
        opt.remove(f"c{view['add']}")

    def reset() -> None:  # state is made anew in the next step
        opt.reset("b")

    operations = [
        lambda: opt.step(grads[rng.integers(12)]),
        lambda: opt.step(grads[rng.integers(12)], zero_grad=True),
        lambda: opt.load_state_dict(saved),
        opt.state_dict,
        lambda: opt.state["a"]["m"],
        opt.warm_up,
        add,
        reset,
        lambda: opt.replace("b", cupy.ones((5, 7), cupy.float32)),
    ]
    for _ in range(40):
        operation = operations[0] if rng.random() < 0.4 else operations[rng.integers(len(operations))]
        clocks.run(streams[rng.integers(4)], operation, touches=operation is not reset)


def test_what_the_caller_writes_to_a_view_comes_first_too(cupy: Any, clocks: Clocks, streams: list[Any]) -> None:
    """The event is recorded when somebody waits, so that it stands after the caller's own work."""
    opt, grads = build(cupy)
    clocks.run(streams[1], lambda: opt.step(grads[0]))
    clocks.run(streams[2], lambda: opt.state["a"]["m"])
    recorded = len(clocks.records)
    with streams[2]:
        opt.state["a"]["m"][...] = 0.0
    clocks.run(streams[1], lambda: opt.step(grads[0]))
    assert clocks.records[recorded:] == [streams[2].ptr]


def test_one_stream_needs_no_events(cupy: Any, clocks: Clocks, streams: list[Any]) -> None:
    opt, grads = build(cupy, **OPTIONS["skip"])
    with streams[1]:
        for g in grads:
            opt.step(g)
        opt.load_state_dict(opt.state_dict())
        opt.step(grads[0])
    assert clocks.records == clocks.waits == []


def test_per_thread_default_streams_are_told_apart(cupy: Any, clocks: Clocks) -> None:
    """The same handle in each thread is another stream: its event is recorded before the thread goes on."""
    opt, grads = build(cupy)
    with cupy.cuda.Stream.ptds:
        opt.step(grads[0])
        opt.step(grads[1])
        assert clocks.waits == []
        assert len(clocks.records) == 2

        def elsewhere() -> None:
            with cupy.cuda.Stream.ptds:
                opt.step(grads[2])

        for number in range(1, 4):  # the ident of one that has ended goes to the next
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert len(clocks.waits) == number
        opt.step(grads[0])
        assert len(clocks.waits) == 4


def test_memory_goes_back_when_what_uses_it_is_done(cupy: Any, clocks: Clocks, streams: list[Any]) -> None:
    opt, grads = build(cupy)
    with streams[1]:
        opt.step(grads[0])  # state and tables come from the pool of this stream
    with streams[2]:
        opt.step(grads[1])
    waited = len(clocks.waits)
    del opt
    gc.collect()
    assert clocks.waits[waited:] == [streams[1].ptr]
    assert clocks.records[-1] == streams[2].ptr


def test_no_table_goes_back_while_the_optimizer_lives(
    cupy: Any, streams: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other gradients, strided ones too, need other tables and longer ones."""
    monkeypatch.setattr("optimkit.engines.cuda.job._takes_large_arguments", lambda: False)
    freed: list[int] = []

    class Hook(cupy.cuda.MemoryHook):
        name = "frees"

        def free_preprocess(self, **what: Any) -> None:
            freed.append(what["mem_ptr"])

    weights = {str(number): cupy.ones((3, 4), cupy.float32) for number in range(40)}
    opt = optimkit.SGD(weights, lr=0.1)
    held, used = [], set()
    with Hook():
        for step in range(52):
            strided = [int(name) < step - 12 for name in weights]
            grads = [cupy.ones((4, 3), cupy.float32).T if each else cupy.ones((3, 4), cupy.float32) for each in strided]
            held.append(dict(zip(weights, grads, strict=True)))
            cupy.cuda.Device().synchronize()
            with streams[step % 3]:
                opt.step(held[-1])
            used.add(int(opt._run.steps.buckets[0].runner.job["table"]))
    assert len(used) > 8
    assert used.isdisjoint(freed)


def test_a_capture_takes_nothing_over(cupy: Any, clocks: Clocks, streams: list[Any], traffic: Any) -> None:
    opt, grads = build(cupy, capturable=True)
    clocks.run(streams[1], lambda: opt.step(grads[0]))
    with streams[2]:
        streams[2].begin_capture()
        before = len(clocks.records), len(clocks.waits)
        opt.step(grads[0])
        after = len(clocks.records), len(clocks.waits)
        graph = streams[2].end_capture()
    assert before == after, "an event, or a wait, would have become part of the graph"
    clocks.run(streams[0], lambda: opt.step(grads[1]))
    graph.launch(streams[2])
    with traffic() as count:
        saved = opt.state_dict()
    assert count["syncs"]["device"]
    assert saved["state"]["a"]["t"] == 3


def test_a_stream_that_is_captured_now_can_not_be_waited_for(cupy: Any, streams: list[Any]) -> None:
    opt, grads = build(cupy, capturable=True)
    with streams[1]:
        opt.step(grads[0])
        streams[1].begin_capture()
        try:
            with streams[2], pytest.raises(RuntimeError, match=r"on a stream that is being captured.*end the capture first"):
                opt.step(grads[1])
        finally:
            streams[1].end_capture()
    with streams[2]:
        opt.step(grads[1])
    assert opt.state["a"].t == 2


def test_recapturing_the_same_set_keeps_one_table(cupy: Any, streams: list[Any]) -> None:
    opt, grads = build(cupy, capturable=True)
    opt.step(grads[0])
    for _ in range(5):
        for g in grads:  # more sets than are kept
            opt.step(g)
        opt.step(grads[0])
        with streams[1]:
            streams[1].begin_capture()
            opt.step(grads[0])
            streams[1].end_capture()
    (bucket,) = opt._run.steps.buckets
    assert len(bucket.runner.table._of_graphs) == 1
    assert len(opt._run.captured) == 1


def test_a_device_that_comes_into_play_later_has_an_order_too(cupy: Any, two_devices: None) -> None:
    """State moves with its weight to another device, on one stream there; the next step there is on another."""
    opt = optimkit.SGD({"w": cupy.ones(4)}, lr=1.0, momentum=0.5)
    opt.step({"w": cupy.ones(4)})
    with cupy.cuda.Device(1):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            opt.replace("w", cupy.full(4, 2.0))
        (order,) = [order for order in opt._run.orders.by_device.values() if order.device.id == 1]
        assert order._last.ptr == stream.ptr
        assert list(order._sources) == [(stream.ptr, 0)]
        g = cupy.ones(4)
        stream.synchronize()
        opt.step({"w": g})
        assert (opt["w"].data.get() == 2.0 - 1.5).all()
