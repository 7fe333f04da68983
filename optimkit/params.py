"""Parameters: `Param`, and the one grammar for parameters and gradients.

An array, a `Param`, dicts, lists and tuples of them, nested; an object with
`.named_parameters()`, `.parameters()` or `.params()`; any object with `.data` and `.grad` arrays.
Names are dotted: {"encoder": {"W": ..., "b": ...}} has "encoder.W" and "encoder.b".

The container is the truth: it is kept, and what stands in it is looked up at each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set, ValuesView
from dataclasses import dataclass, field
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

    __slots__ = ("__weakref__", "_data", "_place", "device", "dtype", "given_name", "grad", "library", "namespace", "shape")

    def __init__(self, data: Any, grad: Any = None, name: str | None = None) -> None:
        if not (name is None or isinstance(name, str)):
            raise TypeError(f"Param: name = {name!r} must be a str")
        self.given_name = name
        self._place: str | None = None  # its name in an optimizer
        self._take(data)
        if grad is not None:
            check_gradient(self.name or "data", self, grad)
        self.grad = grad

    def _take(self, data: Any) -> None:
        arrays.check_weight(self.name or "data", data)
        self._data = data
        self.library = arrays.library(data)
        self.namespace = arrays.namespace(data)
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
        where = "" if self.library == "numpy" else f" on {self.device}"
        return f"{self.library} array of shape {self.shape}, {self.dtype}{where}"

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self._data, "grad": self.grad, "name": self.given_name, "place": self._place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.given_name, self._place, self.grad = state["name"], state["place"], state["grad"]
        self._take(state["data"])

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
    arrays.check_readable(what, gradient)


def matches(where: Where, param: Param, name: str | None = None) -> bool:
    """Whether a glob on names, or a predicate, selects a parameter; None selects all.

    `name` is how an optimizer calls it, where that may differ from `param.name`.
    """
    if where is None:
        return True
    return bool(where(param)) if callable(where) else fnmatchcase(name or param.name or "", where)


@dataclass(eq=False, slots=True)
class Leaf:
    """One parameter of a tree: its name, and what stands in the container: an array, a Param, a holder."""

    name: str
    value: Any


@dataclass(eq=False, slots=True)
class Tree:
    """A container of parameters: its shape (`branches`) and the objects in it, `kind` by kind.

    kind is "leaf", "dict", "list" or "object" (an object whose parameters a method lists). `removed`
    are keys of parameters that the optimizer was told to leave alone, though they are still there.
    """

    kind: str
    source: Any
    branches: dict[Any, Tree]
    leaf: Leaf | None = None
    name: str = ""
    removed: set[Any] = field(default_factory=set)

    def leaves(self) -> Iterator[Leaf]:
        if self.leaf is not None:
            yield self.leaf
        for branch in self.branches.values():
            yield from branch.leaves()

    def trees(self) -> Iterator[Tree]:
        """This one and all below it."""
        yield self
        for branch in self.branches.values():
            yield from branch.trees()


_METHODS = ("named_parameters", "parameters", "params")


def is_holder(x: Any) -> bool:
    """An object that has `.data` and `.grad` and is no array itself."""
    return not arrays.is_array(x) and hasattr(x, "data") and hasattr(x, "grad")


def is_leaf(x: Any) -> bool:
    """Whether something in a container is a parameter: an array, a Param, a holder."""
    return isinstance(x, Param) or arrays.is_array(x) or is_holder(x)


def data_of(x: Any) -> Any:
    """The array of what stands in a container."""
    return x if arrays.is_array(x) else x.data


def read_tree(source: Any, name: str = "", keyed: bool = False) -> Tree:
    """Walk a container of parameters; `keyed` says that it stands at a key of a dict, which names it.

    Raises
    ------
    TypeError
        If something in it is no parameter; the message names its place.
    """
    if is_leaf(source):
        own = source.given_name if isinstance(source, Param) and not keyed else None
        return Tree("leaf", source, {}, Leaf(own or name or "0", source), name)
    source = settled(source)
    branches = {key: read_tree(each, join(name, key), isinstance(key, str)) for key, each in list_items(source, name)}
    return Tree(kind_of(source), source, branches, None, name)


def settled(source: Any) -> Any:
    """A container that can be walked again: an iterator as a list, (name, value) pairs as a dict."""
    if isinstance(source, Iterator | ValuesView):
        source = list(source)
    pairs = isinstance(source, list | tuple) and source and all(_is_pair(each) for each in source)
    return dict(source) if pairs else source


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str)


def kind_of(source: Any) -> str:
    return "dict" if isinstance(source, Mapping) else "list" if isinstance(source, Sequence) else "object"


def list_items(source: Any, name: str = "") -> Iterator[tuple[Any, Any]]:
    """The (key, value) pairs of a container: a dict, a list, an object that lists its parameters."""
    place = f" at {name!r}" if name else ""
    if isinstance(source, str | bytes | Set) or source is None:
        why = "has no order" if isinstance(source, Set) else "is no parameter"
        raise TypeError(f"parameters{place}: a {type(source).__name__} {why}; pass a dict, list or tuple of arrays")
    if isinstance(source, Mapping):
        return iter(source.items())
    if isinstance(source, Sequence):
        return enumerate(source)
    for method in _METHODS:
        if callable(getattr(source, method, None)) and not isinstance(source, type):
            found = getattr(source, method)()
            found = settled(found)
            if isinstance(found, Mapping | list | tuple):
                return list_items(found, name)
            what = f"{type(source).__name__}.{method}() gave a {type(found).__name__}"
            raise TypeError(f"parameters{place}: {what}, no list of parameters")
    hint = ""
    if isinstance(source, bool | int | float):
        hint = " (values of a group stand in a dict that is in a list: [{'params': ..., 'lr': 0.1}])"
    raise TypeError(
        f"parameters{place}: {arrays.describe(source)} is no parameter; pass arrays, Params, dicts, lists or tuples of "
        f"them, or an object with .named_parameters(), .parameters() or .params(){hint}"
    )


def join(name: str, key: Any) -> str:
    """The dotted name of what stands at a key of the container with a name."""
    return f"{name}.{key}" if name else str(key)


def check_names(leaves: Sequence[Leaf]) -> None:
    """Raise where two parameters have one name, or there is none at all."""
    if not leaves:
        raise ValueError("no parameters: the container is empty, or an iterator that was already used up")
    seen: dict[str, Leaf] = {}
    for leaf in leaves:
        other = seen.setdefault(leaf.name, leaf)
        if other is not leaf and data_of(other.value) is data_of(leaf.value):
            raise ValueError(f"parameter {leaf.name!r} is there twice, the same array; pass it once")
        if other is not leaf:
            raise ValueError(
                f"two parameters are called {leaf.name!r}; name them apart: dict keys that differ, or Param(data, name=...) "
                "in a list"
            )


def gradient_of(x: Any) -> Any:
    """The gradient that stands at a leaf of a tree of gradients: an array, or the .grad of a Param or holder."""
    if x is None or arrays.is_array(x):
        return x
    if isinstance(x, Param) or is_holder(x):
        return x.grad
    raise TypeError(f"a gradient is {arrays.describe(x)}, not an array")


def match_gradients(tree: Tree, grads: Any, found: dict[str, Any], name: str = "") -> None:
    """Fill `found` (name to gradient) from gradients that mirror the parameters.

    Missing keys and None mean: no gradient. Unknown keys and wrong lengths are errors.
    """
    if grads is None:
        return
    if tree.kind == "leaf":
        assert tree.leaf is not None
        if isinstance(grads, Mapping | list | tuple):
            if isinstance(grads, Mapping) and set(grads) == {tree.leaf.name}:
                grads = grads[tree.leaf.name]
            elif not isinstance(grads, Mapping) and len(grads) == 1 and not name:
                grads = grads[0]
        try:
            found[tree.leaf.name] = gradient_of(grads)
        except TypeError as error:
            raise TypeError(f"gradient of {tree.leaf.name!r}: {error}") from None
        return
    if isinstance(grads, str | bytes | Set | bool | int | float) or arrays.is_array(grads):
        raise TypeError(f"gradients{f' of {name!r}' if name else ''} are {arrays.describe(grads)}; mirror the parameters")
    grads = settled(grads)
    if isinstance(grads, Mapping):
        _match_mapping(tree, grads, found, name)
        return
    items = [value for _, value in list_items(grads, name or "gradients")]
    if tree.removed and len(items) == len(tree.branches) + len(tree.removed):
        items = [item for place, item in enumerate(items) if place not in tree.removed]
    if len(items) != len(tree.branches):
        raise ValueError(
            f"{len(items)} gradients{f' of {name!r}' if name else ''} for {len(tree.branches)} parameters; "
            "mirror the parameters, with None where one is to be skipped"
        )
    for branch, item in zip(tree.branches.values(), items, strict=True):
        match_gradients(branch, item, found, name or "gradients")


def _match_mapping(tree: Tree, grads: Mapping[Any, Any], found: dict[str, Any], name: str) -> None:
    by_name = {leaf.name: leaf for leaf in tree.leaves()}
    for key, value in grads.items():
        if key in tree.branches:
            match_gradients(tree.branches[key], value, found, join(name, key))
        elif key in tree.removed:
            continue
        elif isinstance(key, str) and key in by_name:
            try:
                found[key] = gradient_of(value)
            except TypeError as error:
                raise TypeError(f"gradient of {key!r}: {error}") from None
        else:
            known = ", ".join(map(str, tree.branches))
            raise KeyError(f"gradients have {key!r}, but there is no such parameter; there are {known}")
