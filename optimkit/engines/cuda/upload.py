"""Uploads: small tables from pinned buffers, copied while the host goes on.

A copy reads its buffer later than it is called, so a buffer is used again only when the event after its
copy has passed. There are as many buffers as copies under way, up to a bound. They belong to the device, not to an
optimizer: one that is dropped may have copies under way.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from optimkit.counting import counters
from optimkit.engines.atomic import at_once

MOST = 64  # buffers of a size; beyond, the host waits for the oldest copy


@dataclass(eq=False)
class _Buffer:
    memory: Any
    view: np.ndarray
    event: Any


class Uploader:
    """Copies host arrays to one device. Who sends takes a buffer out of its line, so threads need no lock."""

    def __init__(self) -> None:
        self._lines: dict[int, deque[_Buffer]] = {}  # of each size, the one used longest ago first

    def send(self, target: int, source: np.ndarray, stream: Any) -> None:
        """Copy a contiguous array to a device address."""
        import cupy

        runtime, size = cupy.cuda.runtime, source.nbytes
        room = 1 << max(8, (size - 1).bit_length())
        line = self._lines.setdefault(room, deque())
        buffer = self._take(line, room)
        buffer.view[:size] = source.reshape(-1).view(np.uint8)
        copy = partial(runtime.memcpyAsync, target, buffer.memory.ptr, size, runtime.memcpyHostToDevice, stream.ptr)
        at_once([copy, partial(buffer.event.record, stream), partial(line.append, buffer)])
        counters.uploads += 1

    def _take(self, line: deque[_Buffer], room: int) -> _Buffer:
        """A buffer that no copy reads any more: the oldest, or a new one while there are few."""
        full = len(line) >= MOST
        with contextlib.suppress(IndexError):  # there is none, or another thread took it
            buffer = line.popleft()
            if full:
                buffer.event.synchronize()
            if full or buffer.event.done:
                return buffer
            line.appendleft(buffer)
        import cupy

        memory = cupy.cuda.alloc_pinned_memory(room)
        return _Buffer(memory, np.frombuffer(memory, np.uint8, room), cupy.cuda.Event(disable_timing=True))


_uploaders: dict[int, Uploader] = {}


def uploader(device: int) -> Uploader:
    """The uploader of a device."""
    return _uploaders.setdefault(device, Uploader())
