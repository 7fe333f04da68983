"""What generated kernels are made of: raw pointers, and a counter that threads share.

`load_float32(address, i)` reads element i at an address, `store_float32` writes it, `claim` takes
the next chunk, `call_copy` calls another compiled function. They compile to single instructions.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_LLVM = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.int64: ir.IntType(64)}


def _pointer(builder: Any, kind: Any, address: Any, index: Any) -> Any:
    return builder.gep(builder.inttoptr(address, _LLVM[kind].as_pointer()), [index])


def _make_load(kind: Any) -> Any:
    def load(typing_context: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(_pointer(builder, kind, *args))

        return kind(types.int64, types.int64), generate

    return intrinsic(load)


def _make_store(kind: Any) -> Any:
    def store(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store(args[2], _pointer(builder, kind, args[0], args[1]))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, kind), generate

    return intrinsic(store)


load_float32, store_float32 = _make_load(types.float32), _make_store(types.float32)
load_float64, store_float64 = _make_load(types.float64), _make_store(types.float64)
load_int64, store_int64 = _make_load(types.int64), _make_store(types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def claim(typing_context: Any, address: Any, step: Any) -> Any:
    """Add `step` to the counter at `address`; its value before. Safe between threads."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_copy(typing_context: Any, function: Any, layout: Any, data: Any, start: Any, n: Any, dense: Any, mode: Any) -> Any:
    """Call a compiled `copy(layout, data, start, n, dense, mode)` at the address `function`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 6)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate
