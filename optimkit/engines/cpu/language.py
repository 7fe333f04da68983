"""The functions that kernel texts may call, and what each compiles to.

A kernel is a text in a small part of Python, which `lower` turns into LLVM's language:

    from optimkit.engines.cpu.language import load_float32 as load, store_float32 as store

    SIZE = 0

    def kernel(job):
        for i in range(n): store(address, i, load(address, i) * k)

Values are bool, int64, float32 and float64, as in C: an operation on two kinds takes place in the wider one, a literal
such as `2.0` is float64, and nothing else is converted unasked. `//` and `%` are for numbers that are not negative.
`a if c else b` computes both values: a division or a load must be right in the one that is not taken, too.
Every function here becomes a few instructions; those named in `LIBM` are calls of the C library.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

BOOL, INT64, FLOAT32, FLOAT64 = "i1", "i64", "float", "double"  # LLVM's names, from narrow to wide
WIDENING = (BOOL, INT64, FLOAT32, FLOAT64)
KINDS = {"int64": INT64, "float32": FLOAT32, "float64": FLOAT64}
BYTES = {INT64: 8, FLOAT32: 4, FLOAT64: 8}
LIBM = ("exp", "expm1", "log", "log1p", "tanh", "hypot", "pow")


class NotInLanguage(SyntaxError):
    """A text uses what the language of kernels does not have, or values whose kinds do not fit."""


class Value(NamedTuple):
    """A value in a function: its kind, and the register or literal that it is."""

    kind: str
    text: str


class Code(Protocol):
    """What takes instructions: a function that is being lowered."""

    def emit(self, kind: str, instruction: str) -> Value:
        """An instruction with a result."""

    def do(self, instruction: str) -> None:
        """An instruction without one."""

    def declare(self, declaration: str) -> None:
        """Name a function that is defined elsewhere."""

    def convert(self, value: Value, kind: str, always: bool = False) -> Value:
        """A value as one of another kind; narrowing has to be asked for."""


Emitter = Callable[[Code, Sequence[Value]], Value | None]


class Function(NamedTuple):
    """A function of the language: how many arguments it takes (None for any number), and what it compiles to."""

    arguments: int | None
    emit: Emitter


def literal(value: bool | int | float, kind: str | None = None) -> Value:
    """A constant; floats are float64 unless said otherwise, to the bit."""
    if isinstance(value, bool):
        return Value(BOOL, str(value).lower())
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise NotInLanguage(f"{value} is no number of 64 bits")
        return Value(INT64, str(value))
    bits = struct.unpack("<Q", struct.pack("<d", value))[0]
    return Value(kind or FLOAT64, f"0x{bits:016x}")


def is_float(kind: str) -> bool:
    return kind in (FLOAT32, FLOAT64)


def _pointer(code: Code, kind: str, address: Value, index: Value) -> Value:
    base = code.emit("ptr", f"inttoptr i64 {code.convert(address, INT64).text} to ptr")
    return code.emit("ptr", f"getelementptr {kind}, ptr {base.text}, i64 {code.convert(index, INT64).text}")


def _load(kind: str) -> Function:
    def emit(code: Code, given: Sequence[Value]) -> Value:
        pointer = _pointer(code, kind, *given)
        return code.emit(kind, f"load {kind}, ptr {pointer.text}, align {BYTES[kind]}")

    return Function(2, emit)


def _store(kind: str) -> Function:
    def emit(code: Code, given: Sequence[Value]) -> None:
        address, index, value = given
        value = code.convert(value, kind)
        pointer = _pointer(code, kind, address, index)
        code.do(f"store {kind} {value.text}, ptr {pointer.text}, align {BYTES[kind]}")

    return Function(3, emit)


def _cast(kind: str) -> Function:
    return Function(1, lambda code, given: code.convert(given[0], kind, always=True))


def _claim(code: Code, given: Sequence[Value]) -> Value:
    """Add to the counter at an address; its value before. Safe between threads."""
    address, step = (code.convert(value, INT64) for value in given)
    pointer = code.emit("ptr", f"inttoptr i64 {address.text} to ptr")
    return code.emit(INT64, f"atomicrmw add ptr {pointer.text}, i64 {step.text} acq_rel")


def _call(code: Code, given: Sequence[Value]) -> None:
    """Call the compiled kernel at an address, with words."""
    if not given:
        raise NotInLanguage("call is told the address of a kernel")
    address, *words = (code.convert(value, INT64).text for value in given)
    function = code.emit("ptr", f"inttoptr i64 {address} to ptr")
    code.do(f"call void {function.text}({', '.join(f'i64 {word}' for word in words)})")


def _intrinsic(name: str) -> Function:
    """An operation of LLVM on a float, exact or correctly rounded."""

    def emit(code: Code, given: Sequence[Value]) -> Value:
        value = given[0] if is_float(given[0].kind) else code.convert(given[0], FLOAT64)
        width = {FLOAT32: "f32", FLOAT64: "f64"}[value.kind]
        code.declare(f"declare {value.kind} @llvm.{name}.{width}({value.kind})")
        return code.emit(value.kind, f"call {value.kind} @llvm.{name}.{width}({value.kind} {value.text})")

    return Function(1, emit)


def symbol(name: str, kind: str) -> str:
    """What the C library calls a function for floats of a kind: `expf` for float32."""
    return name + "f" * (kind == FLOAT32)


def _of_libm(name: str, arguments: int) -> Function:
    """A function of the C library; `nobuiltin`, so that nothing is folded or turned into another one."""

    def emit(code: Code, given: Sequence[Value]) -> Value:
        kind = FLOAT32 if all(value.kind == FLOAT32 for value in given) else FLOAT64
        values = [code.convert(value, kind) for value in given]
        called, kinds = symbol(name, kind), ", ".join([kind] * arguments)
        code.declare(f"declare {kind} @{called}({kinds}) nounwind willreturn memory(none)")
        words = ", ".join(f"{kind} {value.text}" for value in values)
        return code.emit(kind, f"call {kind} @{called}({words}) nobuiltin")

    return Function(arguments, emit)


def _chosen(sign: str) -> Function:
    """The smaller or larger of two numbers."""

    def emit(code: Code, given: Sequence[Value]) -> Value:
        a, b = (code.convert(value, INT64) for value in given)
        less = code.emit(BOOL, f"icmp {sign} i64 {a.text}, {b.text}")
        return code.emit(INT64, f"select i1 {less.text}, i64 {a.text}, i64 {b.text}")

    return Function(2, emit)


def _absolute(code: Code, given: Sequence[Value]) -> Value | None:
    """A float or a whole number without its sign."""
    if is_float(given[0].kind):
        return _intrinsic("fabs").emit(code, given)
    value = code.convert(given[0], INT64)
    opposite = code.emit(INT64, f"sub i64 0, {value.text}")
    return _chosen("sgt").emit(code, [value, opposite])


BUILTIN: dict[str, Function] = {"min": _chosen("slt"), "max": _chosen("sgt"), "abs": Function(1, _absolute)}

FUNCTIONS: dict[str, Function] = {
    **{f"load_{name}": _load(kind) for name, kind in KINDS.items()},
    **{f"store_{name}": _store(kind) for name, kind in KINDS.items()},
    **{name: _cast(kind) for name, kind in KINDS.items()},
    "claim": Function(2, _claim),
    "call": Function(None, _call),
    "sqrt": _intrinsic("sqrt"),
    "floor": _intrinsic("floor"),
    "ceil": _intrinsic("ceil"),
    "rint": _intrinsic("rint"),
    **{name: _of_libm(name, 2 if name in ("hypot", "pow") else 1) for name in LIBM},
}

CONSTANTS: dict[str, float] = {"inf": float("inf"), "nan": float("nan")}


def named(name: str) -> Function | Value:
    """What a text imports under a name."""
    if name in CONSTANTS:
        return literal(CONSTANTS[name])
    if name not in FUNCTIONS:
        raise NotInLanguage(f"the language has no {name}")
    return FUNCTIONS[name]
