"""The one grammar for parameters and gradients, read into a tree.

An array, a `Param`, dicts, lists and tuples of them, nested; an object with
`.named_parameters()`, `.parameters()` or `.params()`; any object with `.data` and `.grad` arrays.
Names are dotted: {"encoder": {"W": ..., "b": ...}} has "encoder.W" and "encoder.b".

The container is the truth: it is kept, and what stands in it is looked up at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set, ValuesView
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from optimkit import arrays
from optimkit.containers.param import Param


@dataclass(eq=False, repr=False)
class Leaf:
    """One parameter of a tree: its name, and what stands in the container: an array, a Param, a holder."""

    name: str
    value: Any


@dataclass(eq=False, repr=False)
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


DEEPEST = 100  # containers within each other
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


def read_tree(source: Any, name: str = "", keyed: bool = False, above: tuple[int, ...] = ()) -> Tree:
    """Walk a container of parameters; `keyed` says that it stands at a key of a dict, which names it.

    Raises
    ------
    TypeError
        If something in it is no parameter; the message names its place.
    ValueError
        If it contains itself, or is nested too deeply. `above` are the containers that it is in, by id.
    """
    if is_leaf(source):
        own = source.given_name if isinstance(source, Param) and not keyed else None
        return Tree("leaf", source, {}, Leaf(own or name or "0", source), name)
    source = settled(source)
    if id(source) in above:
        raise ValueError(f"parameters at {name!r}: this {type(source).__name__} contains itself")
    if len(above) == DEEPEST:
        raise ValueError(f"parameters at {name[:60]!r}...: containers are nested more than {DEEPEST} deep")
    inside = (*above, id(source))
    branches = {
        key: read_tree(each, join(name, key), isinstance(key, str), inside) for key, each in list_items(source, name)
    }
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


def items_at(keys: Sequence[Any], container: Any = None) -> Callable[[Any], Sequence[Any]]:
    """What reads the items of a container at these keys, in one call that is not Python's.

    A `container` that makes what is missing, such as a defaultdict, is asked so that it makes nothing.
    """
    if hasattr(type(container), "__missing__"):
        return lambda container: list(map(container.get, keys))
    if len(keys) == 1:
        (key,) = keys
        return lambda container: (container[key],)
    return itemgetter(*keys)


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
