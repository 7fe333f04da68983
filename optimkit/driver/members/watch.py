"""The container is the truth: what stands in the caller's dict, list or object is what is trained.

Before each step what stands there is compared, by identity, with what was there before; and an array that is still the
same object, with what it was: its shape, dtype, strides and memory can be changed in place. An array of the same shape,
dtype and device is adopted and keeps its state; anything else is an error. All changes are checked before the first is
taken over, so that after an error nothing is trained that the caller lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from operator import attrgetter, is_
from typing import Any

import numpy as np

from optimkit import arrays
from optimkit.containers.growth import placer
from optimkit.containers.param import Param
from optimkit.containers.tree import Tree, data_of, is_leaf, items_at, list_items
from optimkit.driver.entries.entry import Entry
from optimkit.driver.gradients.overlaps import check_weights

_data_of = attrgetter("param._data")  # not `data`: a property would be a call of Python for each
_changeable = attrgetter("changeable")


class ContainerWatch:
    """What stands in the containers that the entries come from, prepared for a quick comparison."""

    def __init__(self, entries: Sequence[Entry], roots: Sequence[Tree], slots: Mapping[str, Any]) -> None:
        self.entries, self.roots, self.slots = list(entries), list(roots), slots
        self.entry_of = {id(entry.leaf): entry for entry in entries}
        self._prepare()
        self._remember([entry.taken for entry in self.params])  # what was set before the first step counts too

    def _prepare(self) -> None:
        trees = [tree for root in self.roots for tree in root.trees() if tree.kind != "leaf"]
        self.objects = [tree for tree in trees if tree.kind == "object"]
        kept = [tree for tree in trees if tree.kind != "object" and tree.branches]
        self.containers = [
            (tree.source, len(tree.branches) + len(tree.removed), items_at(list(tree.branches), tree.source)) for tree in kept
        ]
        self.in_containers = [branch.source for tree in kept for branch in tree.branches.values()]
        self.params = [entry for entry in self.entries if isinstance(entry.anchor, Param) or entry.handed_out]
        others = [entry for entry in self.entries if not isinstance(entry.anchor, Param)]
        self.holders = [entry for entry in others if not arrays.is_array(entry.anchor)]
        self._remember([entry.param.data for entry in self.params])
        self.arrays: dict[arrays.Library, tuple[list[Entry], list[Any]]] = {}  # the arrays of each library
        for entry in self.entries:
            entries, data = self.arrays.setdefault(entry.library, ([], []))
            entries.append(entry)
            data.append(entry.param.data)

    def _remember(self, seen: list[Any]) -> None:
        """`seen` are the arrays of `params`."""
        self.seen = seen
        self._ids: np.ndarray | None = None

    @property
    def ids(self) -> np.ndarray:
        """The ids of what `standing` gives where nothing was replaced, one by one; another array where they are others."""
        if self._ids is None:
            expected = [*self.in_containers, *self.seen, *(entry.param.data for entry in self.holders)]
            self._ids = np.array([id(x) for x in expected], np.int64)
        return self._ids

    def changed(self) -> list[Entry]:
        """Adopt what was replaced; the entries whose array is another one now.

        Raises
        ------
        TypeError, ValueError
            If something can't be adopted, or a parameter was removed or added behind the optimizer's back.
            Nothing is adopted then.
        """
        pending: dict[Entry, Any] = {}
        moves: list[tuple[Tree, Any, dict[Any, Any]]] = []
        found = self.standing()
        if found is None or not all(map(is_, found, self.in_containers)):
            for root in self.roots:
                self._walk(root, root.source, pending, moves)
        for entry, before in zip(self.params, self.seen, strict=True):
            if entry not in pending and entry.param.data is not before:
                pending[entry] = entry.param
        for entry in self.holders:
            if entry not in pending and entry.anchor.data is not entry.param.data:
                pending[entry] = entry.anchor
        for library, (entries, data) in self.arrays.items():
            now, before = library.changeable(data), list(map(_changeable, entries))
            if now != before:  # the same array, changed in place
                for entry, one, other in zip(entries, now, before, strict=True):
                    if one != other and entry not in pending:
                        pending[entry] = entry.anchor
        if not pending and not moves:
            return []
        adopted = self._check(pending)
        self._take(pending, moves)
        return adopted

    def standing(self) -> list[Any] | None:
        """What stands everywhere now; None where it can't be what `ids` tell of."""
        found: list[Any] = []
        try:
            for source, size, read in self.containers:
                if len(source) != size:
                    return None
                found += read(source)
        except (KeyError, IndexError):
            return None
        if self.objects and not all(map(_lists_the_same, self.objects)):
            return None
        if self.params:
            found += map(_data_of, self.params)
        for entry in self.holders:
            found.append(entry.anchor.data)
        return found

    def watch(self, entry: Entry) -> None:
        """The caller has the entry's Param, and may set its data."""
        self.params.append(entry)
        self.seen.append(entry.taken)
        self._ids = None

    def _walk(self, tree: Tree, now: Any, pending: dict[Entry, Any], moves: list[tuple[Tree, Any, dict[Any, Any]]]) -> None:
        """Compare a tree with what stands in its place now."""
        if tree.leaf is not None:
            if now is not tree.leaf.value:
                pending[self.entry_of[id(tree.leaf)]] = now
            return
        if is_leaf(now):
            before = type(tree.source).__name__
            raise TypeError(f"parameters at {tree.name!r} were a {before} and became {arrays.describe(now)}")
        items = dict(list_items(now, tree.name))
        keys = _match_keys(tree, items)
        moves.append((tree, now, keys))
        for key, branch in tree.branches.items():
            self._walk(branch, items[keys[key]], pending, moves)

    def _check(self, pending: Mapping[Entry, Any]) -> list[Entry]:
        """Raise unless everything can be adopted; the entries with another array."""
        found = []
        for entry, now in pending.items():
            if now is entry.param and now is not entry.anchor:
                placer(self.roots, entry.leaf, now.data)
            if not is_leaf(now):
                name = entry.name
                raise TypeError(f"parameter {name!r} became {arrays.describe(now)}; call opt.remove({name!r}) if that is meant")
            entry.param.check_same(entry.name, data_of(now))
            if entry.is_another(data_of(now)):
                found.append(entry)
        if found:
            now_there = [(entry.name, data_of(pending.get(entry, entry.param))) for entry in self.entries]
            check_weights(dict(now_there), self.slots)
        return found

    def _take(self, pending: Mapping[Entry, Any], moves: Sequence[tuple[Tree, Any, dict[Any, Any]]]) -> None:
        for tree, now, keys in moves:
            tree.source = now
            tree.branches = {keys[key]: branch for key, branch in tree.branches.items()}
            tree.removed &= set(dict(list_items(now, tree.name))) - set(tree.branches)
        for entry, now in pending.items():
            if now is entry.param and now is not entry.anchor:  # opt["name"].data = new: the container gets it too
                placer(self.roots, entry.leaf, now.data)()
            else:
                entry.adopt(now)
        for root in self.roots:
            for tree in root.trees():
                if tree.leaf is not None:
                    tree.source = tree.leaf.value
        self._prepare()


