"""Parameters that come and go in the caller's containers: what stands where, and how to put something there.

A parameter that was put into a known container first, and is then added, becomes part of that container's
tree: `params["c"] = c; opt.add({"c": c})`. What `opt.remove` left standing is remembered and left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import delitem, setitem
from typing import Any

from optimkit.containers.param import Param
from optimkit.containers.tree import Leaf, Tree, is_holder, join, list_items, read_tree, settled


def split_groups(params: Any) -> list[tuple[Any, dict[str, Any]]]:
    """(parameters, values) of each group; one group if there are no group dicts."""
    params = settled(params)
    if not isinstance(params, list | tuple):
        return [(params, {})]
    groups = [isinstance(each, Mapping) and "params" in each for each in params]
    if not any(groups):
        return [(params, {})]
    if not all(groups):
        number = groups.index(False)
        group = "a dict with 'params', such as {'params': ..., 'lr': 0.1}"
        raise TypeError(f"entry {number} of the list of groups is no group; a group is {group}")
    return [(group["params"], {key: value for key, value in group.items() if key != "params"}) for group in params]


@dataclass(eq=False, repr=False)
class Growth:
    """What an addition does to the trees, done only when everything was checked."""

    roots: list[Tree] = field(default_factory=list)
    grafts: list[tuple[Tree, Any, Tree]] = field(default_factory=list)  # (parent, key, new branch)

    def leaves(self) -> list[Leaf]:
        trees = [*self.roots, *(branch for _, _, branch in self.grafts)]
        return [leaf for tree in trees for leaf in tree.leaves()]

    def grafting(self) -> list[Callable[[], Any]]:
        """What puts the new branches into their trees, calls of compiled code."""
        calls: list[Callable[[], Any]] = []
        for parent, key, branch in self.grafts:
            calls += [partial(parent.removed.discard, key), partial(setitem, parent.branches, key, branch)]
        return calls


def grow(roots: Sequence[Tree], source: Any, name: str) -> Growth:
    """The new trees for parameters that are added; those that stand in known containers belong there."""
    if not roots:
        return Growth([read_tree(source, name)])
    source = settled(source)
    known = next((tree for root in roots for tree in root.trees() if tree.kind != "leaf" and tree.source is source), None)
    if known is not None:
        found = [_graft(*each) for tree in known.trees() for each in _loose(tree)]
        if not found:
            raise ValueError("all parameters of this container are there already; put the new ones into it first")
        return Growth([], found)
    loose = {id(value): (tree, key, value) for root in roots for tree in root.trees() for tree, key, value in _loose(tree)}
    if id(source) in loose:
        return Growth([], [_graft(*loose[id(source)])])
    if not isinstance(source, Mapping | list | tuple):
        return Growth([read_tree(source, name)])
    items = list(list_items(source, name))
    grafts = [_graft(*loose[id(value)]) for _, value in items if id(value) in loose]
    if not grafts:
        return Growth([read_tree(source, name)])
    rest = {key: value for key, value in items if id(value) not in loose}
    return Growth([read_tree(rest, name)] if rest else [], grafts)


def _loose(tree: Tree) -> Iterator[tuple[Tree, Any, Any]]:
    """What stands in a container and is no parameter of the optimizer."""
    if tree.kind != "leaf":
        yield from ((tree, key, value) for key, value in list_items(tree.source, tree.name) if key not in tree.branches)


def _graft(tree: Tree, key: Any, value: Any) -> tuple[Tree, Any, Tree]:
    return tree, key, read_tree(value, join(tree.name, key), isinstance(key, str))


def prune(root: Tree, leaf: Leaf) -> tuple[bool, list[Callable[[], Any]]]:
    """Whether anything is left of a tree without a leaf, and what takes that out, calls of compiled code."""
    if root.leaf is not None:
        return root.leaf is not leaf, []
    calls: list[Callable[[], Any]] = []
    left = 0
    for key, branch in root.branches.items():
        stays, below = prune(branch, leaf)
        calls += below if stays else [partial(delitem, root.branches, key), partial(root.removed.add, key)]
        left += stays
    return left > 0, calls


def locate(roots: Sequence[Tree], leaf: Leaf) -> tuple[Tree | None, Any]:
    """The container in which a leaf stands, and its key there; None for a parameter that was passed by itself."""
    for root in roots:
        for tree in root.trees():
            for key, branch in tree.branches.items():
                if branch.leaf is leaf:
                    return tree, key
    return None, None


def placer(roots: Sequence[Tree], leaf: Leaf, new: Any) -> Callable[[], None]:
    """A function that puts an array in the place of a leaf.

    Raises
    ------
    TypeError
        If the container can't be changed from here.
    """
    anchor, (tree, key) = leaf.value, locate(roots, leaf)
    if isinstance(anchor, Param):
        return lambda: anchor.renew(new)
    if is_holder(anchor):
        return lambda: setattr(anchor, "data", new)
    if tree is not None and dict(list_items(tree.source, tree.name)).get(key) is not new:
        if tree.kind == "object":
            raise TypeError(
                f"parameter {leaf.name!r} belongs to a {type(tree.source).__name__}, which lists its parameters itself; "
                f"put the new array there first, then call opt.replace({leaf.name!r}, new)"
            )
        source = tree.source
        if not isinstance(source, MutableMapping | MutableSequence):
            raise TypeError(
                f"parameter {leaf.name!r} stands in a {type(source).__name__}, which can't be changed; pass a dict or a list"
            )

        def put() -> None:
            source[key] = new
            leaf.value = new

        return put
    return lambda: setattr(leaf, "value", new)
