"""A step happened or it did not, whatever interrupts it; and workers are never left at work (faults 39, 45)."""

from __future__ import annotations

import _thread
import ctypes
import signal
import sys
import threading
import time
from collections import deque
from functools import partial
from itertools import chain, count
from operator import call

import numpy as np
import pytest

from optimkit import Adam, AdamW
from optimkit.engines import threads
from optimkit.engines.cpu import kernels
from optimkit.transforms import ClipByGlobalNorm

ENGINES = ["llvm", "eager"]


def weights():
    return {"a": np.ones((3, 2), np.float32), "b": np.ones(5, np.float64)}  # two buckets


def gradients():
    return {"a": np.full((3, 2), 0.5, np.float32), "b": np.full(5, -2.0)}


def interrupted(function):
    """`function`, with Ctrl-C pressed as it begins."""

    def call(*args):
        signal.raise_signal(signal.SIGINT)
        return function(*args)

    return call


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["prepare", "reduce", "commit"])
@pytest.mark.parametrize("place", [0, 1])
def test_ctrl_c_before_the_commit_leaves_everything_as_it_was(engine, method, place, monkeypatch):
    one, two = weights(), weights()
    opt, plain = (AdamW(w, transforms=[ClipByGlobalNorm(1.0)], engine=engine) for w in (one, two))
    for each in (opt, plain):
        each.step(gradients())
    handler = signal.getsignal(signal.SIGINT)
    runner = opt._run.steps.buckets[place].runner
    # what looks new makes the step one that is not warm
    grads = {name: np.repeat(g, 2, axis=-1)[..., ::2] for name, g in gradients().items()}
    with monkeypatch.context() as patch:
        patch.setattr(runner, method, interrupted(getattr(runner, method)))
        with pytest.raises(KeyboardInterrupt):
            opt.step(grads, zero_grad=True)
    assert all(g.all() for g in grads.values())
    assert signal.getsignal(signal.SIGINT) is handler
    for _ in range(3):
        np.testing.assert_array_equal(one["a"], two["a"])
        np.testing.assert_array_equal(one["b"], two["b"])
        assert opt.count == plain.count
        assert [opt.state[name].t for name in "ab"] == [plain.state[name].t for name in "ab"]
        for each in (opt, plain):
            each.step(gradients())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer that sends a signal")
@pytest.mark.parametrize("make", [Adam, lambda w: AdamW(w, transforms=[ClipByGlobalNorm(1.0)])], ids=["Adam", "clipped"])
def test_an_interrupt_anywhere_in_a_warm_step_leaves_it_whole_or_untaken(make):
    class Alarm(Exception):
        pass

    def ring(*args):
        raise Alarm

    one, two = weights(), weights()
    opt, plain, grads = make(one), make(two), gradients()
    for _ in range(3):
        opt.step(grads)
    before, rang = signal.signal(signal.SIGALRM, ring), 0
    try:
        for attempt in range(400):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + attempt % 80))
                for _ in range(10):
                    opt.step(grads)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                rang += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rang > 100, "no step was interrupted: nothing was tested"
    for _ in range(opt.count):
        plain.step(grads)
    assert [opt.state[name].t for name in "ab"] == [opt.count] * 2
    for name in "ab":
        assert one[name].tobytes() == two[name].tobytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_before_the_first_pass_leaves_everything_as_it_was(engine):
    one, two = weights(), weights()
    opt, plain = (Adam(w, lr=1e-3, engine=engine) for w in (one, two))
    for each in (opt, plain):
        each.step(gradients())
    opt.lr = interrupted(lambda t: 1e-3)
    with pytest.raises(KeyboardInterrupt):
        opt.step(gradients())
    assert opt.count == 1
    with pytest.warns(RuntimeWarning, match="replaced by a number"):
        opt.lr = 1e-3
    for each in (opt, plain):
        each.step(gradients())
    np.testing.assert_array_equal(one["a"], two["a"])
    np.testing.assert_array_equal(one["b"], two["b"])


@pytest.fixture
def hasty():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_two_threads_that_step_one_optimizer_take_turns(hasty):
    one, two = weights(), weights()
    opt, plain = Adam(one), Adam(two)
    workers = [threading.Thread(target=lambda: [opt.step(gradients()) for _ in range(50)]) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for _ in range(100):
        plain.step(gradients())
    np.testing.assert_array_equal(one["a"], two["a"])
    assert opt.count == 100


def test_what_is_raised_leaves_when_all_workers_are_done():
    begun, release, done = threading.Event(), threading.Event(), []

    def call(number):
        if number:
            begun.set()
            release.wait()
            done.append(number)
            return
        begun.wait()
        threading.Timer(0.05, release.set).start()
        raise ValueError("from here")

    with pytest.raises(ValueError, match="from here"):
        threads.run(call, 2)
    assert done == [1]


def test_a_signal_while_waiting_for_workers_is_raised_when_they_are_done():
    begun, done = threading.Event(), []

    def call(number):
        if number:
            begun.set()
            time.sleep(0.05)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.05)
            done.append(number)
        else:
            begun.wait()

    with pytest.raises(KeyboardInterrupt):
        threads.run(call, 2)
    assert done == [1]


def test_an_error_of_a_worker_is_raised_here():
    begun = threading.Event()

    def call(number):
        if number:
            begun.set()
            raise ValueError("from a worker")
        begun.wait()

    with pytest.raises(ValueError, match="from a worker"):
        threads.run(call, 2)


def test_without_another_thread_the_work_is_done_here(monkeypatch):
    def refuse(function, args):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_pool", threads._Pool())
    monkeypatch.setattr(threads, "_apart", threads._Pool())
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    found = []
    threads.run(found.append, 4)
    assert found == [0]
    w = np.ones(3)
    Adam(w, lr=0.1, engine="eager").step(np.ones(3))
    assert w[0] == pytest.approx(0.9)


def test_an_exception_that_hits_a_new_thread_comes_back(monkeypatch):
    """One meant for a thread can hit the one that it is about to start: CPython tells them apart when that runs."""
    real, done = _thread.start_new_thread, threading.Event()
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    raise_in.argtypes = [ctypes.c_ulong, ctypes.py_object]

    class Stop(BaseException):
        pass

    def hit(function, args):
        """Start a thread in which an exception is pending before its first line."""
        pending = map(raise_in, map(call, (_thread.get_ident,)), (Stop,))
        return real(deque, (chain(pending, map(function, *((arg,) for arg in args))), 0))

    monkeypatch.setattr(_thread, "start_new_thread", hit)
    monkeypatch.setattr(threads, "_apart", threads._Pool())
    w = np.ones(3)
    step = partial(Adam(w, lr=0.1, engine="eager").step, np.ones(3))
    for act in (lambda: threads.start(done.set), lambda: kernels.on_own_thread(lambda: 5), step):
        with pytest.raises(Stop):
            deque((act() if n == 0 else time.sleep(0.001) for n in count()), 0)
    assert done.wait(10)
    assert w[0] in (1.0, pytest.approx(0.9))
