"""From texts to compiled kernels: in memory, on disk, or compiled by LLVM.

A kernel is compiled once for a rule's structure and dtype, and kept on disk as object code, bytes with a checksum.
All that calls LLVM runs on a thread of its own, to which no signal comes: Ctrl-C ends the wait for it, not the work.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeVar

from optimkit.counting import counters
from optimkit.engines import disk, threads
from optimkit.engines.protocol import KernelError

Result = TypeVar("Result")
Loops = Literal["plain", "vectorized", "unrolled"]

MOST = 256  # kernels that are kept for whoever asks next; those in use are not counted
_compiled: OrderedDict[tuple[str, int], Kernel] = OrderedDict()
_lock = threading.RLock()

if hasattr(os, "register_at_fork"):  # no child is born while LLVM is at work, whose locks nobody there would release
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

@atexit.register
def _finish() -> None:
    """Nor does the process end while it is."""
    with _lock:
        pass


class Kernel:
    """Compiled code, which is there as long as this is: `free` gives up the GIL while it runs, `held` keeps it."""

    def __init__(self, code: _Code, address: int, words: int) -> None:
        kinds = [ctypes.c_int64] * words
        self.code, self.address = code, address
        self.free: Callable[..., None] = ctypes.CFUNCTYPE(None, *kinds)(address)
        self.held: Callable[..., None] = ctypes.PYFUNCTYPE(None, *kinds)(address)


@cache
def available() -> str:
    """Why kernels can't be compiled here; empty if they can."""
    try:
        on_own_thread(_llvm)
    except ImportError as error:
        return f"llvmlite can't be imported ({error}); pip install 'optimkit[cpu]'"
    except Exception as error:  # a library that does not load, or a processor that LLVM has no target for
        return f"llvmlite does not work here: {error}"
    return ""


def compile_text(text: str, words: int = 1, loops: Loops = "plain") -> Kernel:
    """The kernel of a text: from memory, from disk, or compiled.

    Parameters
    ----------
    text : str
        Its function `kernel` is called.
    words : int
        How many words that takes.
    loops : {"plain", "vectorized", "unrolled"}
        What is made of its loops; each takes longer to compile than the one before. Vectorized where they go over elements,
        unrolled too where they reduce, which gains a tenth there (measured), and nothing elsewhere.

    Raises
    ------
    KernelError
        If it is not in the language, or LLVM refuses it; the message holds the text.
    """
    kernel = _compiled.get((text, words))
    if kernel is None:
        return on_own_thread(lambda: _find(text, words, loops))
    with contextlib.suppress(KeyError):  # it went meanwhile
        _compiled.move_to_end((text, words))
    return kernel


def on_own_thread(work: Callable[[], Result]) -> Result:
    """What `work` gives, or raises, on a thread of its own: it is not interrupted, and what it began is there afterwards."""
    found: list[Result] = []
    raised: list[BaseException] = []
    done = threading.Lock()
    done.acquire()

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            raised.append(error)
        done.release()

    try:
        threads.start(run)
    except RuntimeError:  # the system has no more threads, or the interpreter is about to end
        return work()
    done.acquire()
    if raised:
        raise raised[0]
    return found[0]


def _find(text: str, words: int, loops: Loops) -> Kernel:
    with _lock:
        kernel = _compiled.get((text, words))
        if kernel is None:
            key = disk.digest(text, _environment(), loops)
            kernel = _compiled[text, words] = Kernel(*_llvm().load(key, _object(text, key, loops)), words)
            while len(_compiled) > MOST:
                _compiled.popitem(last=False)
        return kernel


def _object(text: str, key: str, loops: Loops) -> bytes:
    """Object code from disk, or compiled, and kept there."""
    code = disk.kept(f"{key}.o")
    if code is not None:
        counters.cache_hits += 1
        return code
    from optimkit.engines.cpu.lower import lower

    disk.say_compiling()
    counters.compiles += 1
    try:
        code = _llvm().compile(lower(text), key, loops)
    except (RuntimeError, SyntaxError) as error:
        raise KernelError(f"a kernel can't be compiled: {error}\n{text}") from error
    disk.keep(f"{key}.o", code)
    return code


class _Code:
    """Memory with the code of some kernels, which goes when none of them is used any more."""

    MOST = 32

    def __init__(self, engine: Any) -> None:
        self.engine, self.count = engine, 0


class _Llvm:
    """LLVM for this processor, and the code that is loaded next."""

    def __init__(self) -> None:
        from llvmlite import binding

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        self.binding = binding
        self.processor, self.features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
        self.triple = binding.get_process_triple()
        self.machine = self._make_machine()
        self.code = self._make_code()
        self._find_libm()

    def _make_machine(self) -> Any:
        target = self.binding.Target.from_triple(self.triple)
        return target.create_target_machine(cpu=self.processor, features=self.features, opt=2, jit=True)

    def _make_code(self) -> _Code:
        return _Code(self.binding.create_mcjit_compiler(self.binding.parse_assembly(""), self._make_machine()))

    def _find_libm(self) -> None:
        """Functions of the C library that the process does not show to LLVM."""
        from optimkit.engines.cpu.language import FLOAT32, FLOAT64, LIBM, symbol

        missing = [symbol(name, kind) for name in LIBM for kind in (FLOAT32, FLOAT64)]
        missing = [name for name in missing if not self.binding.address_of_symbol(name)]
        library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None) if missing else None
        for name in missing:
            function = getattr(library, name, None) or getattr(library, "_" + name, None)  # Windows: _hypotf
            if function is not None:
                self.binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)

    def compile(self, source: str, key: str, loops: Loops) -> bytes:
        """Object code whose function is called by the key."""
        binding = self.binding
        module = binding.parse_assembly(source)
        module.triple, module.data_layout = self.triple, str(self.machine.target_data)
        module.get_function("kernel").name = _symbol(key)
        module.verify()
        options = binding.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization, options.loop_unrolling = loops != "plain", loops == "unrolled"
        options.slp_vectorization = False
        builder = binding.create_pass_builder(self.machine, options)
        builder.getModulePassManager().run(module, builder)
        return self.machine.emit_object(module)  # type: ignore[no-any-return]

    def load(self, key: str, code: bytes) -> tuple[_Code, int]:
        """Where the function of object code is, and its address."""
        if self.code.count == _Code.MOST:
            self.code = self._make_code()
        there, engine = self.code, self.code.engine
        address: int = engine.get_function_address(_symbol(key))
        if not address:
            engine.add_object_file(self.binding.ObjectFileRef.from_data(code))
            engine.finalize_object()
            address = engine.get_function_address(_symbol(key))
            there.count += 1
        return there, address


def _symbol(key: str) -> str:
    return f"optimkit_{key}"


def _llvm() -> _Llvm:
    with _lock:  # one alone: what a second one replaced would take its code along
        return _make_llvm()


@cache
def _make_llvm() -> _Llvm:
    return _Llvm()


@cache
def _environment() -> str:
    """All that object code depends on besides its text: the processor, LLVM, and how we use it."""
    import llvmlite

    llvm = _llvm()
    version = ".".join(map(str, llvm.binding.llvm_version_info))
    sources = [_source(name) for name in ("language", "assembly", "expressions", "lower", "kernels")]
    return "\n".join((llvmlite.__version__, version, llvm.triple, llvm.processor, llvm.features, *sources))


def _source(name: str) -> str:
    path = os.path.join(os.path.dirname(__file__), f"{name}.py")
    return __loader__.get_data(path).decode()  # type: ignore[name-defined,no-any-return]
