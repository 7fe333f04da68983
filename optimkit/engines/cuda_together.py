"""All CUDA buckets of an optimizer together: what they share, and the order of their launches.

One bucket: each pass is one launch, whose last block computes what follows from it. Several: the passes of
a round, then what each parameter adds to a total goes to the other devices, then one small
launch per bucket computes what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from optimkit.engines.runner import Shared, Tables


class CudaTogether:
    """The CUDA buckets of one optimizer.

    Parameters
    ----------
    runners : sequence of CudaRunner
        All of them; a step may concern some.
    places : sequence
        Where the members of each stand among all parameters.
    """

    def __init__(self, runners: Sequence[Any], places: Sequence[np.ndarray], shared: Shared) -> None:
        import cupy

        self.runners, self.shared, self.capturing = list(runners), shared, False
        self.places = {key: place for place, key in enumerate(shared.slots)}
        self.devices = list(dict.fromkeys(runner.device.id for runner in runners))
        self._contributions, self._slots, self._done = {}, {}, {}
        for number in self.devices:
            with cupy.cuda.Device(number):
                shape = (len(self.devices), len(shared.labels), shared.entries)
                self._contributions[number] = cupy.zeros(shape)
                self._slots[number] = cupy.asarray(np.array(list(shared.slots.values()), np.float64))
                self._done[number] = cupy.cuda.Event(disable_timing=True)
        for runner, place in zip(runners, places, strict=True):
            number = runner.device.id
            order = self.devices.index(number), len(self.devices)
            runner.connect(shared, place, *order, self._contributions[number], self._slots[number])

    def slot_view(self, key: Any) -> Any:
        """A slot of the optimizer in the memory of its first device, 0-d float64."""
        return self._slots[self.devices[0]][self.places[key]]

    def upload(self, active: Sequence[Any], tables: Sequence[Tables]) -> None:
        """Bring the rows of a step to the devices."""
        for runner, own in zip(active, tables, strict=True):
            with _on(runner) as stream:
                runner.send_rows(own.rows, stream)

    def reduce(self, active: Sequence[Any], tables: Sequence[Tables]) -> None:
        """Run all passes that read, and everything that follows from them."""
        alone = len(active) == 1
        self.capturing = self._check_capture(active, tables)
        self._forget_absent(active)
        self._share_slots(self.devices[0], self.shared.slots)
        for runner, own in zip(active, tables, strict=True):
            with _on(runner) as stream:
                runner.begin(own, stream, alone, self.capturing)
        if alone:
            self._reduce_alone(active[0])
            return
        numbers = {number for runner in active for number in runner.uniform.numbers}
        for number in sorted(numbers):
            for runner in active:
                with _on(runner) as stream:
                    for place, stage in enumerate(runner.plan.reading):
                        if stage.round == number:
                            runner.read(place, stream)
            for runner in active:
                with _on(runner) as stream:
                    runner.finish(number, stream)
            self._exchange()

    def _check_capture(self, active: Sequence[Any], tables: Sequence[Tables]) -> bool:
        """Whether this step becomes part of a CUDA graph; an error, before any launch, where it can't."""
        import cupy

        if not any(cupy.cuda.get_current_stream(number).is_capturing() for number in self.devices):
            return False
        if not self.shared.capturable:
            raise RuntimeError(
                "this step would be captured in a CUDA graph, which repeats its numbers and counts as they are now; "
                "build the optimizer with capturable=True"
            )
        if len(self.devices) > 1:
            raise RuntimeError(
                "parameters on several devices can't be captured in a CUDA graph; use an optimizer for each device"
            )
        for runner, own in zip(active, tables, strict=True):
            runner.refuse_capture(own)
        if any(runner.contributes and runner not in active for runner in self.runners):
            raise RuntimeError("other parameters had a gradient before; run one step with these before the capture")
        return True

    def _forget_absent(self, active: Sequence[Any]) -> None:
        """Buckets that take no part any more add nothing to the totals."""
        absent = [runner for runner in self.runners if runner.contributes and runner not in active]
        for runner in absent:
            with _on(runner):
                runner.clear_contributions()
        if absent:
            self._exchange()

    def _reduce_alone(self, runner: Any) -> None:
        with _on(runner) as stream:
            for number in runner.uniform.head_rounds():
                runner.finish(number, stream)
            for place in range(len(runner.plan.reading)):
                runner.read(place, stream)

    def _exchange(self) -> None:
        """Give every device what the others add to the totals."""
        if len(self.devices) == 1 or not self.shared.labels:
            return
        import cupy

        runtime = cupy.cuda.runtime
        streams = {number: cupy.cuda.get_current_stream(number) for number in self.devices}
        for number, stream in streams.items():
            with cupy.cuda.Device(number):
                self._done[number].record(stream)
        for place, number in enumerate(self.devices):
            mine = self._contributions[number][place]
            with cupy.cuda.Device(number):
                for other in self.devices:
                    if other != number:
                        streams[number].wait_event(self._done[other])
                        theirs = self._contributions[other][place]
                        runtime.memcpyPeerAsync(theirs.data.ptr, other, mine.data.ptr, number, mine.nbytes, streams[number].ptr)
        self._wait_for_each_other(streams)

    def _wait_for_each_other(self, streams: dict[int, Any]) -> None:
        import cupy

        for number, stream in streams.items():
            with cupy.cuda.Device(number):
                arrived = cupy.cuda.Event(disable_timing=True)
                arrived.record(stream)
            for other, waiting in streams.items():
                if other != number:
                    with cupy.cuda.Device(other):
                        waiting.wait_event(arrived)

    def commit(self, active: Sequence[Any], zero: bool, launched: Callable[[int], None]) -> None:
        """Run the last stages; `launched` is told after each.

        A slot of the optimizer is written by the bucket that has the first parameter with a gradient, of those that have
        the slot; it is launched last, since the others read the slot.
        """
        order = sorted(range(len(active)), key=lambda place: active[place].first_present, reverse=True)
        writers = {key: active[place] for place in order for key in active[place].uniform.shared}
        slots = {id(runner): [key for key, writer in writers.items() if writer is runner] for runner in active}
        for place in order:
            runner = active[place]
            with _on(runner) as stream:
                runner.write(zero, slots[id(runner)], stream)
            launched(place)
        for key, writer in writers.items():
            self._share_slots(writer.device.id, [key])

    def _share_slots(self, source: int, keys: Iterable[Any]) -> None:
        """Give the other devices slots of the optimizer."""
        if len(self.devices) == 1 or not keys:
            return
        import cupy

        streams = {number: cupy.cuda.get_current_stream(number) for number in self.devices}
        self._wait_for_each_other(streams)
        for key in keys:
            offset = 8 * self.places[key]
            for number in self.devices:
                if number != source:
                    with cupy.cuda.Device(source):
                        target, mine = self._slots[number].data.ptr + offset, self._slots[source].data.ptr + offset
                        cupy.cuda.runtime.memcpyPeerAsync(target, number, mine, source, 8, streams[source].ptr)
        self._wait_for_each_other(streams)


class _on:
    """The device of a runner made current, and its current stream."""

    def __init__(self, runner: Any) -> None:
        self.device = runner.device

    def __enter__(self) -> Any:
        import cupy

        self.device.__enter__()
        return cupy.cuda.get_current_stream()

    def __exit__(self, *exception: Any) -> None:
        self.device.__exit__(*exception)
