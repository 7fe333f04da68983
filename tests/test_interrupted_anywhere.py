"""A step that is stopped at any line, by any exception, happened or did not; and the next one is as if nothing had been.

A tracer raises where a signal handler, or an exception that another thread raises in this one, might: at every line of the
package that a step runs through. What is found then is compared with a twin that was never stopped.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

import optimkit
from optimkit.engines.cpu import runner as cpu_runner
from optimkit.testing.backends import BACKENDS
from optimkit.transforms import ClipByGlobalNorm

PACKAGE = os.path.dirname(optimkit.__file__)
EVERY_LINE = bool(os.environ.get("OPTIMKIT_EVERY_LINE"))  # else some sixty, evenly
INTERRUPTIONS = int(os.environ.get("OPTIMKIT_INTERRUPTIONS", "30"))  # of each kind
NAMES = ["numpy-llvm", "numpy-eager", "cupy-cuda"]
SHAPES = {"a": (3, 2), "b": (5,), "c": (4,)}
DTYPES = {"a": "float32", "b": "float64", "c": "float32"}


class Stop(BaseException):
    """What no code expects."""


def stopped_at(number, function):
    """Call a function, and raise `Stop` at the line of this number; how many lines there were."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_name == "__del__":
            return None  # what is raised in __del__ goes nowhere
        if event == "line":
            seen += 1
            if seen == number:
                raise Stop
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except Stop:
        pass
    finally:
        sys.settrace(before)
    return seen


class Case:
    """An optimizer, and what is done to it."""

    def __init__(self, backend, steps, act):
        self.backend, self.act = backend, act
        self.params = {name: backend.make(np.ones(shape), DTYPES[name]) for name, shape in SHAPES.items()}
        self.grads = self.gradients()
        options = {"transforms": [ClipByGlobalNorm(1.0)], "nonfinite": "skip", "engine": backend.engine}
        self.opt = optimkit.SGD(self.params, lr=0.5, momentum=0.75, **options)
        for _ in range(steps):
            self.opt.step(self.grads)

    def gradients(self):
        values = {name: np.arange(1.0, 1 + np.prod(shape)).reshape(shape) for name, shape in SHAPES.items()}
        return {name: self.backend.make(g, DTYPES[name]) for name, g in values.items()}

    def numpy(self, x):
        return self.backend.to_numpy(x)

    def check(self, twin):
        """All agree on how many steps there were, and are where a twin is after as many."""
        count = self.opt.count
        twin.run(count)
        assert [self.opt.state[name].t for name in SHAPES] == [count] * len(SHAPES)
        for name in SHAPES:
            np.testing.assert_array_equal(self.numpy(self.params[name]), twin.weights[count][name])
            np.testing.assert_array_equal(self.numpy(self.opt.state[name]["b"]), twin.slots[count][name])
        return count


class Twin:
    """Where a case is after so many steps that nothing stops."""

    def __init__(self, backend):
        self.case = Case(backend, 0, None)
        self.weights, self.slots = [], []
        self._keep()

    def _keep(self):
        case = self.case
        self.weights.append({name: np.array(case.numpy(w)) for name, w in case.params.items()})
        self.slots.append({name: np.array(case.numpy(case.opt.state[name]["b"])) for name in SHAPES})

    def run(self, count):
        while len(self.weights) <= count:
            self.case.opt.step(self.case.gradients())
            self._keep()


def step(case):
    case.opt.step(case.grads)


def step_with_new_gradients(case):
    case.opt.step(case.gradients())


def step_and_zero(case):
    case.opt.step(case.gradients(), zero_grad=True)


def step_with_a_weight_that_was_replaced(case):
    case.params["c"] = case.params["c"].copy()
    case.opt.step(case.grads)


def step_with_weights_in_another_order(case):
    for name in ("a", "b"):
        w = case.params[name]
        case.params[name] = w.T.copy().T if name == "a" else w.copy()
    case.opt.step(case.grads)


def step_after_a_set(case):
    case.opt.set(where="a", lr=0.5)
    case.opt.step(case.grads)


def save(case):
    case.opt.state_dict()


