"""The thread pool: workers that join a call, and never delay it.

`run(call, n)` calls `call(0)` here and `call(1) .. call(n - 1)` on workers, and returns when all
that have begun are done. A worker that has not begun by then never will: the calls share their
work by an atomic counter, so nothing waits for a thread that wakes up late.

    helpers = Helpers([call, call])     # the same in pieces: made ahead,
    at_once([*helpers.starts, *helpers.waits])

The pool is made at first use and dropped after a fork.
"""

from __future__ import annotations

import _thread
import ctypes
import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import call as call_each
from queue import SimpleQueue
from typing import Any

from optimkit.engines.atomic import Gate, at_once

Call = Callable[[int], None]


def start(work: Callable[[], Any]) -> None:
    """Do `work` on a new thread.

    An exception that some thread raises in this one can hit the new one instead, as CPython knows that by the id of its parent
    until it runs: it would end before it began, and `threading.Thread.start` wait for ever. Here it is sent back, first of all.

    Raises
    ------
    RuntimeError
        If the system has no more threads.
    """
    first = _return_to(_thread.get_ident())
    next(first)
    both: tuple[Callable[[], Any], ...] = (partial(next, first, None), work)
    _thread.start_new_thread(deque, (map(call_each, both), 0))


def _return_to(parent: int) -> Iterator[None]:
    try:
        yield
    except GeneratorExit:
        return
    except BaseException as error:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(parent), ctypes.py_object(type(error)))


class _Task:
    """One call for one worker: `begun` is taken by the worker, or by the caller to cancel. `done` opens when it is over.

    `call` is dropped when it is over: nothing that it holds is kept by a worker that waits.
    """

    __slots__ = ("begun", "call", "done", "error")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call: Callable[[], Any] | None = call
        self.begun, self.done = threading.Lock(), Gate()
        self.error: BaseException | None = None


class _Pool:
    """Workers, each with a queue. No lock is held, which an exception could leave behind: one worker too many is sent away."""

    def __init__(self) -> None:
        self.queues: dict[int, SimpleQueue[_Task | None]] = {}

    def queue(self, number: int) -> SimpleQueue[_Task | None]:
        found = self.queues.get(number)
        if found is None:
            queue: SimpleQueue[_Task | None] = SimpleQueue()
            start(partial(_work, queue))
            found = self.queues.setdefault(number, queue)
            if found is not queue:
                queue.put(None)
        return found


def _work(queue: SimpleQueue[_Task | None]) -> None:
    for task in iter(queue.get, None):
        _do(task)
        del task


def _do(task: _Task) -> None:
    if not task.begun.acquire(blocking=False):
        task.done.drop()
        return
    try:
        assert task.call is not None
        task.call()
    except BaseException as error:
        task.error = error
    task.call = None
    task.done.open()


_pool, _apart = _Pool(), _Pool()


def _forget() -> None:
    global _pool, _apart
    _pool, _apart = _Pool(), _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

_threads: int | None = None


def default_threads() -> int:
    """OPTIMKIT_NUM_THREADS, else OMP_NUM_THREADS, else the cores that this process may use."""
    for variable in ("OPTIMKIT_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").partition(",")[0].strip()
        if text.isdigit() and int(text) > 0:
            return int(text)
        if text and variable == "OPTIMKIT_NUM_THREADS":
            raise ValueError(f"OPTIMKIT_NUM_THREADS = {text!r} must be a whole number from 1")
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_num_threads() -> int:
    """The number of threads that a step on the CPU may use."""
    global _threads
    if _threads is None:
        _threads = default_threads()
    return _threads


def set_num_threads(n: int) -> None:
    """Set the number of threads that a step on the CPU may use, the calling one included.

    Parameters
    ----------
    n : int
        From 1. The results are the same bits for every `n`.

    Raises
    ------
    ValueError
        If `n` is no whole number from 1.
    """
    global _threads
    whole = None if isinstance(n, bool) or not hasattr(n, "__index__") else operator.index(n)
    if whole is None or whole < 1:
        raise ValueError(f"n = {n!r} must be a whole number from 1")
    _threads = whole


class Helpers:
    """Calls for workers: as many as there are workers for.

    `starts` hand them over, `waits` wait for those that have begun and cancel the rest: calls of compiled code, which no
    signal interrupts. `needed`: all are waited for. These have threads of their own, and may `run` calls on workers in turn.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]] = (), needed: bool = False) -> None:
        self._tasks: list[_Task] = []
        self.starts: list[Callable[[], Any]] = []
        for number, call in enumerate(calls):
            task = _Task(call)
            try:
                queue = (_apart if needed else _pool).queue(number)
            except RuntimeError:  # no more threads, from the system: those that there are do the work
                break
            self._tasks.append(task)
            self.starts.append(partial(queue.put, task))
        self.waits = [task.done.wait if needed else _cancel_or_wait(task) for task in self._tasks]

    def end(self) -> BaseException | None:
        """All are over: hold what they called no longer. What one raised."""
        for task in self._tasks:
            task.call = None
        return next((task.error for task in self._tasks if task.error is not None), None)


def _cancel_or_wait(task: _Task) -> Callable[[], Any]:
    either: tuple[Callable[[], Any], ...] = (partial(task.begun.acquire, False), task.done.wait)
    return partial(deque, map(any, (map(call_each, either),)), 0)  # the first that is true ends it; nothing, if called again


def run(call: Call, n: int) -> None:
    """Call `call(i)` for i from 0, on up to n threads; `call(0)` on this one.

    Whatever is raised in here, by a signal handler too, leaves when all calls are over.
    """
    helpers = Helpers([partial(call, number) for number in range(1, n)])
    try:
        at_once(helpers.starts)
        call(0)
    finally:
        at_once(helpers.waits)
        error = helpers.end()
    if error is not None:
        raise error
