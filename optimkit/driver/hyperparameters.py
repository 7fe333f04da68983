"""The numbers and the structure of an optimizer, which may differ between its groups of parameters.

A number is kept as it was set, a float or a schedule; what holds in a step is evaluated in that step. A
scheduler multiplies the learning rate by a factor of its own, so that several compose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from optimkit.containers.param import Where
from optimkit.driver.entries.entry import Entry
from optimkit.driver.entries.group import Group
from optimkit.driver.run import Run
from optimkit.rules.links import Transform
from optimkit.rules.rule import Rule


class Hyperparameters(Rule, base=True):
    """Numbers and structure of all groups; `Membership` adds the parameters, `Optimizer` the step."""

    _driver_fields: ClassVar[tuple[str, ...]] = ()
    if TYPE_CHECKING:
        _run: ClassVar[Run]  # of each optimizer, not of the class: but so it is no field

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
        values = [self._current(group, name) for group in run.groups]
        return values[0] if all(value == values[0] for value in values) else values

    def _current(self, group: Group, name: str) -> Any:
        """A number of a group as it is at this step."""
        value = group.values[name]
        if isinstance(value, tuple):
            return tuple(float(self._run.number(group, (0, name, position))) for position in range(len(value)))
        return None if value is None else float(self._run.number(group, (0, name, None)))

    def _shown(self) -> dict[str, Any]:
        shown = super()._shown()
        for name in (*self._numbers, *self._own_structure()) if "_run" in self.__dict__ else ():
            values = [group.values[name] for group in self._run.groups]
            if name in shown or len(values) > 1:
                shown[name] = values[0] if all(value == values[0] for value in values) else values
        return shown

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
            coerced = self._coerce_all(values, f"{type(self).__name__} has no hyperparameter {{!r}}; it has {{}}")
            if where is None:
                self._change(run.groups, coerced)
                return
            run.refuse_in_step("set()")
            chosen = run.select(where)
            for group in dict.fromkeys(entry.group for entry in chosen):
                self.validate(Group({**group.values, **coerced}).rule(type(self)))
            self._change(self._split_off(chosen), coerced)

    def _coerce_all(self, values: Mapping[str, Any], unknown: str) -> dict[str, Any]:
        known = (*self._numbers, *self._own_structure())
        for name in values:
            if name not in known:
                raise TypeError(unknown.format(name, ", ".join(known)))
        return {name: self._coerce(name, value) for name, value in values.items()}

    def _set_number(self, name: str, value: Any) -> None:
        if "_run" not in self.__dict__:
            super()._set_number(name, value)
            return
        with self._run.lock:
            self._change(self._run.groups, {name: value})

    def __setattr__(self, name: str, value: Any) -> None:
        if "_run" in self.__dict__ and name in self._own_structure():
            with self._run.lock:
                value = self._coerce(name, value)
                self._change(self._run.groups, {name: value})
                self.__dict__[name] = value
            return
        if "_run" in self.__dict__ and name in self._driver_fields:
            raise AttributeError(f"{type(self).__name__}.{name} is set when the optimizer is built")
        super().__setattr__(name, value)

    def _change(self, groups: list[Group], values: Mapping[str, Any]) -> None:
        """Take over coerced values; all are checked against each other before any is taken."""
        changed = [{**group.values, **values} for group in groups]
        for each in changed:
            self.validate(Group(each).rule(type(self)))
        structure = any(name not in self._numbers for name in values)
        for name, value in values.items():
            structure = structure or any((group.values[name] is None) != (value is None) for group in groups)
        if structure:
            self._run.refuse_in_step("set()")
        for group, each in zip(groups, changed, strict=True):
            group.values.update(each)
        if structure:
            self._run.forget()

    # ---- groups

    def _make_group(self, own: Mapping[str, Any]) -> Group:
        coerced = self._coerce_all(own, f"{type(self).__name__} has no hyperparameter {{!r}}; a group may set {{}}")
        first = self._run.groups[0]
        group = Group({**first.values, **coerced}, dict(first.factors))
        self.validate(group.rule(type(self)))
        return group

    def _split_off(self, chosen: list[Entry]) -> list[Group]:
        """Groups that hold exactly the parameters that were chosen."""
        run, result = self._run, []
        for group in list(run.groups):
            inside = [entry for entry in chosen if entry.group is group]
            if not inside:
                continue
            if len(inside) == sum(entry.group is group for entry in run.entries):
                result.append(group)
                continue
            new = Group(dict(group.values), dict(group.factors))
            for entry in inside:
                entry.group = new
            run.groups.append(new)
            result.append(new)
        run.forget()
        return result

    # ---- factors of the learning rate

    def _add_factor(self, factor: float) -> int:
        """Multiply the learning rate by a factor that a scheduler sets; its key for `_set_factor`.

        Keys count up, so they mean the same in a copy or a pickle.
        """
        with self._run.lock:
            if "lr" not in self._numbers:
                known = ", ".join(self._numbers)
                raise TypeError(f"{type(self).__name__} has no number lr that could be scheduled; it has {known}")
            key = 1 + max(self._run.groups[0].factors, default=-1)
            self._set_factor(key, factor)
            return key

    def _set_factor(self, key: int, factor: float) -> None:
        """Set a factor of the learning rate in all groups; groups made later copy it."""
        with self._run.lock:
            for group in self._run.groups:
                group.factors[key] = factor
