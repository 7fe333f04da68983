"""Arrays: the one place that knows how the array libraries differ.

Everything else asks here: what library an array belongs to, where its memory is, in which order,
and whether it may be written. A torch CPU tensor is seen through a NumPy view of its memory.

>>> import numpy as np
>>> describe(np.zeros((2, 3), np.float32))
'numpy array of shape (2, 3), float32'
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import array_api_compat
import numpy as np

SUPPORTED = ("float32", "float64")
STRIDED = ("numpy", "torch", "cupy")  # libraries whose arrays have strides and addresses that we use


def library(x: Any) -> str:
    """The name of the array's library: "numpy", "cupy", "torch", "jax" or the root of its namespace."""
    return "numpy" if isinstance(x, np.ndarray | np.generic) else _library_of(type(x))  # type: ignore[arg-type]


@cache
def _library_of(cls: type) -> str:
    roots = [base.__module__.partition(".")[0] for base in cls.__mro__]  # a user's subclass of a tensor is a tensor
    known = [root for root in roots if root in ("torch", "cupy", "jax", "jaxlib")]
    return (known or roots)[0].replace("jaxlib", "jax")


def is_array(x: Any) -> bool:
    """Whether `x` is an array of some library (NumPy scalars count: they get an error of their own)."""
    return isinstance(x, np.ndarray | np.generic) or bool(array_api_compat.is_array_api_obj(x))


def namespace(x: Any) -> Any:
    """The array API namespace of `x`."""
    return array_api_compat.array_namespace(x)


def device(x: Any) -> Hashable:
    """The device of `x`, as its library names it."""
    return "cpu" if isinstance(x, np.ndarray) else str(array_api_compat.device(x))


def dtype_name(x: Any) -> str:
    """The name of the dtype, without its library: "float32"."""
    if isinstance(x, np.ndarray | np.generic):
        return str(x.dtype)
    return str(x.dtype).rpartition(".")[2].strip("<>'")


def describe(x: Any) -> str:
    """An array in words, without its values."""
    if not is_array(x):
        kind = type(x).__name__
        return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
    where = "" if library(x) == "numpy" else f" on {device(x)}"
    return f"{library(x)} array of shape {tuple(x.shape)}, {dtype_name(x)}{where}"


def view(x: Any) -> Any:
    """What engines work on: the array itself, or a plain NumPy view of a subclass or of a torch CPU tensor."""
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ndarray | np.generic):  # a memmap, a subclass with functions of its own, a 0-d gradient
        return np.asarray(x)
    if library(x) == "torch" and x.device.type == "cpu":
        return x.detach().numpy()
    return x


def from_view(seen: Any, like: Any) -> Any:
    """A view that engines work on as an array of the library of `like`, sharing its memory."""
    if library(like) == "torch" and isinstance(seen, np.ndarray):
        return sys.modules["torch"].from_numpy(seen)
    return seen


def check_weight(name: str, x: Any) -> None:
    """Raise if `x` can't be updated in place, with what to do about it."""
    what = f"parameter {name!r}"
    if not is_array(x):
        raise TypeError(f"{what} is {describe(x)}, not an array of an array library")
    kind = library(x)
    if isinstance(x, np.generic):
        raise TypeError(f"{what} is a NumPy scalar ({x!r}), which can't be updated in place; pass np.asarray(x), shape ()")
    if kind == "jax":
        raise TypeError(
            f"{what} is a JAX array, which is immutable; use the functional form: "
            "state = rule.init(params); params, state = rule.apply(params, grads, state)"
        )
    check_readable(what, x)
    if kind == "numpy" and not x.flags.writeable:
        raise ValueError(f"{what} is read-only; pass a writable array (np.array(x) copies)")
    if not array_api_compat.is_writeable_array(x):
        raise TypeError(f"{what}: {describe(x)} can't be written; use the functional form, rule.init and rule.apply")
    if kind == "torch":
        _check_leaf(what, x)
    if kind in STRIDED:
        _check_own_memory(what, x)


