"""Array libraries: one class for each, with all that is particular about it. Nothing else in the package knows them.

A new library is a class here. One that nobody has described is a `Library`: it follows the array API standard,
and its arrays are asked for nothing else.

>>> import numpy as np
>>> library_of(np.zeros(3)).name
'numpy'
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple, cast

import array_api_compat
import numpy as np

from optimkit.arrays.alignment import check_aligned
from optimkit.arrays.streams import StreamOrder

Fingerprint = tuple[Any, ...] | None  # class, dtype, shape, strides, device: all but where the memory is
Seen = tuple[Fingerprint, int]  # the fingerprint of an array, and its address

UNSEEN: Any = object()  # the fingerprint of what has to be checked each time: not even like itself before
_OUTWARD = attrgetter("shape", "dtype")


class Getters(NamedTuple):
    """What reads the fingerprint of an array, and its address, off its attributes, without a call of Python."""

    fingerprint: Callable[[Any], Fingerprint]
    address: Callable[[Any], int]


class Library:
    """Any library that follows the array API standard."""

    has_memory = False  # arrays have strides and addresses that we use
    is_immutable = False
    locks = False  # an array that could be written may be made read-only
    counts_writes = False  # it is told of arrays that were written through their views
    getters: Getters | None = None  # where attributes say all

    def __init__(self, name: str) -> None:
        self.name = name

    def device(self, x: Any) -> Hashable:
        """The device of an array, as the library names it."""
        return str(array_api_compat.device(x))

    def on_host(self, x: Any) -> bool:
        """Whether engines of the host read and write its memory."""
        return False

    def view(self, x: Any) -> Any:
        """What engines work on."""
        return x

    def from_view(self, seen: Any) -> Any:
        """What engines work on as an array of the library, sharing its memory."""
        return seen

    def to_numpy(self, x: Any) -> Any:
        """The values as a NumPy array, a copy where the array lies elsewhere."""
        return np.from_dlpack(x)

    def copy_of(self, x: Any, like: Any) -> Any:
        """A copy of an array of any library in this one, on the device of `like`."""
        return array_api_compat.array_namespace(like).asarray(to_numpy(x), device=array_api_compat.device(like), copy=True)

    def on(self, x: Any) -> AbstractContextManager[Any]:
        """The context in which what is allocated lies on the device of `x`."""
        return nullcontext()

    def guarded(self, x: Any) -> Any:
        """An array that can be handed out: what is done to it does not reach `x`."""
        with self.on(x):
            return array_api_compat.array_namespace(x).asarray(x, copy=True)

    def full(self, size: int, value: float, dtype: str, like: Any) -> Any:
        """A new flat array on the device of `like`."""
        xp = array_api_compat.array_namespace(like)
        with self.on(like):
            if value == 0.0:  # zeros come from untouched pages
                return xp.zeros((size,), dtype=getattr(xp, dtype), device=like.device)
            return xp.full((size,), value, dtype=getattr(xp, dtype), device=like.device)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """An array seen in another shape."""
        return array_api_compat.array_namespace(x).reshape(x, shape)

    def flat_copy(self, x: Any, dtype: str) -> Any:
        """A copy of an array, flat in C order, on its own device."""
        xp = array_api_compat.array_namespace(x)
        with self.on(x):
            return xp.reshape(xp.astype(x, getattr(xp, dtype)), (-1,))

    def scalar(self, value: Any, dtype: Any, like: Any) -> Any:
        """A number, or a truth value where `dtype` is None, as what arrays like this one are computed with."""
        xp = array_api_compat.array_namespace(like)
        return xp.asarray(value, dtype=xp.bool if dtype is None else like.dtype, device=like.device)

    def strides(self, x: Any) -> tuple[int, ...]:
        """In bytes."""
        return tuple(x.strides)

    def itemsize(self, x: Any) -> int:
        return int(x.itemsize)

    def address(self, x: Any) -> int:
        """Of the first element."""
        raise TypeError(f"arrays of {self.name} have no address")

    def changeable(self, arrays: Sequence[Any]) -> list[Any]:
        """Of many arrays, quickly: what may become another while each stays the same object."""
        return list(map(_OUTWARD, arrays))

    def fingerprinter(self, kind: type) -> Callable[[Any], Seen]:
        """A quick function of arrays of a class: the fingerprint of one, and its address."""
        return lambda x: (UNSEEN, 0)

    def written(self, arrays: Sequence[Any]) -> None:
        """These arrays were written through their views."""

    def order(self, x: Any, owner: Any) -> Any:
        """What keeps the work on the device of `x` in order, for an owner of memory; None if calls return when all is done."""
        return None

    def check_readable(self, what: str, x: Any) -> None:
        """Raise unless its memory is what it seems to be."""

    def check_writable(self, what: str, x: Any) -> None:
        """Raise where it can't be updated in place for a reason of this library's own."""

    def protected(self, x: Any) -> bool:
        """Whether its memory may be write-protected without the library knowing it."""
        return False


class Numpy(Library):
    has_memory = True
    locks = True

    def device(self, x: Any) -> Hashable:
        return "cpu"

    def on_host(self, x: Any) -> bool:
        return True

    def view(self, x: Any) -> Any:
        """A plain array: a memmap and a subclass have functions of their own, a gradient of shape () may be a scalar."""
        return x if type(x) is np.ndarray else np.asarray(x)

    def full(self, size: int, value: float, dtype: str, like: Any) -> Any:
        return np.full(size, value, dtype) if value else np.zeros(size, dtype)  # without its namespace, slow to import

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return x.reshape(shape)

    def changeable(self, arrays: Sequence[Any]) -> list[Any]:
        """All of it: `x.shape = ...`, `x.dtype = ...`, `x.resize(...)`. Compiled code looks at the same (`cpu/look.py`)."""
        return [(x.dtype, x.shape, x.strides, x.__array_interface__["data"][0]) for x in arrays]

    def flat_copy(self, x: Any, dtype: str) -> Any:
        return np.array(x, dtype, order="C").reshape(-1)

    def to_numpy(self, x: Any) -> Any:
        return x

    def copy_of(self, x: Any, like: Any) -> Any:
        return np.array(to_numpy(x))

    def guarded(self, x: Any) -> Any:
        """A view that can't be written."""
        seen = x[...]
        seen.flags.writeable = False
        return seen

    def scalar(self, value: Any, dtype: Any, like: Any) -> Any:
        with np.errstate(over="ignore"):
            return bool(value) if dtype is None else np.dtype(dtype).type(value)

    def address(self, x: Any) -> int:
        return int(x.ctypes.data)

    def fingerprinter(self, kind: type) -> Callable[[Any], Seen]:
        if kind is not np.ndarray:
            return super().fingerprinter(kind)
        return lambda x: ((np.ndarray, x.dtype, x.shape, x.strides, x.flags.aligned), x.__array_interface__["data"][0])

    def check_readable(self, what: str, x: Any) -> None:
        if isinstance(x, np.ndarray) and not x.flags.aligned:
            raise ValueError(f"{what} is not aligned in memory (a field of a packed structure?); pass a copy (np.array(x))")

    def check_writable(self, what: str, x: Any) -> None:
        if not x.flags.writeable:
            raise ValueError(f"{what} is read-only; pass a writable array (np.array(x) copies)")


