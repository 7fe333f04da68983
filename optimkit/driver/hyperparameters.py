"""The numbers and the structure of an optimizer, which may differ between its groups of parameters.

A number is kept as it was set, a float or a schedule; what holds in a step is evaluated in that step. Setting means what
reading gives: what is read can be set, and changes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any, ClassVar

from optimkit.containers.param import Where
from optimkit.driver.entries.entry import Entry
from optimkit.driver.entries.group import Group
from optimkit.driver.run import Run
from optimkit.driver.values import number
from optimkit.engines.protocol import Call
from optimkit.rules.links import Transform
from optimkit.rules.numbers import REQUIRED, shown
from optimkit.rules.rule import Rule, exact


class Hyperparameters(Rule, base=True):
    """Numbers and structure of all groups; `Rates` adds what multiplies the learning rate, `Membership` the parameters."""

    _driver_fields: ClassVar[tuple[str, ...]] = ()
    if TYPE_CHECKING:
        _run: ClassVar[Run]  # of each optimizer, not of the class: but so it is no field

    def links(self) -> list[Transform]:
        """Links that a preset puts before the user's transforms."""
        return []

    @classmethod
    def validate(cls, rule: Any) -> None:
        """Check values against each other; raise ValueError with name and value."""

    def __init_subclass__(cls, base: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(base=base, **kwargs)
        for name in cls._own_structure():
            default = getattr(cls, name, REQUIRED)
            setattr(cls, name, _Structure(name, default))

    @classmethod
    def _own_structure(cls) -> tuple[str, ...]:
        return tuple(name for name in cls._structure if name not in cls._driver_fields)

    @classmethod
    def _kernel_fields(cls) -> tuple[str, ...]:
        return cls._own_structure()

    def __getattr__(self, name: str) -> Any:
        kind, own = type(self).__name__, self.__dict__
        if "_run" not in own and "_structure_only" not in own and name.startswith("_") and not name.endswith("__"):
            raise AttributeError(
                f"{kind} is not initialised: where it defines __init__ or __post_init__, these must call "
                "super().__init__(params, ...) and super().__post_init__()"
            )
        raise AttributeError(f"{kind} has no attribute {name!r}")

    # ---- reading

    def _get_number(self, name: str) -> Any:
        run: Run | None = self.__dict__.get("_run")
        if run is None:
            return super()._get_number(name)
        try:
            values = [self._current(group, name) for group in run.groups]
        except AttributeError as error:  # Python would take the number for one that is not there
            what = f"{type(self).__name__}: {name}, given by a schedule, could not be read"
            raise RuntimeError(f"{what}: AttributeError: {error}") from error
        return values[0] if all(value == values[0] for value in values) else values

    def _current(self, group: Group, name: str) -> Any:
        """A number of a group as it is at this step."""
        value = group.values[name]
        now: Any = None
        if isinstance(value, tuple):
            now = tuple(float(number(self._run, group, (0, name, position))) for position in range(len(value)))
        elif value is not None:
            now = float(number(self._run, group, (0, name, None)))
        if _is_scheduled(value):
            group.read[name] = self._run.count, now
        return now

    def _shown(self) -> dict[str, Any]:
        shown = super()._shown()
        for name in (*self._numbers, *self._own_structure()) if "_run" in self.__dict__ else ():
            values = [self._as_shown(group, name) for group in self._run.groups]
            default = getattr(type(self), name)
            if name in self._numbers or not all(type(value) is type(default) and value == default for value in values):
                shown[name] = values[0] if all(value == values[0] for value in values) else values
            else:
                shown.pop(name, None)
        return shown

    def _as_shown(self, group: Group, name: str) -> Any:
        """A value of a group: a number as it is read, a schedule as it was set."""
        value = group.values[name]
        if name == "lr" and callable(value) and group.multiplier != 1.0:
            return _Shown(f"{group.multiplier!r} * {value!r}")
        return self._current(group, name) if isinstance(value, float) and name in self._numbers else value

    # ---- setting

    def set(self, where: Where = None, **values: Any) -> None:
        """Set hyperparameters: of all parameters, or of those that `where` selects.

        Parameters
        ----------
        where : str or callable, optional
            A glob on names, or a predicate on `Param`.
        **values
            Numbers, schedules and structure of the optimizer, by name. State is kept.

        Raises
        ------
        TypeError
            If the optimizer has no hyperparameter of that name; the message lists those it has.
        ValueError
            If a value is out of range, or `where` selects nothing. Nothing is changed.

        Examples
        --------
        >>> import numpy as np, optimkit
        >>> opt = optimkit.Adam({"W": np.ones(3), "b": np.ones(1)}, lr=1e-3)
        >>> opt.set(where="b", lr=1e-2)
        >>> opt.lr
        [0.001, 0.01]
        """
        run = self._run
        with run.lock:
            self._check_known(values, "it has")
            if where is None:
                self._change(run.groups, values)
                return
            run.refuse_in_step("set()")
            chosen = run.select(where)
            groups, split = self._split_off(chosen)
            self._change(groups, values, split)

    def _check_known(self, values: Mapping[str, Any], what: str) -> None:
        known = (*self._numbers, *self._own_structure())
        for name in values:
            if name not in known:
                raise TypeError(f"{type(self).__name__} has no hyperparameter {name!r}; {what} {', '.join(known)}")

    def __setattr__(self, name: str, value: Any) -> None:
        if "_run" in self.__dict__ and (name in self._numbers or name in self._own_structure()):
            with self._run.lock:
                self._change(self._run.groups, {name: value})
        elif "_run" in self.__dict__ and name in self._driver_fields:
            raise AttributeError(f"{type(self).__name__}.{name} is set when the optimizer is built")
        else:
            super().__setattr__(name, value)

    def _change(self, groups: list[Group], values: Mapping[str, Any], split: Sequence[Call] | None = None) -> None:
        """Set values; all are checked, also against each other, before any is taken.

        `split` makes the groups, where they are some of the parameters alone; else a list has a value for each.
        """
        changes: list[dict[str, Any]] = [{} for _ in groups]
        for name, value in values.items():
            for change, group, each in zip(changes, groups, self._for_groups(name, value, groups, split is None), strict=True):
                change.update(self._changed(group, name, each))
        self._check(groups, changes)
        structure = bool(split) or any(
            name not in self._numbers or name in self._starts or (group.values[name] is None) != (value is None)
            for group, change in zip(groups, changes, strict=True)
            for name, value in change.items()
        )
        if structure:
            self._run.refuse_in_step("set()")
        ended = {name: old for group, change in zip(groups, changes, strict=True) for name, old in _schedules(group, change)}
        for name, old in ended.items():
            also = "; opt.scale_lr(factor) multiplies it, and lets it go on" if name == "lr" else ""
            kind = type(self).__name__
            told = f"{kind}: the schedule {shown(old)} of {name} was replaced by a number{also}"
            warnings.warn(told, RuntimeWarning, stacklevel=4)
        calls = [call for group, change in zip(groups, changes, strict=True) for call in group.taking(change)]
        if groups is self._run.groups and self._run.first not in groups:  # no parameter has it: what comes is as the others
            calls += self._run.first.taking(changes[0])
        self._run.change([*(split or ()), *calls], structure)

    def _for_groups(self, name: str, value: Any, groups: list[Group], listed: bool) -> list[Any]:
        """A value for each group: what is read of groups that differ is a list, and may be set."""
        number = self._numbers.get(name)
        own = listed and len(groups) > 1 and isinstance(value, list)
        if not own or (number is not None and number.many and not all(isinstance(each, list | tuple) for each in value)):
            coerced = number.coerce(value) if number is not None else self._coerce(name, value)
            return [coerced] * len(groups)
        if len(value) != len(groups):
            what = f"{type(self).__name__}: {name} = {shown(value)}"
            raise ValueError(f"{what} must be one value, or a list of {len(groups)}, one for each group")
        return [self._coerce(name, each) for each in value]

    def _changed(self, group: Group, name: str, value: Any) -> dict[str, Any]:
        """What setting a value changes in a group: nothing, where it is what is read there."""
        old = group.values[name]
        if name not in self._numbers:
            return {} if exact(old) == exact(value) else {name: value}
        if value is old and (value is None or callable(value)):
            return {}
        current = self._as_read(group, name)
        if isinstance(value, tuple) and isinstance(old, tuple):
            current = current if isinstance(current, tuple) else old
            kept = (was if was is new or now == new else new for was, now, new in zip(old, current, value, strict=True))
            value = tuple(kept)
            return {} if all(map(is_, value, old)) else {name: value}
        return {} if not callable(value) and value is not None and value == current else {name: value}

    def _as_read(self, group: Group, name: str) -> Any:
        """What is read of a number now; None for a schedule that was not read in this step: setting calls none."""
        value = group.values[name]
        if isinstance(value, float) and (name != "lr" or group.multiplier == 1.0):
            return value
        if not _is_scheduled(value):
            return self._current(group, name)
        count, now = group.read.get(name, (None, None))
        return now if count == self._run.count else None

    def _check(self, groups: list[Group], changes: Sequence[Mapping[str, Any]]) -> None:
        """Raise unless values may be set."""
        kind = type(self)
        for group, change in zip(groups, changes, strict=True):
            self.validate(group.rule(kind, change))
            rate = change.get("lr")
            if isinstance(rate, float) and not group.product:
                raise ValueError(
                    f"{kind.__name__}: lr = {rate!r} can't be set while a scheduler's factor is 0: what it multiplies is not "
                    "known from it; use opt.scale_lr(factor), or set the rate before or after"
                )

    # ---- groups

    def _make_group(self, own: Mapping[str, Any]) -> Group:
        self._check_known(own, "a group may set")
        coerced = {name: self._coerce(name, value) for name, value in own.items()}
        first = self._run.first
        group = Group({**first.values, **coerced}, dict(first.factors)) if "lr" in own else first.copied(coerced)
        self.validate(group.rule(type(self)))
        return group

    def _split_off(self, chosen: list[Entry]) -> tuple[list[Group], list[Call]]:
        """Groups that hold exactly the parameters that were chosen, and what makes them so."""
        run, found, came = self._run, [], []
        calls: list[Call] = []
        for group in run.groups:
            inside = [entry for entry in chosen if entry.group is group]
            if not inside:
                continue
            if len(inside) == sum(entry.group is group for entry in run.entries):
                found.append(group)
                continue
            new = group.copied({})
            calls += [partial(setattr, entry, "group", new) for entry in inside]
            came.append(new)
            found.append(new)
        if came:
            calls.append(partial(setattr, run, "groups", [*run.groups, *came]))
        return found, calls


class _Shown(str):
    """What a repr shows as it is."""

    __slots__ = ()
    __repr__ = str.__str__


class _Structure:
    """A field that is structure: what its groups have, a list where they differ."""

    def __init__(self, name: str, default: Any) -> None:
        self.name, self.default = name, default

    def __get__(self, rule: Any, cls: type | None = None) -> Any:
        if rule is None:
            return self.default
        own = rule.__dict__
        if "_run" not in own:
            if self.name not in own:
                raise AttributeError(f"{type(rule).__name__} has no value for {self.name} yet")
            return own[self.name]
        values = [group.values[self.name] for group in own["_run"].groups]
        return values[0] if len({exact(value) for value in values}) == 1 else values

    def __set__(self, rule: Any, value: Any) -> None:
        rule.__dict__[self.name] = value


def _is_scheduled(value: Any) -> bool:
    """Whether a number, or one of several, is given by a schedule."""
    return any(map(callable, value)) if isinstance(value, tuple) else callable(value)


def _schedules(group: Group, change: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schedules that a change would end, by setting numbers."""
    for name, value in change.items():
        pairs = zip(group.values[name], value, strict=True) if isinstance(value, tuple) else ((group.values[name], value),)
        for old, new in pairs if not isinstance(group.values[name], str) else ():
            if callable(old) and isinstance(new, float):
                yield name, old
