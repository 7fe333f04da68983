"""What passes between devices: what each parameter adds to the totals, and slots that the optimizer has once.

Every device keeps a table of contributions, (devices, totals, parameters), and fills its own part. `share` brings each
part to all devices, which then add it up in the same order: so they agree to the bit. This is the one place
where totals of several devices meet.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from optimkit.engines.protocol import Shared


class DeviceExchange:
    """The tables that the devices of an optimizer have in common.

    Parameters
    ----------
    devices : sequence of int
        The devices, without repetition.
    shared : Shared
        The totals and the slots of the optimizer.
    """

    def __init__(self, devices: Sequence[int], shared: Shared) -> None:
        import cupy

        self.devices, self.labels = list(devices), shared.labels
        self.places = {key: place for place, key in enumerate(shared.slots)}
        self.contributions: dict[int, Any] = {}
        self.slots: dict[int, Any] = {}
        self._done: dict[int, Any] = {}
        for number in self.devices:
            with cupy.cuda.Device(number):
                self.contributions[number] = cupy.zeros((len(self.devices), shared.totals, shared.entries))
                self.slots[number] = cupy.asarray(np.array(list(shared.slots.values()), np.float64))
                self._done[number] = cupy.cuda.Event(disable_timing=True)

    def slot_view(self, key: Hashable) -> Any:
        """A slot of the optimizer in the memory of its first device, 0-d float64."""
        return self.slots[self.devices[0]][self.places[key]]

    def share(self) -> None:
        """Give every device what the others add to the totals."""
        if len(self.devices) == 1 or not self.labels:
            return
        import cupy

        runtime = cupy.cuda.runtime
        streams = self._streams()
        for number, stream in streams.items():
            with cupy.cuda.Device(number):
                self._done[number].record(stream)
        for place, number in enumerate(self.devices):
            mine = self.contributions[number][place]
            with cupy.cuda.Device(number):
                for other in self.devices:
                    if other != number:
                        streams[number].wait_event(self._done[other])
                        theirs = self.contributions[other][place]
                        runtime.memcpyPeerAsync(theirs.data.ptr, other, mine.data.ptr, number, mine.nbytes, streams[number].ptr)
        self._wait_for_each_other(streams)

    def share_slots(self, source: int, keys: Iterable[Hashable]) -> None:
        """Give the other devices slots of the optimizer."""
        if len(self.devices) == 1 or not keys:
            return
        import cupy

        streams = self._streams()
        self._wait_for_each_other(streams)
        for key in keys:
            offset = self.slots[source].itemsize * self.places[key]
            for number in self.devices:
                if number != source:
                    with cupy.cuda.Device(source):
                        target, mine = self.slots[number].data.ptr + offset, self.slots[source].data.ptr + offset
                        size = self.slots[source].itemsize
                        cupy.cuda.runtime.memcpyPeerAsync(target, number, mine, source, size, streams[source].ptr)
        self._wait_for_each_other(streams)

    def _streams(self) -> dict[int, Any]:
        import cupy

        return {number: cupy.cuda.get_current_stream(number) for number in self.devices}

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