def check_readable(what: str, x: Any) -> None:
    """Raise unless engines can read `x`: its dtype, and memory that is what it seems to be."""
    if isinstance(x, np.matrix | np.ma.MaskedArray):
        raise TypeError(f"{what} is a {type(x).__name__}; pass a plain array (np.asarray(x), or x.data of a masked array)")
    check_dtype(what, x)
    if isinstance(x, np.ndarray) and not x.flags.aligned:
        raise ValueError(f"{what} is not aligned in memory (a field of a packed structure?); pass a copy (np.array(x))")
    if library(x) == "torch":
        if str(x.layout) != "torch.strided":
            raise TypeError(f"{what} is a {x.layout} tensor; pass a dense one (x.to_dense())")
        if x.is_conj() or x.is_neg():
            raise TypeError(f"{what} has its conjugate or negative bit set; pass x.resolve_conj().resolve_neg()")


def check_dtype(what: str, x: Any) -> None:
    """Raise unless the dtype of `x` is one that optimkit computes with."""
    name = dtype_name(x)
    if name in SUPPORTED:
        return
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        raise TypeError(f"{what} is {x.dtype.name} in another byte order; pass x.astype(x.dtype.newbyteorder('='))")
    later = "half precision and complex are not supported yet; " if "float16" in name or "complex" in name else ""
    raise TypeError(f"{what} is {name}; {later}pass one of {', '.join(SUPPORTED)}, such as x.astype('float32')")


def _check_leaf(what: str, x: Any) -> None:
    if x.requires_grad and not x.is_leaf:
        raise TypeError(f"{what} is a non-leaf tensor; pass the leaf it was computed from, or x.detach()")
    if x.device.type == "meta":
        raise TypeError(f"{what} is a tensor on the meta device, which has no memory; make it on a real one first")


def _check_own_memory(what: str, x: Any) -> None:
    """Raise for arrays whose elements share memory among themselves."""
    seen = view(x)
    strides, shape = byte_strides(seen), tuple(seen.shape)
    if any(n == 0 for n in shape):
        return
    steps = sorted((abs(step), n) for step, n in zip(strides, shape, strict=True) if n > 1)
    reach = itemsize(seen)
    for step, n in steps:
        if step < reach:
            why = "is broadcast (a stride is 0)" if step == 0 else "has elements that overlap in memory"
            raise ValueError(f"{what} {why}; pass a copy (x.copy())")
        reach = step * (n - 1) + reach


def itemsize(x: Any) -> int:
    size = x.itemsize
    return int(size() if callable(size) else size)


def byte_strides(x: Any) -> tuple[int, ...]:
    """The strides of a NumPy or CuPy array or a torch tensor, in bytes."""
    if library(x) == "torch":
        return tuple(step * x.element_size() for step in x.stride())
    return tuple(x.strides)


def address(x: Any) -> int:
    """The address of the first element of an array with strides."""
    if isinstance(x, np.ndarray):
        return int(x.__array_interface__["data"][0])
    return int(x.data_ptr() if library(x) == "torch" else x.data.ptr)


def bounds(x: Any) -> tuple[int, int]:
    """The first byte of an array with strides, and the first after it; (0, 0) where it is empty."""
    if 0 in x.shape:
        return 0, 0
    low = high = address(x)
    for step, n in zip(byte_strides(x), x.shape, strict=True):
        if step < 0:
            low += step * (n - 1)
        else:
            high += step * (n - 1)
    return low, high + itemsize(x)


def unwritable_spans() -> list[tuple[int, int]]:
    """The address ranges of this process that the system will not let us write; none where it does not tell.

    A tensor over a read-only file mapping does not know that it is one; writing there would end the process.
    """
    found = []
    try:
        with open("/proc/self/maps") as file:
            for line in file:
                span, rights, _ = line.split(maxsplit=2)
                if "w" not in rights:
                    low, _, high = span.partition("-")
                    found.append((int(low, 16), int(high, 16)))
    except OSError:
        return []
    return found


