"""Faults of first steps, each in a process of its own: forks, threads, Ctrl-C, and no llvmlite (rows 39, 40, 42, 45)."""

from __future__ import annotations

import os

import pytest
from test_faults_processes import needs_llvm, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# Optimizers in children that have not loaded LLVM, and what the eager engine makes of their weights.
START = """
import logging, os, signal, sys, tempfile, threading, time, warnings
import numpy as np, optimkit
import optimkit.engines.cpu.step

warnings.filterwarnings("ignore", ".* is multi-threaded, use of fork", DeprecationWarning)  # from Python 3.12 on: so it is

def cold():  # in a child: no kernel is kept anywhere, and nothing hangs for ever
    signal.alarm(30)
    os.environ["OPTIMKIT_CACHE_DIR"] = tempfile.mkdtemp(dir=sys.argv[1])

def make(kind, engine=None):
    w = np.linspace(-1, 1, 9, dtype=np.float32)
    return w, kind(w, lr=0.1, engine=engine)

def steps(w, opt, n=3):
    while opt.count < n:
        opt.step(np.cos(np.arange(9, dtype=np.float32)))
    return w.tobytes()

def child(work, *args):  # the exit code of what is done in a child
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work(*args) or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(99)
    return pid

def code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

rmsprop, adam = (steps(*make(kind, "eager")) for kind in (optimkit.RMSProp, optimkit.Adam))
assert "llvmlite" not in sys.modules
"""


@needs_llvm
def test_row_40_a_fork_waits_until_no_thread_compiles(tmp_path):
    done = run(START + """
def forks(delay):
    cold()
    (w, opt), (v, other) = make(optimkit.Adam), make(optimkit.RMSProp)
    thread = threading.Thread(target=steps, args=(w, opt))
    thread.start()
    time.sleep(delay)
    found = code(child(lambda: steps(v, other) != rmsprop or steps(v, other, 4) == rmsprop))
    thread.join()
    return found or (w.tobytes() != adam)

for moment in range(8):
    print(code(child(forks, 0.03 * moment)))
""", str(tmp_path))
    assert (done.stdout, done.stderr) == ("0\n" * 8, "")


@needs_llvm
def test_row_39_a_thread_steps_while_another_one_imports_llvmlite(tmp_path):
    done = run(START + """
cold()
w, opt = make(optimkit.Adam)
thread = threading.Thread(target=steps, args=(w, opt))
thread.start()
import llvmlite.binding
thread.join()
print(w.tobytes() == adam)
""", str(tmp_path))
    assert (done.stdout, done.stderr) == ("True\n", "")


@needs_llvm
def test_row_45_ctrl_c_at_any_moment_of_the_first_steps(tmp_path):
    done = run(START + """
def work():
    cold()
    w, opt = make(optimkit.Adam)
    interrupted = 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        steps(w, opt)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        interrupted = 1
    return 2 if steps(w, opt) != adam else interrupted

signal.signal(signal.SIGINT, signal.SIG_IGN)  # until a child is ready for it
begun = time.perf_counter()
assert code(child(work)) == 0
took = time.perf_counter() - begun
interrupted = 0
for moment in range(16):
    pid = child(work)
    time.sleep(took * (0.05 + moment / 18))
    os.kill(pid, signal.SIGINT)
    found = code(pid)
    interrupted += found == 1
    print(found in (0, 1) or found)
assert interrupted > 8, interrupted
""", str(tmp_path))
    assert (done.stdout, done.stderr) == ("True\n" * 16, "")


@needs_llvm
@pytest.mark.parametrize("without", ["", "sys.modules['llvmlite'] = None"])
def test_row_42_the_bits_are_the_same_without_llvmlite(without, tmp_path):
    done = run(f"{START}{without}" + """
cold()
for kind, expected in ((optimkit.Adam, adam), (optimkit.RMSProp, rmsprop), (optimkit.Adam, adam)):
    w, opt = make(kind)
    print(steps(w, opt) == expected, opt._run.warm is not None)
""", str(tmp_path))
    assert done.stdout == f"True {not without}\n" * 3
    assert done.stderr.count("RuntimeWarning: optimkit runs on NumPy alone, in slices") == bool(without)
    assert done.stderr.count("Warning") == bool(without)
