"""The commit of a step: Ctrl-C waits until weights, state and counts agree."""

from __future__ import annotations

import threading
from types import FrameType
from typing import Any

try:  # the functions below the enum wrappers of `signal`, which cost more than a small step's kernel
    import _signal as signal  # type: ignore[import-not-found]
except ImportError:
    import signal


class deferred_interrupts:
    """Hold back SIGINT for the time of the block, and deliver it after.

    Only the main thread gets signals, and only it can do this; elsewhere nothing is needed.
    """

    __slots__ = ("before", "held")

    def __enter__(self) -> None:
        self.before: Any = None
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if callable(before):  # else it is ignored, or not set by Python: nothing would be raised
                self.held: list[tuple[int, FrameType | None]] = []
                signal.signal(signal.SIGINT, self._hold)
                self.before = before

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self.held.append((number, frame))

    def __exit__(self, *exception: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            if self.held:
                self.before(*self.held[0])
