"""The thread pool: workers that join a call, and never delay it.

`run(call, n)` calls `call(0)` here and `call(1) .. call(n - 1)` on workers, and returns when all
that have begun are done. A worker that has not begun by then never will: the calls share their
work by an atomic counter, so nothing waits for a thread that wakes up late.

The pool is made at first use and dropped after a fork.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

Call = Callable[[int], None]


class _Task:
    """One call for one worker: `begun` is taken by the worker, or by the caller to cancel.

    `call` is dropped before the caller goes on: nothing that it holds is kept by a worker that waits.
    """

    __slots__ = ("begun", "call", "done", "error", "finished", "number")

    def __init__(self, call: Call, number: int) -> None:
        self.call: Call | None = call
        self.number = number
        self.begun, self.done = threading.Lock(), threading.Lock()
        self.done.acquire()
        self.error: BaseException | None = None
        self.finished = False


class _Pool:
    def __init__(self) -> None:
        self.queues: list[SimpleQueue[_Task]] = []
        self.lock = threading.Lock()

    def queue(self, number: int) -> SimpleQueue[_Task]:
        with self.lock:
            while len(self.queues) <= number:
                queue: SimpleQueue[_Task] = SimpleQueue()
                threading.Thread(target=_work, args=(queue,), name="optimkit", daemon=True).start()
                self.queues.append(queue)
        return self.queues[number]


def _work(queue: SimpleQueue[_Task]) -> None:
    while True:
        _do(queue.get())


def _do(task: _Task) -> None:
    if task.begun.acquire(blocking=False):
        try:
            assert task.call is not None
            task.call(task.number)
        except BaseException as error:
            task.error = error
    task.call, task.finished = None, True
    task.done.release()


_pool = _Pool()


def _forget() -> None:
    global _pool
    _pool = _Pool()


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


def run(call: Call, n: int) -> None:
    """Call `call(i)` for i from 0, on up to n threads; `call(0)` on this one.

    Whatever is raised in here, by a signal handler too, leaves when all calls are done.
    """
    tasks = []
    for number in range(1, n):
        task = _Task(call, number)
        try:
            _pool.queue(number - 1).put(task)
        except RuntimeError:  # no more threads, from the system: those that there are do the work
            break
        tasks.append(task)
    error: BaseException | None = None
    try:
        call(0)
    finally:
        for task in tasks:
            error = _wait(task) or error
    if error is not None:
        raise error


def _wait(task: _Task) -> BaseException | None:
    """Wait until a call is done, or cancel it; what it, or a signal handler meanwhile, raised."""
    error: BaseException | None = None
    while not task.finished:
        try:
            if task.begun.acquire(blocking=False):
                task.call = None
                break
            task.done.acquire()
        except BaseException as raised:
            error = raised
    return error or task.error
