"""Faults of processes: threads, forks, missing libraries, signals, gigantic arrays (rows 39 to 46; 41: `test_faults_cache`)."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import optimkit
from optimkit import SGD, Adam, AdamW
from optimkit.engines import threads
from optimkit.engines.choose import llvm_problem
from optimkit.engines.cpu.text import JOB

needs_llvm = pytest.mark.skipif(bool(llvm_problem()), reason=llvm_problem() or "llvmlite is there")
LARGE = (1 << 20) + 3  # elements: more than one thread works on it


def ones(*shape):
    return np.ones(shape, np.float32)


def run(script, *arguments, **environment):
    """A script in a process of its own, where warnings are printed."""
    env = {**os.environ, "PYTHONWARNINGS": "always", **environment}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)


# ---- threads


@pytest.mark.parametrize("engine", ["eager", "llvm"])
def test_row_39_threads_that_step_one_optimizer_take_turns(engine):
    w = np.zeros(1000)
    opt = SGD(w, lr=1.0, momentum=1.0 - 2.0**-1, engine=engine)
    opt.step(np.zeros(1000))
    g = [np.full(1000, 2.0**-number) for number in range(4)]

    def work(number):
        for _ in range(25):
            opt.step(g[number])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert (opt.count, opt.state["0"].t) == (101, 101)
    assert (w == w[0]).all(), "no step saw half of another one"
    assert (opt.state["0"]["b"] == opt.state["0"]["b"][0]).all()


@pytest.mark.parametrize("engine", ["eager", "llvm"])
def test_row_39_optimizers_in_threads_do_not_disturb_each_other(engine):
    optimkit.set_num_threads(2)
    rng = np.random.default_rng(0)
    start, g = rng.normal(size=LARGE).astype(np.float32), rng.normal(size=LARGE).astype(np.float32)
    weights = [start.copy() for _ in range(3)]

    def train(w):
        opt = AdamW(w, engine=engine)
        for _ in range(3):
            opt.step(g)

    train(weights[0])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, weights[1:]))
    np.testing.assert_array_equal(weights[1], weights[0])
    np.testing.assert_array_equal(weights[2], weights[0])


def test_row_39_state_may_be_read_while_another_thread_steps():
    opt = Adam({"w": ones(50)})
    done = threading.Event()

    def work():
        while not done.is_set():
            opt.step({"w": ones(50)})

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(100):
            saved = opt.state_dict()
            slots = saved["state"]["w"]["slots"]
            assert (slots["m"] == slots["m"][0]).all()
            opt.lr = 0.01
            opt.set(where="w", eps=1e-7)
    finally:
        done.set()
        thread.join()
    assert saved["state"]["w"]["t"] <= opt.state["w"].t == opt.count


# ---- forks


@contextlib.contextmanager
def forks_allowed():
    """Forks beside threads: Python warns of them from 3.12 on, JAX where another test has loaded it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        yield


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("engine", ["eager", "llvm"])
def test_row_40_a_forked_child_works(engine):
    optimkit.set_num_threads(2)
    w, g = ones(LARGE), ones(LARGE)
    opt = SGD(w, lr=0.25, engine=engine)
    opt.step(g)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child():
        opt.step(g)
        other = Adam(ones(LARGE), lr=0.5, engine=engine)
        other.step(g)
        joined = threading.Event()
        threads.run(lambda number: joined.set() if number else joined.wait(30), 2)
        sender.send((float(w[-1]), float(other["0"].data[-1]), joined.is_set()))

    held, forked = threading.Event(), threading.Event()

    def hold():  # as if another thread were in a step when the process is forked
        with opt._run.lock:
            held.set()
            forked.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    process = context.Process(target=child)
    with forks_allowed():
        process.start()
    forked.set()
    holder.join()
    try:
        assert receiver.poll(60), "the child hangs"
        assert receiver.recv() == (0.5, 0.5, True)
    finally:
        process.kill()
        process.join()
    assert w[-1] == 0.75


# ---- libraries that are missing or do not work