ACTS = {
    "first": (0, step),
    "second": (1, step),
    "warm": (3, step),
    "new gradients": (3, step_with_new_gradients),
    "zeroing": (3, step_and_zero),
    "replaced": (3, step_with_a_weight_that_was_replaced),
    "another order": (3, step_with_weights_in_another_order),
    "set": (2, step_after_a_set),
    "saving": (2, save),
}


@pytest.fixture(params=NAMES)
def backend(request):
    found = BACKENDS[request.param]
    if found.available():
        pytest.skip(f"{request.param}: {found.available()}")
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ACTS)
def test_a_step_that_is_stopped_at_any_line(backend, name, threads, monkeypatch):
    if threads > 1 and "cuda" in backend.name:
        pytest.skip("threads are for the CPU")
    if threads > 1:
        monkeypatch.setattr(cpu_runner, "SMALL", 4)
    optimkit.set_num_threads(threads)
    steps, act = ACTS[name]
    twin, ends = Twin(backend), set()
    Case(backend, steps, act).act(Case(backend, steps, act))  # all is compiled
    case = Case(backend, steps, act)
    lines = stopped_at(0, lambda: act(case))
    ends.add(case.check(twin) - steps)
    for number in range(1, lines + 1, 1 if EVERY_LINE else max(1, lines // 40)):
        case = Case(backend, steps, act)
        stopped_at(number, lambda case=case: act(case))
        count = case.check(twin)
        ends.add(count - steps)
        for _ in range(2):
            case.opt.step(case.gradients())
            case.check(twin)
        assert case.opt.count == count + 2
    assert ends == ({0} if act is save else {0, 1})


# ---- real interrupts, at any time


def by_signal(number):
    return lambda: signal.pthread_kill(threading.main_thread().ident, number)


def by_exception():
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.main_thread().ident), ctypes.py_object(Stop))


INTERRUPTS = {"SIGINT": by_signal(signal.SIGINT), "SIGTERM": by_signal(signal.SIGTERM), "another thread": by_exception}
if hasattr(signal, "SIGALRM"):
    INTERRUPTS["SIGALRM"] = by_signal(signal.SIGALRM)


@pytest.fixture
def raising_handlers():
    """Handlers that raise, as time limits have them."""

    def stop(*args):
        raise Stop

    before = {number: signal.signal(number, stop) for number in signal.Signals if number.name in INTERRUPTS}
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signals to threads")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", INTERRUPTS)
def test_real_interrupts_at_any_time(backend, kind, threads, raising_handlers, monkeypatch):
    if threads > 1 and "cuda" in backend.name:
        pytest.skip("threads are for the CPU")
    if threads > 1:
        monkeypatch.setattr(cpu_runner, "SMALL", 4)
    optimkit.set_num_threads(threads)
    random, twin, stopped = np.random.default_rng(threads), Twin(backend), 0
    case = Case(backend, 0, step)
    for _, act in ACTS.values():  # an import that is interrupted leaves its file open, and pytest says so
        act(case)
    case = Case(backend, 0, step)
    for attempt in range(INTERRUPTIONS):
        if attempt % 10 == 0:
            case = Case(backend, int(random.integers(3)), step)
        acts = [ACTS[name][1] for name in random.choice(list(ACTS), 3)]
        delay, kill = float(random.uniform(0, 3e-3)), INTERRUPTS[kind]
        timer = threading.Thread(target=lambda delay=delay, kill=kill: (time.sleep(delay), kill()))
        try:
            timer.start()
            for _ in range(200):
                for act in acts:
                    act(case)
                if case.opt.count > 400:
                    break
            timer.join()
            time.sleep(0.01)
        except Stop:
            stopped += 1
        case.check(twin)
        if kind != "another thread":
            assert signal.getsignal(getattr(signal, kind)) is raising_handlers
        if case.opt.count > 300:
            case = Case(backend, int(random.integers(3)), step)
    assert stopped > INTERRUPTIONS // 3, "hardly a step was interrupted: nothing was tested"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer that sends a signal")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_that_saves_sees_whole_steps(backend, threads, monkeypatch):
    """As batch systems have it: a signal, some time before the end, upon which a checkpoint is written."""
    if threads > 1 and "cuda" in backend.name:
        pytest.skip("threads are for the CPU")
    if threads > 1:
        monkeypatch.setattr(cpu_runner, "SMALL", 4)
    optimkit.set_num_threads(threads)
    case, twin, seen = Case(backend, 0, step), Twin(backend), []

    def save(*args):
        saved = case.opt.state_dict()
        saved["weights"] = {name: np.array(case.numpy(w)) for name, w in case.params.items()}
        seen.append(saved)

    before = signal.signal(signal.SIGALRM, save)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-3, 2e-3)
        while len(seen) < INTERRUPTIONS and case.opt.count < 3000:
            step_with_new_gradients(case)
            if case.opt.count % 7 == 0:
                step_with_a_weight_that_was_replaced(case)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) > 5
    for saved in seen:
        twin.run(saved["count"])
        for name, own in saved["state"].items():
            assert own["t"] == saved["count"]
            np.testing.assert_array_equal(case.numpy(own["slots"]["b"]), twin.slots[saved["count"]][name])
            np.testing.assert_array_equal(saved["weights"][name], twin.weights[saved["count"]][name])