class Torch(Library):
    """CPU tensors are seen through NumPy views of their memory."""

    has_memory = True
    counts_writes = True

    def on_host(self, x: Any) -> bool:
        return bool(x.device.type == "cpu")

    def view(self, x: Any) -> Any:
        return x.detach().numpy() if x.device.type == "cpu" else x

    def from_view(self, seen: Any) -> Any:
        return sys.modules["torch"].from_numpy(seen) if isinstance(seen, np.ndarray) else seen

    def to_numpy(self, x: Any) -> Any:
        return x.detach().cpu().numpy()

    def copy_of(self, x: Any, like: Any) -> Any:
        if like.device.type == "cpu":
            return sys.modules["torch"].from_numpy(np.array(to_numpy(x)))
        return super().copy_of(x, like)

    def strides(self, x: Any) -> tuple[int, ...]:
        return tuple(step * x.element_size() for step in x.stride())

    def itemsize(self, x: Any) -> int:
        return int(x.element_size())

    def address(self, x: Any) -> int:
        return int(x.data_ptr())

    def changeable(self, arrays: Sequence[Any]) -> list[Any]:
        """All of it: `x.data = other`, `x.resize_(...)`, `x.t_()`; and a leaf may become none."""
        return [(x.data_ptr(), x.dtype, x.shape, x.stride(), x.is_cpu or x.device, x.is_leaf) for x in arrays]

    def fingerprinter(self, kind: type) -> Callable[[Any], Seen]:
        strided = sys.modules["torch"].strided

        def seen(x: Any) -> Seen:
            if x.layout is not strided:
                return UNSEEN, 0
            return (kind, x.dtype, x.shape, x.stride(), x.is_cpu or x.device, x.is_neg()), x.data_ptr()

        return seen

    def written(self, arrays: Sequence[Any]) -> None:
        """Autograd must see that the tensors were changed."""
        sys.modules["torch"].autograd.graph.increment_version(arrays)

    def check_readable(self, what: str, x: Any) -> None:
        if str(x.layout) != "torch.strided":
            raise TypeError(f"{what} is a {x.layout} tensor; pass a dense one (x.to_dense())")
        if x.is_conj() or x.is_neg():
            raise TypeError(f"{what} has its conjugate or negative bit set; pass x.resolve_conj().resolve_neg()")
        check_aligned(what, x.data_ptr(), x.element_size(), x.shape, (), "x.clone()")

    def check_writable(self, what: str, x: Any) -> None:
        if x.requires_grad and not x.is_leaf:
            raise TypeError(f"{what} is a non-leaf tensor; pass the leaf it was computed from, or x.detach()")
        if x.device.type == "meta":
            raise TypeError(f"{what} is a tensor on the meta device, which has no memory; make it on a real one first")

    def protected(self, x: Any) -> bool:
        """A tensor over a read-only file mapping does not know that it is one."""
        return self.on_host(x)


