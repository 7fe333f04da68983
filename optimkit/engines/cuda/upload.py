"""Uploads: small tables from pinned buffers, copied while the host goes on.

A copy reads its buffer later than it is called, so a buffer is used again only when the event after its
copy has passed. There are as many buffers as copies under way, up to a bound. They belong to the device, not to an
optimizer: one that is dropped may have copies under way.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from optimkit.counting import counters
from optimkit.engines.atomic import at_once

MOST = 64  # buffers; beyond, the host waits for the oldest copy


@dataclass(eq=False)
class _Buffer:
    memory: Any
    view: np.ndarray
    event: Any


class Uploader:
    """Copies host arrays to one device. Who sends takes a buffer out of the list, so threads need no lock."""

    def __init__(self) -> None:
        self._buffers: list[_Buffer] = []

    def send(self, target: int, source: np.ndarray, stream: Any) -> None:
        """Copy a contiguous array to a device address."""
        import cupy

        runtime = cupy.cuda.runtime
        buffer = self._take(source.nbytes)
        buffer.view[: source.nbytes] = source.reshape(-1).view(np.uint8)
        copy = partial(runtime.memcpyAsync, target, buffer.memory.ptr, source.nbytes, runtime.memcpyHostToDevice, stream.ptr)
        at_once([copy, partial(buffer.event.record, stream), partial(self._buffers.append, buffer)])
        counters.uploads += 1

    def _take(self, size: int) -> _Buffer:
        """A buffer of the size that no copy reads any more."""
        for buffer in tuple(self._buffers):
            if len(buffer.view) >= size and buffer.event.done:
                with contextlib.suppress(ValueError):  # another thread took it
                    self._buffers.remove(buffer)
                    return buffer
        if len(self._buffers) >= MOST:
            oldest = self._buffers[0]
            oldest.event.synchronize()
            with contextlib.suppress(ValueError):
                self._buffers.remove(oldest)
        import cupy

        memory = cupy.cuda.alloc_pinned_memory(size)
        view = np.frombuffer(memory, np.uint8, size)
        return _Buffer(memory, view, cupy.cuda.Event(disable_timing=True))


_uploaders: dict[int, Uploader] = {}


def uploader(device: int) -> Uploader:
    """The uploader of a device."""
    return _uploaders.setdefault(device, Uploader())
