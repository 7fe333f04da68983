"""Kernels from text to code: what LLVM may make of them, where they are kept, and what happens when one can't be compiled."""

from __future__ import annotations

import _thread
import ast
import functools
import gc
import hashlib
import logging
import platform
import re
import signal
import sys
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

import llvmlite
import numpy as np
import pytest
from test_language import DTYPES, call

import optimkit
from optimkit import SGD, Adam
from optimkit.arrays import DTYPES as RECORDS
from optimkit.driver.explain import plan_alone
from optimkit.engines import disk
from optimkit.engines.choose import llvm_problem
from optimkit.engines.cpu import kernels, language, rows
from optimkit.engines.cpu import text as texts
from optimkit.engines.cpu.lower import lower
from optimkit.engines.protocol import KernelError
from optimkit.transforms import ClipByValue

pytestmark = pytest.mark.skipif(bool(llvm_problem()), reason=llvm_problem() or "llvmlite is there")
TEXT = "from optimkit.engines.cpu.language import store_int64\n\ndef kernel(out):\n    store_int64(out, 0, {})\n"


# ---- what LLVM may make of them


def test_instructions_carry_no_leave_to_reorder(monkeypatch):
    text = texts.kernel_text(plan_alone(Adam()._run.chain(), "float32"), 0, RECORDS["float32"])
    lines = [line for line in lower(text).splitlines() if " = f" in line]
    assert len(lines) > 10
    flags = {"fast", "contract", "reassoc", "nnan", "ninf", "nsz", "arcp", "afn"}
    assert not [line for line in lines if flags & {*line.split()}]
    llvm = kernels._llvm()
    monkeypatch.setattr(llvm.machine, "emit_object", llvm.machine.emit_assembly)
    code = llvm.compile(lower(text), "shown", "vectorized")
    assert platform.machine() != "x86_64" or "mulps" in code, "four or more at a time"
    assert not [line for line in code.splitlines() if line.strip().startswith(("vfm", "vfnm", "fmadd", "fmla", "fmls"))]


UPDATE = """
def kernel(w, g, m, n):
    for i in range(n):
        x, y, z = load_real(w, i), load_real(g, i), load_real(m, i)
        z = real(0.9) * z + real(0.1) * y
        store_real(m, i, z)
        store_real(w, i, x - real(0.01) * z / (sqrt(z * z) + real(1e-3) if y > x else abs(z) + real(0.5)))
"""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loops", ["vectorized", "unrolled"])
def test_vectorized_loops_of_every_length(dtype, loops):
    rng, text = np.random.default_rng(1), UPDATE.replace("real", dtype)
    real = np.dtype(dtype).type
    for n in range(71):
        w, g, m = (rng.normal(size=n + 3).astype(dtype) for _ in range(3))
        z = real(0.9) * m[:n] + real(0.1) * g[:n]
        below = np.where(g[:n] > w[:n], np.sqrt(z * z) + real(1e-3), abs(z) + real(0.5))
        expected = [np.append(new, old[n:]) for new, old in ((w[:n] - real(0.01) * z / below, w), (z, m))]
        call(text, w, g, m, n, loops=loops)
        assert [w.tobytes(), m.tobytes()] == [each.tobytes() for each in expected], n


# ---- the folder of kernels


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """As in a process that has just started, with an empty folder."""
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path / "cache"))
    forget(monkeypatch)
    return tmp_path / "cache"


def forget(monkeypatch):
    monkeypatch.setattr(kernels, "_compiled", OrderedDict())


def counts():
    return optimkit.counters.compiles, optimkit.counters.cache_hits


def value_of(kernel):
    out = np.zeros(1, np.int64)
    kernel.held(out.ctypes.data)
    return int(out[0])


class Asked(Exception):
    pass


