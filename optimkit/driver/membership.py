"""Which parameters an optimizer has, in which groups, and the numbers of the groups."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import numpy as np

from optimkit import arrays
from optimkit.driver import state
from optimkit.driver.build import chain_of
from optimkit.driver.entries import Entry, Group
from optimkit.driver.gradients import own_gradient
from optimkit.driver.overlaps import check_weights
from optimkit.numbers import coerce_number
from optimkit.params import Leaf, Param, Tree, Where, check_names, is_holder, matches, read_tree
from optimkit.rule import Rule, Transform, check_where

_TAKEN = """add apply bind count explain freeze get_lr init links load_state_dict names params remove replace reset set set_lr
slots state state_dict step unfreeze update validate zero_grad penalty transforms maximize nonfinite engine t""".split()


class Membership(Rule, base=True):
    """Parameters, groups and numbers of an optimizer; `Optimizer` adds the step."""

    _reserved: ClassVar[frozenset[str]] = frozenset(_TAKEN)
    _driver_fields: ClassVar[tuple[str, ...]] = ()

    def links(self) -> list[Transform]:
        """Links that a preset puts before the user's transforms."""
        return []

    @classmethod
    def validate(cls, rule: Any) -> None:
        """Check values against each other; raise ValueError with name and value."""

    @classmethod
    def _own_structure(cls) -> tuple[str, ...]:
        return tuple(name for name in cls._structure if name not in cls._driver_fields)

    @classmethod
    def _kernel_fields(cls) -> tuple[str, ...]:
        return cls._own_structure()

    # ---- parameters

    def bind(self, params: Any) -> Any:
        """Give an optimizer that was built without parameters its parameters; returns the optimizer."""
        with self._lock:
            if self._entries:
                raise ValueError(f"{type(self).__name__} has parameters already; use opt.add(...) for more")
            self._attach(params, self._groups[0], {})
            return self

    def add(self, params: Any, **values: Any) -> None:
        """Add parameters, to the first group, or with values of their own: `opt.add(new, lr=1e-4)`."""
        with self._lock:
            self._attach(params, self._groups[0], values)

    def _attach(self, params: Any, default: Group, values: Mapping[str, Any]) -> None:
        specifications = _split_groups(params)
        found: list[tuple[Group, Tree]] = []
        prefixed = len(specifications) > 1
        for number, (source, own) in enumerate(specifications):
            merged = {**values, **own}
            group = self._make_group(merged) if merged else default
            name = str(number) if prefixed and not isinstance(source, Mapping) else ""
            found.append((group, read_tree(source, name)))
        leaves = [leaf for _, tree in found for leaf in tree.leaves()]
        check_names([*(entry.leaf for entry in self._entries), *leaves])
        added = [_make_entry(leaf, group) for group, tree in found for leaf in tree.leaves()]
        check_weights([*self._entries, *added])
        for entry in added:
            entry.param.name = entry.name
        self.__dict__["_entries"] = [*self._entries, *added]
        self.__dict__["_roots"] = [*self._roots, *(tree for _, tree in found)]
        groups = [*self._groups, *(group for group, _ in found)]
        used = {id(entry.group) for entry in self._entries}
        self.__dict__["_groups"] = list(dict.fromkeys(g for g in groups if id(g) in used)) or [default]
        self._forget()

    def _make_group(self, own: Mapping[str, Any]) -> Group:
        known = (*self._numbers, *self._own_structure())
        base = self._groups[0].values
        values = dict(base)
        for name, value in own.items():
            if name not in known:
                raise TypeError(f"{type(self).__name__} has no hyperparameter {name!r}; a group may set {', '.join(known)}")
            values[name] = self._numbers[name].coerce(value) if name in self._numbers else value
        group = Group(values, dict(self._groups[0].factors))
        self.validate(group.rule(type(self)))
        return group

    def remove(self, name: str) -> None:
        """Remove a parameter and its state. Take it out of its container too."""
        with self._lock:
            entry = self._entry(name)
            self.__dict__["_entries"] = [other for other in self._entries if other is not entry]
            self.__dict__["_roots"] = [tree for tree in (_without(root, name) for root in self._roots) if tree is not None]
            self._forget()

    def replace(self, name: str, new: Any, state: str | Callable[[Any], Any] = "keep") -> None:
        """Put another array in a parameter's place, of another shape or dtype too.

        Parameters
        ----------
        name : str
            The parameter.
        new : array
            The new weight. The caller's container is updated.
        state : {"keep", "reset"} or callable
            What becomes of the slots: kept (same shape), started anew, or each one, an array of the
            old weight's shape, mapped by a function to one of the new shape.
        """
        with self._lock:
            entry = self._entry(name)
            self._set_array(entry, new, state)

    def _set_array(self, entry: Entry, new: Any, how: Any) -> None:
        old = {key: arrays.to_numpy(entry.value(key)).copy() for key in entry.slots}
        if how == "keep" and tuple(new.shape) != entry.param.shape:
            raise ValueError(
                f"parameter {entry.name!r} has shape {entry.param.shape}, the new array {tuple(new.shape)}: its state can't be "
                "kept; use state='reset', or a function that maps each slot"
            )
        if not (how in ("keep", "reset") or callable(how)):
            raise ValueError(f"state = {how!r} must be 'keep', 'reset' or a function of a slot's array")
        param = Param(new, None, entry.name)
        others = [other for other in self._entries if other is not entry]
        fresh = Entry(entry.name, param, entry.group, entry.leaf)
        check_weights([*others, fresh])
        mapped = {} if how == "reset" else {key: how(x) if callable(how) else x for key, x in old.items()}
        chain = chain_of(type(self), entry.group, self._links, fresh, self.maximize)
        fresh.ensure_slots(chain)
        for key, x in mapped.items():
            if tuple(np.shape(x)) != param.shape:
                raise ValueError(f"the function given as state made {key[1]!r} of shape {np.shape(x)}, not {param.shape}")
            fresh.set_value(key, x)
        anchor = entry.anchor
        if isinstance(anchor, Param):
            anchor.__init__(new, None, anchor.name)  # type: ignore[misc]
            fresh.param = anchor
        elif is_holder(anchor):
            anchor.data = new
        elif entry.leaf.container is not None:
            entry.leaf.container[entry.leaf.key] = new
            entry.leaf.value = new
        else:
            entry.leaf.value = new
        entry.param, entry.slots = fresh.param, fresh.slots
        entry.take_data()
        if how == "reset":
            entry.uniforms, entry.t = fresh.uniforms, 0
        self._forget()

    def reset(self, where: Where = None) -> None:
        """Forget the state and the update counts of parameters: all, or those that `where` selects."""
        with self._lock:
            for entry in self._select(where):
                entry.slots.clear()
                entry.uniforms.clear()
                entry.t = 0
            if where is None:
                self._shared.clear()
            self._forget()

    def freeze(self, where: Where = None) -> None:
        """Leave parameters as they are, as if they had no gradient: all, or those that `where` selects."""
        for entry in self._select(where):
            entry.frozen = True

    def unfreeze(self, where: Where = None) -> None:
        """Undo `freeze`."""
        for entry in self._select(where):
            entry.frozen = False

    def _select(self, where: Where) -> list[Entry]:
        check_where(where)
        self._store_counts()
        chosen = [entry for entry in self._entries if matches(where, entry.param)]
        if not chosen:
            raise ValueError(f"where = {where!r} selects none of the parameters {', '.join(self.names)}")
        return chosen

    def _entry(self, name: str) -> Entry:
        self._store_counts()
        for entry in self._entries:
            if entry.name == name:
                return entry
        raise KeyError(f"there is no parameter {name!r}; there are {', '.join(self.names) or 'none yet'}")

    def __getitem__(self, name: str) -> Param:
        return self._entry(name).param

    @property
    def names(self) -> list[str]:
        """The names of the parameters, in order."""
        return [entry.name for entry in self._entries]

    @property
    def count(self) -> int:
        """How often `step` was called; what schedules are called with."""
        return int(self._count)

    def _require_entries(self) -> None:
        if not self._entries:
            raise RuntimeError(f"{type(self).__name__} has no parameters yet; call opt.bind(params)")

    def _relayout(self, entry: Entry) -> None:
        """The weight has another memory order now: bring its slots into it."""
        self._store_counts()
        assert entry.layout_before is not None
        for key, flat in entry.slots.items():
            seen = entry.layout_before.restore(flat, entry.param.shape)
            entry.slots[key] = entry.layout.apply(seen).copy().reshape(-1)
        self._forget()

    def _forget(self) -> None:
        """Structure changed: buckets and lists are made anew at the next step."""
        self._store_counts()
        if self._gradients is not None:
            self.__dict__["_ever"] = self._gradients.ever
        self.__dict__.update(_buckets=None, _gradients=None, _sources=None)

    def _store_counts(self) -> None:
        for bucket in self._buckets or ():
            bucket.store_counts()

    # ---- gradients at the parameters

    def _zero_own(self, set_to_none: bool) -> None:
        self._require_entries()
        found = [(entry, own_gradient(entry)) for entry in self._entries]
        if all(gradient is None for _, gradient in found) and self._gradients is not None and not set_to_none:
            if any(view is not None for view in self._views):
                raise RuntimeError(
                    "zero_grad() found no gradients in .grad; gradients passed to step(grads) are the caller's: "
                    "use step(grads, zero_grad=True)"
                )
        for entry, gradient in found:
            if gradient is None:
                continue
            if not set_to_none:
                gradient[...] = 0.0
            elif entry.param.grad is gradient:
                entry.param.grad = None
            else:
                entry.anchor.grad = None

    # ---- numbers

    def _get_number(self, name: str) -> Any:
        groups = self.__dict__.get("_groups")
        if groups is None:
            return super()._get_number(name)
        values = [self._current(group, name) for group in groups]
        return values[0] if all(value == values[0] for value in values) else values

    def _current(self, group: Group, name: str) -> Any:
        value = group.values[name]
        if isinstance(value, tuple):
            return tuple(self._evaluate(group, name, position, each) for position, each in enumerate(value))
        return None if value is None else self._evaluate(group, name, None, value)

    def _evaluate(self, group: Group, name: str, position: int | None, value: Any) -> float:
        """A number as it is at this step: the schedule's value, times the schedulers' factors for lr."""
        if callable(value):
            what = f"{type(self).__name__}: {name}, given by {value!r} for step {self._count},"
            value = coerce_number(what, value(self._count), self._numbers[name].range_of(position))
        if name == "lr":
            for factor in group.factors.values():
                value = value * factor
        return float(value)

    def _number(self, group: Group, key: Hashable) -> float:
        """The value of a number of the chain in this step; `key` is (rule, name, position)."""
        index, name, position = key  # type: ignore[misc]
        if index == 0:
            value = group.values[name]
            return self._evaluate(group, name, position, value if position is None else value[position])
        link = self._links[index - 1]
        value = link.__dict__[name] if position is None else link.__dict__[name][position]
        if callable(value):
            what = f"{type(link).__name__}: {name}, given by {value!r} for step {self._count},"
            return float(coerce_number(what, value(self._count), link._numbers[name].range_of(position)))
        return float(value)

    def _set_number(self, name: str, value: Any) -> None:
        groups = self.__dict__.get("_groups")
        if groups is None:
            super()._set_number(name, value)
            return
        self._change(groups, {name: value})

    def set(self, where: Where = None, **values: Any) -> None:
        """Set hyperparameters: of all parameters, or of those that `where` selects.

        Examples
        --------
        >>> import numpy as np, optimkit
        >>> opt = optimkit.Adam({"W": np.ones(3), "b": np.ones(1)}, lr=1e-3)
        >>> opt.set(where="b", lr=1e-2)
        >>> opt.lr
        [0.001, 0.01]
        """
        with self._lock:
            known = (*self._numbers, *self._own_structure())
            for name in values:
                if name not in known:
                    raise TypeError(f"{type(self).__name__} has no hyperparameter {name!r}; it has {', '.join(known)}")
            coerced = {name: self._numbers[name].coerce(x) if name in self._numbers else x for name, x in values.items()}
            groups = self._groups if where is None else self._split_off(where)
            self._change(groups, coerced)

    def _add_factor(self, factor: float) -> int:
        """Multiply the learning rate by a factor that a scheduler sets; its key for `_set_factor`.

        Keys count up, so they mean the same in a copy or a pickle.
        """
        with self._lock:
            if "lr" not in self._numbers:
                raise TypeError(f"{type(self).__name__} has no number lr that could be scheduled; it has {', '.join(self._numbers)}")
            key = 1 + max(self._groups[0].factors, default=-1)
            self._set_factor(key, factor)
            return key

    def _set_factor(self, key: int, factor: float) -> None:
        """Set a factor of the learning rate in all groups; groups made later copy it."""
        with self._lock:
            for group in self._groups:
                group.factors[key] = factor

    def _split_off(self, where: Where) -> list[Group]:
        """Groups that hold exactly the parameters that `where` selects."""
        chosen = self._select(where)
        result = []
        for group in list(self._groups):
            inside = [entry for entry in chosen if entry.group is group]
            if not inside:
                continue
            if len(inside) == sum(entry.group is group for entry in self._entries):
                result.append(group)
                continue
            new = Group(dict(group.values), dict(group.factors))
            for entry in inside:
                entry.group = new
            self._groups.append(new)
            result.append(new)
        self._forget()
        return result

    def _change(self, groups: list[Group], values: Mapping[str, Any]) -> None:
        changed = [{**group.values, **values} for group in groups]
        for each in changed:
            self.validate(Group(each).rule(type(self)))
        structure = any(name not in self._numbers for name in values)
        structure = structure or any((group.values[name] is None) != (value is None) for group in groups for name, value in values.items())
        for group, each in zip(groups, changed, strict=True):
            group.values.update(each)
        if structure:
            self._forget()

    def __setattr__(self, name: str, value: Any) -> None:
        if "_groups" in self.__dict__ and name in self._own_structure():
            self._change(self._groups, {name: value})
            self.__dict__[name] = value
            return
        if "_groups" in self.__dict__ and name in self._driver_fields:
            raise AttributeError(f"{type(self).__name__}.{name} is set when the optimizer is built")
        super().__setattr__(name, value)

    # ---- state

    @property
    def state(self) -> state.StateView:
        """A live view of the state: `opt.state["psi"]["m"]` is an array that the next step reads."""
        self._store_counts()
        return state.StateView(self)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state and the numbers, by name."""
        return state.state_dict(self)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over a copy of a saved state.

        Raises
        ------
        ValueError
            If it does not fit; the message lists every difference, and nothing is changed.
        """
        state.load_state_dict(self, saved)

    def __getstate__(self) -> dict[str, Any]:
        return state.pack(self)

    def __setstate__(self, packed: dict[str, Any]) -> None:
        state.unpack(self, packed)


def _split_groups(params: Any) -> list[tuple[Any, dict[str, Any]]]:
    """(parameters, values) of each group; one group if there are no group dicts."""
    if isinstance(params, list | tuple) and params and all(isinstance(g, Mapping) and "params" in g for g in params):
        return [(g["params"], {key: value for key, value in g.items() if key != "params"}) for g in params]
    return [(params, {})]


def _make_entry(leaf: Leaf, group: Group) -> Entry:
    value = leaf.value
    if isinstance(value, Param):
        return Entry(leaf.name, value, group, leaf)
    array = value.data if is_holder(value) else value
    return Entry(leaf.name, Param(array, None, leaf.name), group, leaf)


def _without(tree: Tree, name: str) -> Tree | None:
    if tree.leaf is not None:
        return None if tree.leaf.name == name else tree
    rest = {key: kept for key, kept in ((key, _without(branch, name)) for key, branch in tree.branches.items()) if kept}
    return Tree(tree.kind, tree.source, rest) if rest else None