# ---- what changes an optimizer, stopped at any line


def observed(opt):
    """What a user sees of an optimizer."""
    counts = {name: (opt.state[name].t, np.array(opt.state[name]["m"]).tolist()) for name in opt.names}
    return opt.names, opt.lr, opt.betas, opt.amsgrad, [entry.frozen for entry in opt._run.entries], counts, opt.count


MUTATORS = {
    "lr": lambda opt, params: setattr(opt, "lr", 0.3),
    "a list of rates": lambda opt, params: setattr(opt, "lr", [0.3, 0.4]),
    "scale_lr": lambda opt, params: opt.scale_lr(0.5),
    "set": lambda opt, params: opt.set(where="a", lr=0.3, betas=(0.5, 0.6)),
    "structure": lambda opt, params: setattr(opt, "amsgrad", True),
    "structure of some": lambda opt, params: opt.set(where="c", amsgrad=True),
    "freeze": lambda opt, params: opt.freeze("[ab]"),
    "add": lambda opt, params: opt.add({"d": np.ones(3)}, lr=0.7),
    "add what stands there": lambda opt, params: (params.__setitem__("e", np.ones(2)), opt.add(params)),
    "remove": lambda opt, params: opt.remove("a"),
    "reset": lambda opt, params: opt.reset("[ab]"),
}


def make_optimizer():
    params = {"a": np.ones(4), "b": np.ones((2, 3), np.float32), "c": np.ones(2)}
    opt = optimkit.Adam(params, lr=0.1)
    opt.set(where="b", lr=0.2)
    optimkit.lr_scheduler.ExponentialLR(opt, 0.5).step()
    for _ in range(3):
        opt.step({name: np.ones_like(w) for name, w in params.items()})
    return params, opt


@pytest.mark.parametrize("name", MUTATORS)
def test_a_change_that_is_stopped_at_any_line_is_made_or_not(name):
    act = MUTATORS[name]
    params, opt = make_optimizer()
    before = observed(opt)
    act(opt, params)
    after = observed(opt)
    assert before != after
    params, opt = make_optimizer()
    lines, seen = stopped_at(0, lambda: act(opt, params)), set()
    for number in range(1, lines + 1):
        params, opt = make_optimizer()
        stopped_at(number, lambda opt=opt, params=params: act(opt, params))
        found = observed(opt)
        assert found in (before, after), number
        seen.add(found == after)
        if "e" in params and "e" not in opt.names:
            del params["e"]
        if "a" not in opt.names:
            params.pop("a", None)
        twin_params, twin = make_optimizer()
        if found == after:
            act(twin, twin_params)
        for each in (opt, twin):
            for _ in range(2):
                each.step({key: np.ones_like(each[key].data) for key in each.names})
        assert observed(opt) == observed(twin), number
    assert seen == {True, False}
