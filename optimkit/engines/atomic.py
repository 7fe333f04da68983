"""Calls that happen all, or none: nothing of Python runs between them, so nothing can interrupt it there.

Python looks for signals, and for exceptions that other threads raise in this one, between its own instructions. `at_once`
makes calls of compiled code in compiled code; what comes meanwhile is raised when all of them were made. So no signal is
held back, whoever handles it, and however. A `Gate` is a lock whose wait no signal ends: `threading.Lock` calls the handlers
of signals as it waits.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from operator import call
from typing import Any


def at_once(calls: Iterable[Callable[[], Any]]) -> None:
    """Make calls of compiled code, one after the other, or none of them. They must not fail."""
    deque(map(call, calls), 0)


_new = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyThread_allocate_lock", ctypes.pythonapi))
_close = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(("PyThread_acquire_lock", ctypes.pythonapi))
_open = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyThread_release_lock", ctypes.pythonapi))
_spare: list[int] = []  # closed locks that nobody waits for


class Gate:
    """Closed until it is opened. Either `open` and `wait` are called, once each, or `drop`: all are calls of compiled code."""

    def __init__(self) -> None:
        try:
            lock = _spare.pop()
        except IndexError:
            lock = _new_closed()
        self.drop: Callable[[], Any] = partial(_spare.append, lock)
        self.open: Callable[[], Any] = partial(_open, lock)
        self.wait: Callable[[], Any] = partial(deque, map(call, (partial(_close, lock, 1), self.drop)), 0)


def _new_closed() -> int:
    lock: int | None = _new()
    if not lock:
        raise MemoryError("the system has no more locks")
    _close(lock, 1)
    return lock