WITHOUT = """
import sys, types
{trouble}
import numpy as np, optimkit
w = np.ones(3, np.float32)
for _ in range(2):
    for each in range(2):
        optimkit.Adam(w, lr=0.25).step(np.ones(3, np.float32))
assert np.allclose(w, 0), w
try:
    optimkit.Adam(w, engine="llvm").step(w)
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("sys.modules['llvmlite'] = None", "llvmlite can't be imported"),
        (
            "import importlib.abc, importlib.machinery\n"
            "class Refuse(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            "        if name == 'llvmlite':\n"
            "            raise OSError('Could not find/load shared object file')\n"
            "sys.meta_path.insert(0, Refuse())",
            "llvmlite does not work here: Could not find/load shared object file",
        ),
    ],
    ids=["missing", "does not load"],
)
def test_row_42_without_llvmlite_one_message_and_the_blocked_engine(trouble, message):
    done = run(WITHOUT.replace("{trouble}", trouble))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1, done.stderr
    for text in (done.stderr.replace("\n", " "), done.stdout):
        assert re.search(message, text), text
    assert "in slices" in done.stderr
    assert done.stdout.startswith("engine = 'llvm': ")


def test_row_43_cupy_without_a_driver_does_no_harm():
    script = """
import sys, types
cupy = types.ModuleType("cupy")
cupy.__version__ = "14.2.0"
class ndarray: pass
cupy.ndarray = ndarray
def fail(*args, **kwargs):
    raise RuntimeError("CUDA driver version is insufficient")
cupy.zeros = cupy.array = cupy.asarray = fail
cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=fail, CUDARuntimeError=RuntimeError))
sys.modules["cupy"] = cupy
import numpy as np, optimkit
w = np.ones(3, np.float32)
optimkit.SGD(w, lr=1.0).step(np.ones(3, np.float32))
print(w.tolist())
"""
    done = run(script)
    assert (done.stdout, done.stderr) == ("[0.0, 0.0, 0.0]\n", "")


# ---- signals


@pytest.mark.parametrize("engine", ["eager", "llvm"])
def test_row_45_after_ctrl_c_the_step_happened_or_did_not(engine):
    w = np.zeros(LARGE)
    opt = SGD(w, lr=1.0, momentum=0.5, nonfinite="raise", engine=engine)
    g = np.ones(LARGE)
    for _ in range(3):  # everything is compiled and loaded
        opt.step(g)
    interrupted = 0
    for delay in np.geomspace(1e-4, 2e-2, 12):
        timer = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])
        with contextlib.suppress(KeyboardInterrupt):
            timer.start()
            try:
                for _ in range(50):
                    opt.step(g)
            finally:
                timer.join()
            continue
        interrupted += 1
        t, b, x = 0, 0.0, 0.0
        while t < opt.state["0"].t:
            t, b = t + 1, 0.5 * b + 1
            x -= b
        assert (w == x).all()
        assert (opt.state["0"]["b"] == b).all()
        assert opt.count == t
    assert interrupted, "no step was interrupted: nothing was tested"


# ---- gigantic parameters


@needs_llvm
@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is mapped but not there")
def test_row_46_more_than_2_to_31_elements(monkeypatch):
    size = (1 << 31) + 5000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    w, g = (np.frombuffer(mmap.mmap(-1, 4 * size, flags=flags), np.float32) for _ in range(2))
    w[-3:], g[-3:] = 1, 2
    opt = SGD(w, lr=0.25, engine="llvm")
    opt.step([None])
    (bucket,) = opt._run.steps.buckets
    runner = bucket.runner
    assert runner.chunks[-1, 1] >= 1 << 31
    runner.chunks = np.ascontiguousarray(runner.chunks[-2:])  # the last ones: the others would take 16 GB
    runner.jobs[0][JOB.chunks], runner.jobs[0][JOB.n_chunks] = runner.chunks.ctypes.data, len(runner.chunks)
    opt.step([g])
    assert w[-4:].tolist() == [0, 0.5, 0.5, 0.5]
    assert w[:3].tolist() == [0, 0, 0]


# ---- numbers of threads


def test_numbers_of_threads():
    for bad in (0, -1, True, 1.5, "2", None):
        with pytest.raises(ValueError, match=r"n = .* must be a whole number from 1"):
            optimkit.set_num_threads(bad)
    optimkit.set_num_threads(np.int64(3))
    assert (optimkit.get_num_threads(), type(optimkit.get_num_threads())) == (3, int)


def test_the_default_number_of_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    monkeypatch.delenv("OPTIMKIT_NUM_THREADS", raising=False)
    assert threads.default_threads() == 3
    monkeypatch.setenv("OPTIMKIT_NUM_THREADS", "5")
    assert threads.default_threads() == 5
    monkeypatch.setenv("OPTIMKIT_NUM_THREADS", "many")
    with pytest.raises(ValueError, match=r"OPTIMKIT_NUM_THREADS = 'many' must be a whole number from 1"):
        threads.default_threads()
