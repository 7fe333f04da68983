"""What is asked of arrays, whatever their library: where they belong, and how they are written of in errors.

>>> import numpy as np
>>> describe(np.zeros((2, 3), np.float32))
'numpy array of shape (2, 3), float32'
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import array_api_compat
import numpy as np

from optimkit.arrays.libraries import library_of


def library(x: Any) -> str:
    """The name of the array's library: "numpy", "cupy", "torch", "jax" or the root of its namespace."""
    return library_of(x).name


def is_array(x: Any) -> bool:
    """Whether `x` is an array of some library (NumPy scalars count: they get an error of their own)."""
    return isinstance(x, np.ndarray | np.generic) or bool(array_api_compat.is_array_api_obj(x))


def is_traced(x: Any) -> bool:
    """Whether a value is known only when a jitted function runs."""
    return is_array(x) and "Tracer" in type(x).__name__


def namespace(x: Any) -> Any:
    """The array API namespace of `x`."""
    return array_api_compat.array_namespace(x)


def device(x: Any) -> Hashable:
    """The device of `x`, as its library names it."""
    return library_of(x).device(x)


def dtype_name(x: Any) -> str:
    """The name of the dtype, without its library: "float32"."""
    if isinstance(x, np.ndarray | np.generic):
        return _name_of(x.dtype)
    return str(x.dtype).rpartition(".")[2].strip("<>'")


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    return str(dtype)  # which takes some microseconds


def described(library: str, shape: tuple[int, ...], dtype: str, device: Hashable) -> str:
    """What is known of an array, in words."""
    return f"{library} array of shape {shape}, {dtype}{'' if library == 'numpy' else f' on {device}'}"


def describe(x: Any) -> str:
    """An array in words, without its values."""
    if not is_array(x):
        kind = type(x).__name__
        return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
    return described(library(x), tuple(x.shape), dtype_name(x), device(x))


def view(x: Any) -> Any:
    """What engines work on: the array itself, or a plain NumPy view of a subclass or of a torch CPU tensor."""
    return x if type(x) is np.ndarray else library_of(x).view(x)


def from_view(seen: Any, like: Any) -> Any:
    """What engines work on as an array of the library of `like`, sharing its memory."""
    return library_of(like).from_view(seen)


def is_read_only(x: Any) -> bool:
    """Whether the library of an array says that it can't be written. Only NumPy does."""
    return isinstance(x, np.ndarray | np.generic) and not x.flags.writeable


def on(x: Any) -> AbstractContextManager[Any]:
    """The context in which what is allocated lies on the device of `x`."""
    return library_of(x).on(x)


def guarded(x: Any) -> Any:
    """An array that can be handed out: a view that can't be written, or a copy where the library knows no such thing."""
    return library_of(x).guarded(x)


def copy_of(x: Any, like: Any) -> Any:
    """A copy of an array in the library and on the device of `like`, in its own dtype."""
    return library_of(like).copy_of(x, like)