def key_of(text, loops="plain"):
    """Under which name the code of a kernel is looked for."""

    def ask(text, key, loops):
        raise Asked(key)

    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        patch.setattr(kernels, "_object", ask)
        patch.setattr(kernels, "_environment", kernels._environment.__wrapped__)
        with pytest.raises(Asked) as told:
            kernels.compile_text(text, loops=loops)
    return told.value.args[0]


def altered_source(name):
    def alter(patch):
        source = kernels._source
        patch.setattr(kernels, "_source", lambda each: source(each) + "#" * (each == name))

    return alter


SOURCES = ("language", "assembly", "expressions", "lower", "kernels")
CHANGES = {
    "the processor": lambda patch: patch.setattr(kernels._llvm(), "processor", "i486"),
    "its features": lambda patch: patch.setattr(kernels._llvm(), "features", "+sse2"),
    "the system": lambda patch: patch.setattr(kernels._llvm(), "triple", "m68k-unknown-amiga"),
    "LLVM": lambda patch: patch.setattr(kernels._llvm().binding, "llvm_version_info", (1, 2, 3)),
    "llvmlite": lambda patch: patch.setattr(llvmlite, "__version__", "0.0"),
    **{name: altered_source(name) for name in SOURCES},
}


@pytest.mark.parametrize("what", CHANGES)
def test_code_is_not_found_where_something_else_would_have_made_it(what, monkeypatch):
    before = key_of(TEXT)
    CHANGES[what](monkeypatch)
    assert key_of(TEXT) != before
    monkeypatch.undo()
    assert key_of(TEXT) == before


def test_each_text_has_a_code_of_its_own_for_each_way_of_its_loops():
    keys = [key_of(TEXT + end, loops) for end in ("", "\n", "#") for loops in ("plain", "vectorized", "unrolled")]
    assert len({*keys}) == 9
    assert all(re.fullmatch("[0-9a-f]{24}", key) for key in keys)


def test_the_key_knows_all_sources_that_make_code():
    folder, imported = Path(kernels.__file__).parent, set()
    for name in SOURCES:
        nodes = list(ast.walk(ast.parse((folder / f"{name}.py").read_text())))
        found = [f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
        imported |= {each.split(".")[3] for each in found if each.startswith("optimkit.engines.cpu.")}
    assert imported <= {*SOURCES}


def test_code_is_kept_as_bytes_with_a_checksum_and_never_unpickled(cold):
    kernels.compile_text(TEXT.format(7))
    (path,) = cold.iterdir()
    checksum, code = path.read_bytes()[:32], path.read_bytes()[32:]
    assert path.name == key_of(TEXT.format(7)) + ".o"
    assert checksum == hashlib.sha256(path.name.encode() + b"\0" + code).digest()
    assert sys.platform != "linux" or code.startswith(b"\x7fELF")
    for source in [*Path(kernels.__file__).parent.glob("*.py"), Path(disk.__file__)]:
        assert not re.search(r"\b(pickle|marshal|shelve|dill|exec|eval)\b", source.read_text()), source.name


DAMAGES = {
    "empty": lambda mine, other: b"",
    "truncated": lambda mine, other: mine[:-1],
    "only a checksum": lambda mine, other: mine[:32],
    "a bit": lambda mine, other: mine[:200] + bytes([mine[200] ^ 4]) + mine[201:],
    "another kernel": lambda mine, other: other,
    "another kernel's code": lambda mine, other: mine[:32] + other[32:],
    "no kernel": lambda mine, other: b"\x80\x04K\x01." * 99,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_what_was_kept_is_made_anew(damage, cold, monkeypatch):
    assert [value_of(kernels.compile_text(TEXT.format(value))) for value in (7, 8)] == [7, 8]
    path, other = (cold / f"{key_of(TEXT.format(value))}.o" for value in (7, 8))
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole, other.read_bytes()))
    forget(monkeypatch)
    compiles, hits = counts()
    assert value_of(kernels.compile_text(TEXT.format(7))) == 7
    assert counts() == (compiles + 1, hits)
    assert path.read_bytes() == whole
    forget(monkeypatch)
    assert value_of(kernels.compile_text(TEXT.format(7))) == 7
    assert counts() == (compiles + 1, hits + 1)