def _lists_the_same(tree: Tree) -> bool:
    """Whether an object lists the parameters that it listed before."""
    current = dict(list_items(tree.source, tree.name))
    known = tree.branches
    return len(current) == len(known) + len(tree.removed) and all(
        key in current and current[key] is branch.source for key, branch in known.items()
    )


def _match_keys(tree: Tree, items: Mapping[Hashable, Any]) -> dict[Any, Any]:
    """The key at which each branch stands now; an error where one has gone, or a new one has come."""
    known = list(tree.branches)
    if tree.kind == "list" and tree.removed and len(items) == len(known):  # those removed have left the list
        return dict(zip(known, items, strict=True))
    missing = [key for key in known if key not in items]
    extra = [key for key in items if key not in tree.branches and key not in tree.removed]
    if not missing and not extra:
        return {key: key for key in known}
    place = f" at {tree.name!r}" if tree.name else ""
    said = []
    if missing:
        names = [leaf.name for key in missing for leaf in tree.branches[key].leaves()]
        said.append(f"{_listed(names)} left it: put it back, or call opt.remove({names[0]!r})")
    if extra:
        said.append(f"{_listed(extra)} came: call opt.add(...) with it, so that nothing is left untrained silently")
    raise ValueError(f"the container of parameters{place} was changed; {'; '.join(said)}")


def _listed(names: Sequence[Any]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(repr, names[:8])) + more
