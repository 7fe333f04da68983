"""The commit of a step: Ctrl-C waits until weights, state and counts agree."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

try:  # the functions below the enum wrappers of `signal`, which cost more than a small step's kernel
    import _signal as signal  # type: ignore[import-not-found]
except ImportError:
    import signal


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Hold back SIGINT for the time of the block, and deliver it after.

    Only the main thread gets signals, and only it can do this; elsewhere nothing is needed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, or not set by Python: nothing would be raised
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(*held[0])
