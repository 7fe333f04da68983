"""The commit of a step: Ctrl-C waits until weights, state and counts agree."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
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

    def __enter__(self) -> deferred_interrupts:
        self.before: Any = None
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if callable(before):  # else it is ignored, or not set by Python: nothing would be raised
                self.held: list[tuple[int, FrameType | None]] = []
                signal.signal(signal.SIGINT, self._hold)
                self.before = before
        return self

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Let SIGINT through for a part of the block, in which nothing can be torn: what was held back comes first."""
        if self.before is None:
            yield
            return
        signal.signal(signal.SIGINT, self.before)
        try:
            if self.held:
                self.before(*self.held.pop(0))
            yield
        finally:
            signal.signal(signal.SIGINT, self._hold)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self.held.append((number, frame))

    def __exit__(self, *exception: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            if self.held:
                self.before(*self.held[0])