class Cupy(Library):
    has_memory = True
    getters = Getters(attrgetter("__class__", "dtype", "shape", "strides", "data.device_id"), attrgetter("data.ptr"))

    def to_numpy(self, x: Any) -> Any:
        return x.get()

    def copy_of(self, x: Any, like: Any) -> Any:
        with self.on(like):
            return sys.modules["cupy"].array(x if library_of(x) is self else to_numpy(x))

    def on(self, x: Any) -> AbstractContextManager[Any]:
        return cast(AbstractContextManager[Any], x.device)  # CuPy allocates on the current one

    def scalar(self, value: Any, dtype: Any, like: Any) -> Any:
        """A number stays on the host: it is an argument of CuPy's kernels."""
        return bool(value) if dtype is None else np.dtype(dtype).type(value)

    def address(self, x: Any) -> int:
        return int(x.data.ptr)

    def check_readable(self, what: str, x: Any) -> None:
        check_aligned(what, x.data.ptr, x.itemsize, x.shape, x.strides)

    def order(self, x: Any, owner: Any) -> Any:
        return StreamOrder(x.device, owner)

    def fingerprinter(self, kind: type) -> Callable[[Any], Seen]:
        seen, address = self.getters
        return lambda x: (seen(x), address(x))


class Jax(Library):
    """Immutable arrays: the functional form takes them."""

    is_immutable = True

    def guarded(self, x: Any) -> Any:
        return x

    def to_numpy(self, x: Any) -> Any:
        return np.asarray(x)

    def check_writable(self, what: str, x: Any) -> None:
        raise TypeError(
            f"{what} is a JAX array, which is immutable; use the functional form: "
            "state = rule.init(params); params, state = rule.apply(params, grads, state)"
        )


NUMPY = Numpy("numpy")
LIBRARIES: dict[str, Library] = {"numpy": NUMPY, "torch": Torch("torch"), "cupy": Cupy("cupy"), "jax": Jax("jax")}


def library_of(x: Any) -> Library:
    """The library of an array."""
    return NUMPY if isinstance(x, np.ndarray | np.generic) else _library_of(type(x))  # type: ignore[arg-type]


@cache
def _library_of(cls: type) -> Library:
    roots = [base.__module__.partition(".")[0].replace("jaxlib", "jax") for base in cls.__mro__]
    known = [root for root in roots if root in LIBRARIES]  # a user's subclass of a tensor is a tensor
    return named((known or roots)[0])


@cache
def named(name: str) -> Library:
    """The library of a name."""
    return LIBRARIES.get(name) or Library(name)


def to_numpy(x: Any) -> Any:
    """The values of an array of any library as a NumPy array, a copy where it lies elsewhere."""
    return library_of(x).to_numpy(x)
