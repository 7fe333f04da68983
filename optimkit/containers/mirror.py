"""Gradients that mirror the parameters: found in the caller's container, by parameter.

    Mirror(roots, ["encoder.W", "encoder.b"]).read({"encoder": {"W": g}})       # [g, None]

What is missing, or None, is None. Plain dicts and lists of arrays, the common case, are walked without a call
for each parameter; anything else is matched one by one, with an error for what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.containers.param import Param
from optimkit.containers.tree import Tree, is_holder, items_at, join, list_items, settled

# A tree prepared for the plain case: (kind, keys, the shapes below or None where all are leaves, number of leaves).
_Shape = tuple[str, Any, list[Any] | None, int]


class Mirror:
    """Where the gradients of some parameters stand in a container that mirrors theirs.

    Parameters
    ----------
    roots : sequence of Tree
        The containers of the parameters, one for each group.
    names : sequence of str
        The parameters, in the order in which their gradients are wanted.
    """

    def __init__(self, roots: Sequence[Tree], names: Sequence[str]) -> None:
        self.roots, self.names = list(roots), list(names)
        in_order = [leaf.name for root in roots for leaf in root.leaves()] == self.names
        self._shapes = [_shape(root) for root in roots] if in_order else None
        self._array_types: set[type] = {type(None), np.ndarray}
        flat = self._shapes is not None and len(roots) == 1 and self._shapes[0][0] == "dict" and self._shapes[0][2] is None
        keys = list(roots[0].branches) if flat else []  # of a plain dict of arrays, the commonest container
        self._place_of = {key: place for place, key in enumerate(keys)}
        self._at_keys = items_at(keys) if keys else None

    def read(self, grads: Any) -> list[Any]:
        """The gradients in the order of the names, None for none.

        Raises
        ------
        TypeError, ValueError, KeyError
            If they do not mirror the parameters.
        """
        values = self.read_plain(grads)
        if values is not None and self._are_arrays(values):
            return values
        found = self._match(grads)
        return [found.get(name) for name in self.names]

    def read_plain(self, grads: Any) -> list[Any] | None:
        """The leaves of gradients that mirror the parameters plainly; None where they have to be matched."""
        if self._at_keys is not None and type(grads) is dict and grads:
            try:
                if len(grads) == len(self.names):
                    return list(self._at_keys(grads))
                places = items_at(list(grads))(self._place_of)
            except KeyError:
                return None
            some: list[Any] = [None] * len(self.names)
            for place, x in zip(places, grads.values(), strict=True):
                some[place] = x
            return some
        values: list[Any] = []
        if self._shapes is None:
            return None
        if len(self._shapes) == 1:
            return values if _gather(self._shapes[0], grads, values) else None
        if not isinstance(grads, list | tuple) or len(grads) != len(self._shapes):
            return None
        plain = all(_gather(shape, _of_group(group), values) for shape, group in zip(self._shapes, grads, strict=True))
        return values if plain else None

    def _are_arrays(self, values: list[Any]) -> bool:
        """Whether all are arrays, or None. That is a matter of their classes, which are few."""
        unknown = set(map(type, values)) - self._array_types
        if unknown:
            self._array_types |= {type(x) for x in values if type(x) in unknown and arrays.is_array(x)}
        return unknown <= self._array_types

    def _match(self, grads: Any) -> dict[str, Any]:
        """The gradients by name, matched one by one."""
        found: dict[str, Any] = {}
        if len(self.roots) == 1:
            _match(self.roots[0], grads, found)
        elif isinstance(grads, dict):
            by_name = {leaf.name: Tree("leaf", None, {}, leaf) for root in self.roots for leaf in root.leaves()}
            merged = _merged([root for root in self.roots if root.kind == "dict"])
            _match(Tree("dict", None, {**by_name, **merged.branches}, removed=merged.removed), grads, found)
        elif isinstance(grads, list | tuple) and len(grads) == len(self.roots):
            for root, group in zip(self.roots, grads, strict=True):
                _match(root, _of_group(group), found)
        else:
            raise ValueError(
                f"the optimizer has {len(self.roots)} groups of parameters: pass a list of as many gradient containers, "
                "or a dict by parameter name"
            )
        return found


def _merged(trees: Sequence[Tree]) -> Tree:
    """Dicts of several groups as one: {"enc": {"W": ...}} and {"enc": {"b": ...}} share a key."""
    if len(trees) == 1:
        return trees[0]
    below: dict[Any, list[Tree]] = {}
    for tree in trees:
        for key, branch in tree.branches.items():
            below.setdefault(key, []).append(branch)
    for key, branches in below.items():
        if len(branches) > 1 and any(branch.kind != "dict" for branch in branches):
            kinds = " and ".join(f"a {branch.kind}" for branch in branches)
            raise ValueError(f"groups share the key {key!r}, {kinds}; pass a list of gradient containers, one for each group")
    removed = {key for tree in trees for key in tree.removed}
    return Tree("dict", None, {key: _merged(branches) for key, branches in below.items()}, removed=removed)


def _of_group(group: Any) -> Any:
    return group["params"] if isinstance(group, dict) and "params" in group else group


def _shape(tree: Tree) -> _Shape:
    below = [_shape(branch) for branch in tree.branches.values()]
    count = 1 if tree.kind == "leaf" else sum(shape[3] for shape in below)
    return tree.kind, tree.branches.keys(), below if any(shape[0] != "leaf" for shape in below) else None, count


def _gather(shape: _Shape, grads: Any, values: list[Any]) -> bool:
    kind, keys, below, count = shape
    if grads is None:
        values += [None] * count
    elif kind == "leaf":
        values.append(grads)
    elif kind == "dict" and type(grads) is dict and grads.keys() <= keys:
        if below is not None:
            return all(_gather(each, grads.get(key), values) for key, each in zip(keys, below, strict=True))
        values += map(grads.get, keys)
    elif kind == "list" and isinstance(grads, list | tuple) and len(grads) == len(keys):
        if below is not None:
            return all(_gather(each, x, values) for x, each in zip(grads, below, strict=True))
        values += grads
    else:
        return False
    return True


def _gradient_of(x: Any) -> Any:
    """The gradient that stands at a leaf of a tree of gradients: an array, or the .grad of a Param or holder."""
    if x is None or arrays.is_array(x):
        return x
    if isinstance(x, Param) or is_holder(x):
        return x.grad
    raise TypeError(f"a gradient is {arrays.describe(x)}, not an array")


def _put(found: dict[str, Any], name: str, gradient: Any) -> None:
    """Note the gradient of a parameter, which may be named in one place alone."""
    if gradient is not None and found.get(name) is not None:
        raise ValueError(f"the gradient of {name!r} is there twice, by its place and by its name; pass it once")
    if gradient is not None or name not in found:
        found[name] = gradient


def _match(tree: Tree, grads: Any, found: dict[str, Any], name: str = "") -> None:
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
            gradient = _gradient_of(grads)
        except TypeError as error:
            raise TypeError(f"gradient of {tree.leaf.name!r}: {error}") from None
        _put(found, tree.leaf.name, gradient)
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
        _match(branch, item, found, name or "gradients")


def _match_mapping(tree: Tree, grads: Mapping[Any, Any], found: dict[str, Any], name: str) -> None:
    by_name = {leaf.name: leaf for leaf in tree.leaves()}
    for key, value in grads.items():
        if key in tree.branches:
            _match(tree.branches[key], value, found, join(name, key))
        elif key in tree.removed:
            continue
        elif isinstance(key, str) and key in by_name:
            try:
                gradient = _gradient_of(value)
            except TypeError as error:
                raise TypeError(f"gradient of {key!r}: {error}") from None
            _put(found, key, gradient)
        else:
            known = ", ".join(map(str, tree.branches))
            raise KeyError(f"gradients have {key!r}, but there is no such parameter; there are {known}")
