"""`Param`: a weight that is trained in place, and its gradient; and what a gradient must be to belong to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from fnmatch import fnmatchcase
from typing import Any

from optimkit import arrays

Where = str | Callable[["Param"], bool] | None


class Param:
    """A weight that is trained in place, and its gradient.

    Parameters
    ----------
    data : array
        The weight: float32 or float64, any shape and strides, writable. It stays the caller's, is never
        copied, and is updated in place.
    grad : array, optional
        Its gradient, same shape, library and device, real floating dtype. Read by `step()`.
    name : str, optional
        How errors, `opt[...]` and files call it; otherwise its place in the container. In a dict the key
        is the name.

    Raises
    ------
    TypeError
        If `data` is no array, of a dtype that can't be trained, or immutable; if `grad` is of another
        library, or not real floating.
    ValueError
        If `data` is read-only, or shares memory within itself (broadcast); if `grad` has another shape,
        or lies on another device.

    Examples
    --------
    >>> import numpy as np
    >>> p = Param(np.ones(3, np.float32), name="psi")
    >>> p.grad = np.ones(3, np.float32)
    >>> p
    Param('psi', numpy array of shape (3,), float32)
    """

    __slots__ = ("__weakref__", "_data", "_place", "device", "dtype", "given_name", "grad", "library", "shape")

    def __init__(self, data: Any, grad: Any = None, name: str | None = None) -> None:
        if not (name is None or isinstance(name, str)):
            raise TypeError(f"Param: name = {name!r} must be a str")
        self.given_name = name
        self._place: str | None = None  # its name in an optimizer
        self._take(data)
        if grad is not None:
            check_gradient(self.name or "data", self, grad)
        self.grad = grad

    @classmethod
    def described_by(cls, data: Any, name: str) -> Param:
        """A Param that tells of an array, immutable or not, and does not train it: for predicates."""
        param = object.__new__(cls)
        param.given_name, param._place, param.grad = name, None, None
        param._describe(data)
        return param

    def _take(self, data: Any, read_only: bool = False) -> None:
        arrays.check_weight(self.name or "data", data, read_only)
        self._describe(data)

    def _describe(self, data: Any) -> None:
        self._data = data
        self.library = arrays.library(data)
        self.device = arrays.device(data)
        self.dtype = arrays.dtype_name(data)
        self.shape = tuple(data.shape)

    @property
    def name(self) -> str | None:
        """The name that it was given; without one, its place in the container of its latest optimizer."""
        return self.given_name or self._place

    @name.setter
    def name(self, name: str | None) -> None:
        self.given_name = name

    @property
    def data(self) -> Any:
        """The array. Setting another one of the same shape, dtype and device keeps the state."""
        return self._data

    @data.setter
    def data(self, new: Any) -> None:
        self.check_same(self.name or "data", new)
        self._data = new

    def take_same(self, new: Any) -> None:
        """Take another array that was checked by `check_same`."""
        self._data = new

    def check_same(self, name: str, new: Any) -> None:
        """Raise unless an array can stand in for the present one, state and all."""
        arrays.check_weight(name, new)
        old = (self.shape, self.dtype, self.library, self.device)
        if (tuple(new.shape), arrays.dtype_name(new), arrays.library(new), arrays.device(new)) != old:
            raise ValueError(
                f"parameter {name!r} was a {self.described()} and became a {arrays.describe(new)}; "
                f"use opt.replace({name!r}, new, state='reset') if that is meant"
            )

    def placed(self, name: str) -> None:
        """Its optimizer says how it calls it."""
        self._place = name

    def renew(self, new: Any) -> None:
        """Take another array, of any shape and dtype; the gradient is gone."""
        self._take(new)
        self.grad = None

    def described(self) -> str:
        """What it was checked as; the array may have been changed since."""
        return arrays.described(self.library, self.shape, self.dtype, self.device)

    @property
    def namespace(self) -> Any:
        """The array API namespace of the array's library."""
        return arrays.namespace(self._data)  # when it is asked for: that of NumPy takes longer to import than NumPy

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self._data, "grad": self.grad, "name": self.given_name, "place": self._place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.given_name, self._place, self.grad = state["name"], state["place"], state["grad"]
        self._take(state["data"], read_only=True)  # from a mapped file: to be looked at; a step refuses it

    def __repr__(self) -> str:
        return f"Param({self.name!r}, {arrays.describe(self._data)})"


def check_gradient(name: str, param: Param, gradient: Any) -> None:
    """Raise unless an array can be the gradient of a parameter.

    Raises
    ------
    TypeError
        If it is no array, of another library, an integer, boolean or complex.
    ValueError
        If it has another shape, or lies on another device.
    """
    what = f"gradient of {name!r}"
    if not arrays.is_array(gradient):
        raise TypeError(f"{what} is {arrays.describe(gradient)}, not an array")
    if arrays.library(gradient) != param.library:
        raise TypeError(
            f"{what} is a {arrays.describe(gradient)}, its weight a {param.library} array; convert it to {param.library}"
        )
    if tuple(gradient.shape) != param.shape:
        raise ValueError(
            f"{what} has shape {tuple(gradient.shape)}, its weight {param.shape}; nothing is broadcast: reshape or sum it"
        )
    if arrays.device(gradient) != param.device:
        raise ValueError(f"{what} is on {arrays.device(gradient)}, its weight on {param.device}; move it there")
    arrays.check_readable(what, gradient, arrays.DTYPES[param.dtype].gradients)


def matches(where: Where, param: Param, name: str, names: Container[str] = ()) -> bool:
    """Whether a name, a glob on names, or a predicate selects a parameter; None selects all.

    `name` is how its optimizer calls it, `names` are all that this has: one of them is that parameter, and no glob.
    """
    if where is None:
        return True
    if callable(where):
        return bool(where(param))
    return name == where if where in names else fnmatchcase(name, where)
