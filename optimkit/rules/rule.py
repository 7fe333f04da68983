"""Rules: what optimizers, transforms and penalties are made of.

A rule declares its numbers (fields annotated `Scalar`), its structure (every other field), its
state (`slots`), and has pure methods that compute. An optimizer in three short steps:

    class SignMomentum(Optimizer):
        lr: Scalar = 1e-3                                            # 1. its numbers
        beta: Scalar = 0.9

        def slots(self):                                             # 2. its state
            return {"m": zeros}

        def update(self, w, g, s, h, xp):                            # 3. its update: the step and the new state
            m = h.beta * s.m + (1 - h.beta) * g
            return h.lr * xp.sign(m), {"m": m}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform

from optimkit.rules.definition import check_body, check_default, name_arguments, resolve_hints
from optimkit.rules.numbers import REQUIRED, Follow, Number, parse_annotation, shown
from optimkit.rules.slots import Slot


@dataclass_transform(eq_default=False, field_specifiers=(dataclasses.field,))
class Rule:
    """What optimizers, transforms and penalties share: declared numbers, structure and state.

    A subclass becomes a dataclass when it is defined. Fields annotated `Scalar` are numbers:
    taken by `float()`, checked against their range, or a schedule; they never recompile
    anything. Every other field is structure: hashable, part of the kernel's key. A field without
    a default is required.

    Raises
    ------
    TypeError
        When the class is defined: an unannotated number, a field that is called like a method, an
        annotation that can't be resolved. When it is used: a missing field, an unknown one.
    ValueError
        If a number is out of range.
    """

    elementwise: ClassVar[bool] = True
    """False: the hooks get whole arrays of their namespace, in the weight's shape, and are called in every step."""

    _hints: ClassVar[Mapping[str, Any]] = {}
    _numbers: ClassVar[dict[str, Number]] = {}
    _structure: ClassVar[tuple[str, ...]] = ()
    _flags: ClassVar[frozenset[str]] = frozenset()
    _starts: ClassVar[frozenset[str]] = frozenset()  # the numbers that slots start from
    _reserved: ClassVar[frozenset[str]] = frozenset({"slots", "elementwise", "t"})  # names that fields can't have

    def __init_subclass__(cls, base: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if base:
            cls._reserved = cls._reserved | {name for name in vars(cls) if not name.startswith("_")}
        else:
            check_body(cls)
        own_init = "__init__" in vars(cls)
        dataclass(eq=False, repr=False)(cls)
        if not own_init:
            name_arguments(cls)
        hints = cls._hints = resolve_hints(cls)
        numbers, structure = {}, []
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            number = parse_annotation(cls.__name__, field.name, hints[field.name])
            if number is None:
                structure.append(field.name)
            else:
                check_default(number, field)
                numbers[field.name] = number
                setattr(cls, field.name, number)
        cls._numbers, cls._structure = numbers, tuple(structure)
        cls._flags = frozenset(name for name in structure if hints[name] is bool)

    def slots(self) -> dict[str, Slot]:
        """The state of the rule: names and kinds. None by default."""
        return {}

    def _ask_slots(self) -> Any:
        """What `slots` gives; the numbers that it reads say how slots start, and are remembered for the class."""
        read = self.__dict__["_read"] = set[str]()
        try:
            return self.slots()
        finally:
            self.__dict__.pop("_read", None)
            if not read <= type(self)._starts:
                type(self)._starts = type(self)._starts | read

    def _hooks(self) -> tuple[str, ...]:
        """The methods that compute, as far as the rule has them."""
        return ()

    @classmethod
    def _coerce(cls, name: str, value: Any) -> Any:
        """A value of a field as it is kept, or an error that names it."""
        if name in cls._numbers:
            return cls._numbers[name].coerce(value)
        if value is REQUIRED:
            raise TypeError(f"{cls.__name__} needs {name}, such as {cls.__name__}(..., {name}=...)")
        if name in cls._flags:
            if type(value).__name__ not in ("bool", "bool_"):
                raise TypeError(f"{cls.__name__}: {name} = {shown(value)} must be True or False")
            return bool(value)
        if name in cls._kernel_fields():
            try:
                hash(value)
            except TypeError:
                raise TypeError(
                    f"{cls.__name__}: {name} = {shown(value)} is structure, part of a kernel's key, and must be hashable: a "
                    "tuple in the place of a list; arrays belong into slots, numbers that change into fields annotated Scalar"
                ) from None
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._numbers and name not in self._structure and not name.startswith("_"):
            known = ", ".join((*self._numbers, *self._structure))
            raise AttributeError(f"{type(self).__name__} has no field {name!r}; it has {known}")
        if self.__dict__.get("_structure_only"):
            kind = type(self).__name__
            raise TypeError(f"{kind}: self.{name} = ... in an update; rules are pure: return new values of slots")
        if name in self._structure:
            value = self._coerce(name, value)
            self._structure_changed()
        object.__setattr__(self, name, value)

    def _structure_changed(self) -> None:
        self.__dict__["_version"] = self.__dict__.get("_version", 0) + 1

    def _get_number(self, name: str) -> Any:
        if "_read" in self.__dict__:
            self.__dict__["_read"].add(name)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no value for {name} yet") from None

    def _set_number(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        if (before is None) != (value is None) or isinstance(before, Follow) or name in self._starts:
            self._structure_changed()
        self.__dict__[name] = value

    def _structure_key(self) -> Hashable:
        """What of this rule a kernel depends on: its class, structure, and which numbers are None."""
        absent = tuple(name for name, number in self._numbers.items() if number.optional and self.__dict__[name] is None)
        values = tuple((name, exact(self.__dict__[name])) for name in self._kernel_fields())
        follows = tuple((name, self.__dict__[name]) for name in self._numbers if isinstance(self.__dict__[name], Follow))
        return type(self), values, absent, follows

    @classmethod
    def _kernel_fields(cls) -> tuple[str, ...]:
        return cls._structure

    def _structure_only(self) -> Any:
        """This rule as its own `update` sees it while traced: structure, no numbers."""
        bare = object.__new__(type(self))
        bare.__dict__.update({name: self.__dict__[name] for name in self._structure if name in self.__dict__})
        bare.__dict__["_structure_only"] = True
        return bare

    def _shown(self) -> dict[str, Any]:
        """The fields that a repr shows: all numbers, and structure that is not the default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        own = self.__dict__
        structure = [name for name in self._structure if name in own and not _same(own[name], defaults[name])]
        return {name: own[name] for name in (*self._numbers, *structure) if name in own}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._shown().items())})"


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, str | int | float | tuple) and a == b)


def exact(value: Any) -> Hashable:
    """A value as a key that equals that of no other: 0.0 and -0.0, (1,) and (1.0,) are equal in Python."""
    if isinstance(value, tuple):
        return type(value), *map(exact, value)
    if isinstance(value, frozenset):
        return type(value), frozenset(map(exact, value))
    return type(value), repr(value) if isinstance(value, float | complex) else value
