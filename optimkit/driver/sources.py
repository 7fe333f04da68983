"""The container is the truth: what stands in the caller's dict, list or object is what is trained.

Before each step the entries are compared, by identity, with what stands there now. An array of
the same shape, dtype and device is adopted and keeps its state; anything else is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import getitem, is_
from typing import Any

from optimkit import arrays
from optimkit.driver.entries import Entry
from optimkit.params import Param, Tree, list_items as list_object


class Sources:
    """Where the entries come from, prepared for a quick comparison."""

    def __init__(self, entries: Sequence[Entry], roots: Sequence[Tree]) -> None:
        self.entries, self.roots = list(entries), list(roots)
        held = [entry for entry in self.entries if entry.leaf.container is not None]
        self.held = held
        self.objects = [tree for root in roots for tree in _trees(root) if tree.kind == "object"]
        self.objects = [tree for tree in self.objects if not isinstance(tree.source, Iterator)]
        self.containers = [entry.leaf.container for entry in held]
        self.keys = [entry.leaf.key for entry in held]
        self.sized = [(tree.source, len(tree.branches)) for root in roots for tree in _trees(root) if tree.kind in ("dict", "list")]
        self.anchors = [entry.anchor for entry in held]
        self.holders = [entry for entry in self.entries if not isinstance(entry.anchor, Param) and not arrays.is_array(entry.anchor)]
        self.params = [entry for entry in self.entries if isinstance(entry.anchor, Param)]
        self.tensors = [entry for entry in self.entries if entry.param.library == "torch"]
        self.views = [entry.param.data for entry in self.params]

    def changed(self) -> list[Entry]:
        """Adopt what was replaced; the entries whose array is another one now.

        Raises
        ------
        KeyError, ValueError
            If a parameter was removed from, or added to, its container behind the optimizer's back.
        """
        for tree in self.objects:
            self._list_again(tree)
        for container, size in self.sized:
            if len(container) != size:
                self._explain_size(container)
        found: list[Entry] = []
        try:
            same = all(map(is_, map(getitem, self.containers, self.keys), self.anchors))
        except (KeyError, IndexError):
            same = False
        if not same:
            for entry in self.held:
                found += self._compare(entry)
            self.__init__(self.entries, self.roots)  # type: ignore[misc]
        for entry in self.holders:
            if entry.anchor.data is not entry.param.data:
                self._adopt(entry, entry.anchor.data)
                found.append(entry)
        for place, entry in enumerate(self.params):
            if entry.param.data is not self.views[place]:
                self.views[place] = entry.param.data
                found.append(entry)
        for entry in self.tensors:
            if entry.param.data.data_ptr() != entry.pointer:
                found.append(entry)
        return list(dict.fromkeys(found))

    def _list_again(self, tree: Tree) -> None:
        known = next((leaf.container for leaf in tree.leaves()), None)
        if known is None:
            return
        current = dict(list_object(tree.source))
        if current.keys() != tree.branches.keys():
            self._explain_size(current, len(tree.branches))
        for leaf in (branch.leaf for branch in tree.branches.values() if branch.leaf is not None):
            leaf.container[leaf.key] = current[leaf.key]

    def _explain_size(self, container: Any, size: int | None = None) -> None:
        names = [entry.name for entry in self.entries]
        raise ValueError(
            f"a container of parameters has {len(container)} entries now, and had {size or 'another number'} when the "
            f"optimizer was built with {', '.join(names[:8])}; use opt.add(...) and opt.remove(name), so that nothing is "
            "left untrained silently"
        )

    def _compare(self, entry: Entry) -> list[Entry]:
        try:
            now = entry.leaf.container[entry.leaf.key]
        except (KeyError, IndexError):
            raise KeyError(
                f"parameter {entry.name!r} is no longer in its container; put it back, or call opt.remove({entry.name!r})"
            ) from None
        if now is entry.anchor:
            return []
        if isinstance(now, Param):
            self._adopt(entry, now.data)
            now.name = entry.name
            entry.param = now
        elif arrays.is_array(now):
            self._adopt(entry, now)
        elif hasattr(now, "data"):
            self._adopt(entry, now.data)
        else:
            raise TypeError(f"parameter {entry.name!r} became {arrays.describe(now)}; use opt.remove({entry.name!r})")
        entry.leaf.value = now
        return [entry]

    def _adopt(self, entry: Entry, array: Any) -> None:
        entry.param.data = array


def _trees(tree: Tree) -> Iterator[Tree]:
    yield tree
    for branch in tree.branches.values():
        yield from _trees(branch)
