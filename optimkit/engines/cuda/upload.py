"""Uploads: small tables from pinned buffers, copied while the host goes on.

A copy reads its buffer later than it is called, so a buffer is used again only when the event after its
copy has passed. There are as many buffers as copies under way, up to a bound. They belong to the device, not to an
optimizer: one that is dropped may have copies under way.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimkit.counting import counters

MOST = 64  # buffers; beyond, the host waits for the oldest copy


@dataclass(eq=False)
class _Buffer:
    memory: Any
    view: np.ndarray
    event: Any


class Uploader:
    """Copies host arrays to one device."""

    def __init__(self) -> None:
        self._buffers: list[_Buffer] = []
        self._lock = threading.Lock()

    def send(self, target: int, source: np.ndarray, stream: Any) -> None:
        """Copy a contiguous array to a device address."""
        import cupy

        runtime = cupy.cuda.runtime
        with self._lock:
            buffer = self._free(source.nbytes)
            buffer.view[: source.nbytes] = source.reshape(-1).view(np.uint8)
            runtime.memcpyAsync(target, buffer.memory.ptr, source.nbytes, runtime.memcpyHostToDevice, stream.ptr)
            buffer.event.record(stream)
            counters.uploads += 1

    def _free(self, size: int) -> _Buffer:
        """A buffer of the size that no copy reads any more, taken to the end of the list."""
        for number, buffer in enumerate(self._buffers):
            if len(buffer.view) >= size and buffer.event.done:
                self._buffers.append(self._buffers.pop(number))
                return buffer
        if len(self._buffers) >= MOST:
            self._buffers[0].event.synchronize()
            del self._buffers[0]
        import cupy

        memory = cupy.cuda.alloc_pinned_memory(size)
        view = np.frombuffer(memory, np.uint8, size)
        buffer = _Buffer(memory, view, cupy.cuda.Event(disable_timing=True))
        self._buffers.append(buffer)
        return buffer


_uploaders: dict[int, Uploader] = {}


def uploader(device: int) -> Uploader:
    """The uploader of a device."""
    return _uploaders.setdefault(device, Uploader())
