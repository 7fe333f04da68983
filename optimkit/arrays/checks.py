"""What arrays must be: errors that say what was given and what to pass instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat
import numpy as np

from optimkit.arrays.asking import describe, dtype_name, is_array
from optimkit.arrays.dtypes import DTYPES, SUPPORTED
from optimkit.arrays.libraries import library_of
from optimkit.arrays.memory import self_overlap


def check_weight(name: str, x: Any, read_only: bool = False) -> None:
    """Raise if `x` can't be updated in place, with what to do about it; `read_only`: it may be, for now."""
    what = f"parameter {name!r}"
    if not is_array(x):
        raise TypeError(f"{what} is {describe(x)}, not an array of an array library")
    if isinstance(x, np.generic):
        raise TypeError(f"{what} is a NumPy scalar ({x!r}), which can't be updated in place; pass np.asarray(x), shape ()")
    library = library_of(x)
    if library.is_immutable:
        library.check_writable(what, x)
    check_readable(what, x)
    if not read_only:
        library.check_writable(what, x)
    if not (read_only or array_api_compat.is_writeable_array(x)):
        raise TypeError(f"{what}: {describe(x)} can't be written; use the functional form, rule.init and rule.apply")
    if library.has_memory and (why := self_overlap(library.view(x))):
        raise ValueError(f"{what} {why}; pass a copy (x.copy())")


def check_readable(what: str, x: Any, allowed: Sequence[str] = SUPPORTED) -> None:
    """Raise unless engines can read `x`: its dtype, and memory that is what it seems to be."""
    if type(x) is not np.ndarray and isinstance(x, np.matrix | np.ma.MaskedArray):  # naming np.ma imports it
        raise TypeError(f"{what} is a {type(x).__name__}; pass a plain array (np.asarray(x), or x.data of a masked array)")
    check_dtype(what, x, allowed)
    library_of(x).check_readable(what, x)


_KINDS = {"half precision": "float16", "complex": "complex"}  # part of the names of their dtypes
_MISSING = [kind for kind, part in _KINDS.items() if not any(part in name for name in DTYPES)]


def check_dtype(what: str, x: Any, allowed: Sequence[str] = SUPPORTED) -> None:
    """Raise unless the dtype of `x` is one of those that optimkit computes with here."""
    name = dtype_name(x)
    if name in allowed:
        return
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        raise TypeError(f"{what} is {x.dtype.name} in another byte order; pass x.astype(x.dtype.newbyteorder('='))")
    unsupported = any(part in name for part in _KINDS.values())
    later = f"{' and '.join(_MISSING)} {'are' if len(_MISSING) > 1 else 'is'} not supported yet; " if unsupported else ""
    raise TypeError(f"{what} is {name}; {later}pass one of {', '.join(allowed)}, such as x.astype('float32')")
