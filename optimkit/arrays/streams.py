"""Streams: what an optimizer does on a device stays in order, whatever streams it is submitted to.

CUDA orders the work of one stream. State of ours is touched on whatever stream is current: filled by
`load_state_dict` on one, updated by a step on another, copied by `state_dict` on a third. So who comes, waits for who was
there before, on the device; the host waits for nothing.

    order.enter()        # what is submitted to the current stream from here on comes after all that was done before
    order.leave()        # and whoever enters next comes after it

While a stream is captured for a graph, nothing of this is done, as the graph would repeat it: its launches are in the
order that the caller gives them.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import Any

PER_THREAD = 2  # the handle of the per-thread default stream: the same number in each thread, another stream


class StreamOrder:
    """The work of one optimizer on one device.

    Parameters
    ----------
    device : cupy.cuda.Device
        The device.
    owner : object
        What owns the memory: when it goes, the streams that the memory came from wait for what still uses it.
    """

    def __init__(self, device: Any, owner: Any) -> None:
        self.device, self.several = device, False
        self._owner = weakref.ref(owner)
        self._last: Any = None  # the stream of the last work,
        self._key: tuple[int, int] = (-1, 0)  # what tells it from others,
        self._lasting = True  # whether it is there as long as it is held, and the same for all threads,
        self._event: Any = None  # and an event after that work, as far as one was recorded
        self._sources: dict[tuple[int, int], Any] = {}  # the streams that our memory came from

    def enter(self) -> None:
        """Have the current stream wait for all that was done before.

        Raises
        ------
        RuntimeError
            If that was done on a stream that is being captured now: nothing can wait for it.
        """
        stream = self._current()
        key = _key(stream)
        if (key == self._key and (self._lasting or key[0] == PER_THREAD)) or stream.is_capturing():
            return
        if self._last is not None:
            if key != self._key and not self.several:
                self.several = True
                weakref.finalize(self._owner(), self.release).atexit = False
            with self.device:
                self._record()
                self._wait(stream)
        self._last, self._key, self._lasting = stream, key, _is_lasting(stream)

    def leave(self) -> None:
        """Be what others wait for. Where the stream may be gone, or another one, when somebody asks, its event is recorded."""
        if self._last is None:  # the device came into play in between
            self.enter()
            self.allocates()
        if not self._lasting and self._key == _key(self._current()) and not self._last.is_capturing():
            with self.device:
                self._record_now()

    def allocates(self) -> None:
        """Memory comes from the current stream: it goes back to it, and what is asked for there next may get it."""
        stream = self._current()
        self._sources.setdefault(_key(stream), stream)

    def release(self) -> None:
        """Memory is given back: the streams that it came from wait for the last work that uses it."""
        others = [stream for key, stream in self._sources.items() if key != self._key]
        if self._last is None or not others:
            return
        with self.device:
            if self._lasting and not self._last.is_capturing():
                self._record()
            elif self._lasting or self._event is None:
                self.settle()  # no event can tell
                return
            for stream in others:
                if not _is_lasting(stream):
                    self._event.synchronize()  # the stream may be gone
                elif not stream.is_capturing():
                    self._wait(stream)

    def settle(self) -> None:
        """Wait for the device, so that nothing is under way on any stream; where one is captured here, that is left out."""
        if not self._current().is_capturing():
            self.device.synchronize()

    def fetch(self, array: Any, stream: Any) -> Any:
        """The values of an array that work on a stream has written; waits for it, and changes no order."""
        with self.device:
            here = self._current()
            if not _is_lasting(stream) and _key(stream) != _key(here):
                self._wait(here)
                stream = here
            return array.get(stream=stream)

    def _current(self) -> Any:
        import cupy

        return cupy.cuda.get_current_stream(self.device.id)

    def _record(self) -> None:
        """An event after all that was submitted to the last stream, by the caller too where it can still be asked."""
        if not self._lasting:
            return  # recorded as it was left
        if self._last.is_capturing():
            raise RuntimeError(
                "the last step, or change of state, was on a stream that is being captured in a CUDA graph now, and no other "
                "stream can wait for it: end the capture first, or go on on that stream"
            )
        self._record_now()

    def _record_now(self) -> None:
        import cupy

        if self._event is None:
            self._event = cupy.cuda.Event(disable_timing=True)
        cupy.cuda.runtime.eventRecord(self._event.ptr, self._last.ptr)

    def _wait(self, stream: Any) -> None:
        import cupy

        if self._event is not None:
            cupy.cuda.runtime.streamWaitEvent(stream.ptr, self._event.ptr)


class _Thread(threading.local):
    """A number for each thread; its ident goes to another one when it ends."""

    def __init__(self) -> None:
        self.number = next(_numbers)


_numbers = itertools.count(1)
_thread = _Thread()


def _key(stream: Any) -> tuple[int, int]:
    pointer = stream.ptr
    return pointer, _thread.number if pointer == PER_THREAD else 0


def _is_lasting(stream: Any) -> bool:
    """Whether a stream is there as long as it is held, and the same for all threads."""
    import cupy

    return isinstance(stream, cupy.cuda.Stream) and stream.ptr != PER_THREAD