def overlap(a: Any, b: Any) -> bool:
    """Whether two arrays with strides, whose bounds meet, share an element."""
    if library(a) != "numpy" or library(b) != "numpy":
        a, b = _shadow(a), _shadow(b)
    try:
        return bool(np.shares_memory(a, b, max_work=10**6))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _shadow(x: Any) -> Any:
    """A NumPy array at the same address; only its address is ever looked at."""
    if isinstance(x, np.ndarray):
        return x
    interface = {"data": (address(x), True), "shape": tuple(x.shape), "strides": byte_strides(x), "version": 3}
    interface["typestr"] = f"|V{itemsize(x)}"
    return np.asarray(type("Shadow", (), {"__array_interface__": interface})())


@dataclass(frozen=True)
class Layout:
    """The memory order of a weight: its axes from the largest stride down, negative strides flipped.

    State is kept flat in this order, gradients are read in it, reductions follow it.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    @classmethod
    def of(cls, x: Any) -> Layout:
        if library(x) not in STRIDED:
            return cls(tuple(range(x.ndim)), (False,) * x.ndim)
        strides = [0 if n == 1 else step for step, n in zip(byte_strides(x), x.shape, strict=True)]
        plain = all(a >= b for a, b in pairwise(strides)) and min(strides, default=0) >= 0
        if plain:
            return cls(tuple(range(x.ndim)), (False,) * x.ndim)
        axes = tuple(sorted(range(x.ndim), key=lambda axis: (-abs(strides[axis]), axis)))
        return cls(axes, tuple(strides[axis] < 0 for axis in axes))

    @property
    def is_plain(self) -> bool:
        return self.axes == tuple(range(len(self.axes))) and not any(self.flips)

    def apply(self, x: Any) -> Any:
        """`x` seen in memory order of the weight."""
        if self.is_plain:
            return x
        return x.transpose(self.axes)[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]

    def restore(self, flat: Any, shape: Sequence[int]) -> Any:
        """A flat array in memory order, seen in the weight's shape."""
        if self.is_plain:
            return namespace(flat).reshape(flat, tuple(shape))
        x = flat.reshape(tuple(shape[axis] for axis in self.axes))
        x = x[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]
        return x.transpose(tuple(self.axes.index(axis) for axis in range(len(self.axes))))


def is_dense(x: Any) -> bool:
    """Whether a NumPy or CuPy array is contiguous in C order."""
    return bool(x.flags.c_contiguous)


def as_library(x: Any, like: Any) -> Any:
    """An array in the library and on the device of `like`, in its own dtype; a copy."""
    host = to_numpy(x)
    kind = library(like)
    if kind == "numpy":
        return np.array(host)
    if kind == "torch" and like.device.type == "cpu":
        return sys.modules["torch"].from_numpy(np.array(host))
    if kind == "cupy":
        cupy = sys.modules["cupy"]
        with like.device:
            return cupy.array(x if library(x) == "cupy" else host)
    return namespace(like).asarray(host, device=array_api_compat.device(like), copy=True)


def to_numpy(x: Any) -> Any:
    """The values as a NumPy array (a copy where the array lies elsewhere)."""
    if isinstance(x, np.ndarray):
        return x
    if library(x) == "torch":
        return x.detach().cpu().numpy()
    if library(x) == "cupy":
        return x.get()
    return np.from_dlpack(x) if library(x) != "jax" else np.asarray(x)


def bump_versions(tensors: list[Any]) -> None:
    """Tell torch that these tensors were written through NumPy views."""
    sys.modules["torch"].autograd.graph.increment_version(tensors)


def is_plain(x: Any) -> bool:
    """Whether `x` is surely an array: a quick test for the common case."""
    return type(x) is np.ndarray or is_array(x)
