"""Parameters: `Param`, and the one grammar for parameters and gradients.

An array, a `Param`, dicts, lists and tuples of them, nested; an object with
`.named_parameters()`, `.parameters()` or `.params()`; any object with `.data` and `.grad` arrays.
Names are dotted: {"encoder": {"W": ..., "b": ...}} has "encoder.W" and "encoder.b".

The container is the truth: it is kept, and what stands in it is looked up at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
        How errors, `opt[...]` and files call it; otherwise its place in the container.

    Raises
    ------
    TypeError
        If `data` is no array, of a dtype that can't be trained, or immutable.
    ValueError
        If `data` is read-only, or shares memory within itself (broadcast).

    Examples
    --------
    >>> import numpy as np
    >>> p = Param(np.ones(3, np.float32), name="psi")
    >>> p.grad = np.ones(3, np.float32)
    >>> p
    Param('psi', numpy array of shape (3,), float32)
    """

    __slots__ = ("__weakref__", "_data", "device", "dtype", "grad", "library", "name", "namespace", "shape")

    def __init__(self, data: Any, grad: Any = None, name: str | None = None) -> None:
        self.name = name
        arrays.check_weight(name or "data", data)
        self._data = data
        self.library = arrays.library(data)
        self.namespace = arrays.namespace(data)
        self.device = arrays.device(data)
        self.dtype = arrays.dtype_name(data)
        self.shape = tuple(data.shape)
        self.grad = grad

    @property
    def data(self) -> Any:
        """The array. Setting another one of the same shape, dtype and device keeps the state."""
        return self._data

    @data.setter
    def data(self, new: Any) -> None:
        label = self.name or "data"
        arrays.check_weight(label, new)
        old = (self.shape, self.dtype, self.library, self.device)
        if (tuple(new.shape), arrays.dtype_name(new), arrays.library(new), arrays.device(new)) != old:
            raise ValueError(
                f"parameter {label!r} was {arrays.describe(self._data)} and became {arrays.describe(new)}; "
                f"use opt.replace({label!r}, new, state='reset') if that is meant"
            )
        self._data = new

    @property
    def size(self) -> int:
        """The number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    def __repr__(self) -> str:
        return f"Param({self.name!r}, {arrays.describe(self._data)})"


def matches(where: Where, param: Param) -> bool:
    """Whether a glob on names, or a predicate, selects a parameter; None selects all."""
    if where is None:
        return True
    if callable(where):
        return bool(where(param))
    return fnmatchcase(param.name or "", where)


def check_where(where: Any) -> None:
    if not (where is None or isinstance(where, str) or callable(where)):
        raise TypeError(f"where = {where!r} must be a glob on names, such as '*.bias', or a function of a Param")


@dataclass(eq=False, slots=True)
class Leaf:
    """One parameter of a tree: its name, what stands in the container, and where to look it up."""

    name: str
    value: Any
    container: Any
    key: Any


@dataclass(slots=True)
class Tree:
    """A container of parameters: its shape (`branches`) and the objects in it, `kind` by kind.

    kind is "leaf", "dict", "list" or "object" (an object whose parameters a method lists).
    """

    kind: str
    source: Any
    branches: dict[Any, Tree]
    leaf: Leaf | None = None

    def leaves(self) -> Iterator[Leaf]:
        if self.leaf is not None:
            yield self.leaf
        for branch in self.branches.values():
            yield from branch.leaves()


_METHODS = ("named_parameters", "parameters", "params")


def is_holder(x: Any) -> bool:
    """An object that has `.data` and `.grad` and is no array itself."""
    return not arrays.is_array(x) and hasattr(x, "data") and hasattr(x, "grad")


def read_tree(source: Any, name: str = "", container: Any = None, key: Any = None) -> Tree:
    """Walk a container of parameters.

    Raises
    ------
    TypeError
        If something in it is no parameter; the message names its place.
    ValueError
        If it is empty.
    """
    if isinstance(source, Param) or arrays.is_array(source) or is_holder(source):
        own = source.name if isinstance(source, Param) and source.name and not isinstance(container, Mapping) else None
        return Tree("leaf", source, {}, Leaf(own or name or "0", source, container, key))
    place = f" at {name!r}" if name else ""
    if isinstance(source, str | bytes | set | frozenset) or source is None:
        why = "has no order" if isinstance(source, set | frozenset) else "is no parameter"
        raise TypeError(f"parameters{place}: a {type(source).__name__} {why}; pass a dict, list or tuple of arrays")
    if isinstance(source, Mapping):
        kind, items = "dict", list(source.items())
    elif isinstance(source, Sequence):
        kind, items = "list", list(enumerate(source))
    else:
        kind, items = "object", list(list_object(source, place))
        source_items = dict(items)
        branches = {k: read_tree(v, _join(name, k), source_items, k) for k, v in items}
        return Tree(kind, source, branches)
    return Tree(kind, source, {k: read_tree(v, _join(name, k), source, k) for k, v in items})


def list_object(source: Any, place: str = "") -> Iterator[tuple[Any, Any]]:
    """The (key, parameter) pairs of an object that lists its parameters, or of an iterator."""
    for method in _METHODS:
        if callable(getattr(source, method, None)):
            found = getattr(source, method)()
            found = found.items() if isinstance(found, Mapping) else found
            pairs = [each if isinstance(each, tuple) and len(each) == 2 else (i, each) for i, each in enumerate(found)]
            return iter(pairs)
    if isinstance(source, Iterator):
        return enumerate(source)
    raise TypeError(
        f"parameters{place}: a {type(source).__name__} is no parameter; pass arrays, Params, dicts, lists or tuples of "
        "them, or an object with .named_parameters(), .parameters() or .params()"
    )


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def check_names(leaves: Sequence[Leaf]) -> None:
    """Raise where two parameters have one name, or there is none at all."""
    if not leaves:
        raise ValueError("no parameters: the container is empty, or an iterator that was already used up")
    seen: dict[str, Leaf] = {}
    for leaf in leaves:
        if leaf.name in seen:
            raise ValueError(f"two parameters are called {leaf.name!r}; give them names: Param(data, name=...)")
        seen[leaf.name] = leaf


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
    if isinstance(grads, str | bytes | set | frozenset) or arrays.is_array(grads):
        raise TypeError(f"gradients{f' of {name!r}' if name else ''} are {arrays.describe(grads)}; mirror the parameters")
    if isinstance(grads, Mapping):
        _match_mapping(tree, grads, found, name)
        return
    items = list(grads) if isinstance(grads, Sequence) else [v for _, v in list_object(grads)]
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
            match_gradients(tree.branches[key], value, found, _join(name, key))
        elif isinstance(key, str) and key in by_name:
            try:
                found[key] = gradient_of(value)
            except TypeError as error:
                raise TypeError(f"gradient of {key!r}: {error}") from None
        else:
            known = ", ".join(map(str, tree.branches))
            raise KeyError(f"gradients have {key!r}, but there is no such parameter; there are {known}")