def test_the_same_text_is_one_kernel_for_all_threads(cold):
    before, found = optimkit.counters.compiles, []
    workers = [threading.Thread(target=lambda: found.append(kernels.compile_text(TEXT.format(3)))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({*map(id, found)}) == 1
    assert len(found) == 4
    assert optimkit.counters.compiles == before + 1


def test_the_first_compile_of_a_process_is_a_line_of_the_logger(cold, monkeypatch, caplog):
    for k, end in enumerate((f"once: they are kept in {cold}", None, "in every process: they can't be kept")):
        disk.say_compiling.cache_clear()
        forget(monkeypatch)
        if k == 2:
            monkeypatch.setattr(disk, "folder", lambda: None)
        with caplog.at_level(logging.INFO, "optimkit"):
            kernels.compile_text(TEXT.format(1))
            kernels.compile_text(TEXT.format(2))
        lines = [f"{logger}, {logging.getLevelName(level)}: {line}" for logger, level, line in caplog.record_tuples]
        start = "optimkit, INFO: compiling kernels, which takes some tenths of a second for each rule and dtype, "
        assert lines == ([start + end] if end else []), "what is found in the folder is not compiled"
        caplog.clear()


# ---- the thread that compiles


def test_llvm_is_loaded_once_whoever_asks_at_the_same_time(monkeypatch):
    made, begun = [], threading.Barrier(4)

    def make():
        made.append(threading.current_thread())
        threading.Event().wait(0.05)
        return len(made)

    monkeypatch.setattr(kernels, "_make_llvm", functools.cache(make))
    found = []
    workers = [threading.Thread(target=lambda: (begun.wait(), found.append(kernels._llvm()))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (found, len(made)) == ([1] * 4, 1)


def thread_of_compile(monkeypatch, text):
    found, make = [], kernels._object
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_object", lambda *args: (found.append(threading.current_thread()), make(*args))[1])
        assert value_of(kernels.compile_text(text)) == 5
    return found


def test_compiles_are_on_a_thread_of_their_own_where_there_is_one(cold, monkeypatch):
    (thread,) = thread_of_compile(monkeypatch, TEXT.format(5))
    assert thread is not threading.current_thread()

    def refuse(function, args):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    assert thread_of_compile(monkeypatch, TEXT.format("2 + 3")) == [threading.current_thread()]
    w = np.ones(3, np.float32)
    opt = SGD(w, lr=0.25, momentum=0.5)
    for _ in range(2):
        opt.step(np.ones(3, np.float32))
    assert w.tolist() == [0.375] * 3


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signal to a thread")
def test_ctrl_c_ends_the_wait_for_a_compile_and_not_the_compile(cold, monkeypatch):
    make, interrupted, before = kernels._object, threading.Event(), optimkit.counters.compiles

    def make_slowly(*args):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert interrupted.wait(30)
        return make(*args)

    monkeypatch.setattr(kernels, "_object", make_slowly)
    with pytest.raises(KeyboardInterrupt):
        kernels.compile_text(TEXT.format(5))
    monkeypatch.setattr(kernels, "_object", make)
    interrupted.set()
    assert value_of(kernels.compile_text(TEXT.format(5))) == 5
    assert optimkit.counters.compiles == before + 1


# ---- kernels that can't be compiled


def break_an_operation(patch):
    patch.setitem(texts.TABLE, "sqrt", "root({0})")
    return r"there is no function root of 1 arguments, in line \d+: .*\n# Adam, float"


def break_a_function(patch):
    patch.setitem(language.FUNCTIONS, "sqrt", language.Function(1, lambda code, given: code.emit(given[0].kind, "root")))
    return r"LLVM IR parsing error(.|\n)*\n# Adam, float"


def break_the_rows(patch):
    patch.setitem(rows.HOST, "multiply", "product({0}, {1})")
    return "there is no function product of 2 arguments"


def break_llvm(patch):
    def fail(module):
        raise RuntimeError("no registers are left")

    patch.setattr(kernels._llvm().machine, "emit_object", fail)
    return "no registers are left"


def renew_texts():
    texts.kernel_text.cache_clear()
    rows.rows_text.cache_clear()


@pytest.mark.parametrize(
    ("trouble", "steps"),
    [(break_an_operation, 0), (break_a_function, 0), (break_llvm, 0), (break_the_rows, 1), (break_llvm, 1)],
)
def test_a_step_whose_kernel_cannot_be_compiled_writes_nothing_and_can_be_repeated(trouble, steps, cold, monkeypatch):
    one, two = ({"a": np.ones((3, 2), np.float64), "b": np.ones(5, np.float32)} for _ in range(2))
    grads = {"a": np.full((3, 2), 0.5), "b": np.full(5, -2.0, np.float32)}
    opt, plain = Adam(one, lr=0.1), Adam(two, lr=0.1, engine="eager")
    for _ in range(steps):
        opt.step(grads)
        plain.step(grads)
    forget(monkeypatch)
    renew_texts()
    with monkeypatch.context() as patch:
        message = trouble(patch)
        for _ in range(2):
            with pytest.raises(KernelError, match=message):
                opt.step(grads)
    renew_texts()
    assert opt.count == steps
    for _ in range(3):
        assert [one[name].tobytes() for name in one] == [two[name].tobytes() for name in two]
        assert [opt.state[name].t for name in one] == [plain.state[name].t for name in one]
        opt.step(grads)
        plain.step(grads)
    assert opt._run.warm is not None


def test_kernels_that_nobody_uses_go_the_least_recently_used_first(cold, monkeypatch):
    """A constant that is structure, another one in each step: neither memory nor the folder grows for ever."""
    monkeypatch.setattr(kernels, "MOST", 8)
    monkeypatch.setattr(kernels._Code, "MOST", 3)
    monkeypatch.setattr(kernels._llvm(), "code", kernels._llvm()._make_code())
    used = kernels.compile_text(TEXT.format(1000))
    codes, asked = weakref.WeakSet(), [TEXT.format(1001 + k) for k in range(40)]
    for text in asked:
        kernel = kernels.compile_text(text)
        codes.add(kernel.code)
        kernels.compile_text(asked[0])  # asked for again and again
        del kernel
    gc.collect()
    assert len(kernels._compiled) == 8
    assert {text for text, _ in kernels._compiled} == {asked[0], *asked[-7:]}
    assert len(codes) <= 5, "the memory of the others was given back"
    assert run_kernel(used) == 1000, "what is used stays"
    before = optimkit.counters.compiles
    assert run_kernel(kernels.compile_text(asked[5])) == 1006
    assert optimkit.counters.compiles == before, "it comes back from the folder"


def run_kernel(kernel):
    job = np.zeros(1, np.int64)
    kernel.held(job.ctypes.data)
    return int(job[0])


def test_optimizers_keep_their_kernels_when_others_push_them_out(cold, monkeypatch):
    monkeypatch.setattr(kernels, "MOST", 2)
    monkeypatch.setattr(kernels._Code, "MOST", 1)
    weights, optimizers = [], []
    for k in range(12):
        weights.append({"a": np.ones((4, 3))[::-1, ::-1], "b": np.ones(5, np.float32)})
        optimizers.append(SGD(weights[-1], lr=0.5, transforms=[ClipByValue(1.0)] * (k % 4)))
        for opt in optimizers:
            opt.step({"a": np.ones((4, 3)), "b": np.ones(5)})  # gradients of the other dtype are copied by kernels of their own
        gc.collect()
    for k, w in enumerate(weights):
        steps = 12 - k
        assert np.all(w["a"] == 1 - 0.5 * steps)
        assert np.all(w["b"] == 1 - 0.5 * steps)
