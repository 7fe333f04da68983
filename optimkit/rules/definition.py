"""What the body of a rule may say: errors when the class is defined, not when it runs, or never.

    class Bad(Optimizer):
        lr = 1e-3                # no annotation: a dataclass would ignore it

TypeError: Bad.lr = 0.001 has no annotation and would be ignored; write `lr: Scalar = 0.001` ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import typing
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from optimkit.rules.numbers import REQUIRED, Number, as_float


def check_body(cls: type) -> None:
    """Raise TypeError where a name of the class body would be ignored, or hide something.

    Fields without a default become required ones: errors name them when they are left out.
    """
    annotations = _annotations(cls)
    inherited = {name: field for base in cls.__mro__[1:] for name, field in getattr(base, "__dataclass_fields__", {}).items()}
    for name, value in list(vars(cls).items()):
        if name.startswith("_"):
            continue
        if name in annotations or name in inherited:
            _check_no_method(cls, name, value)
        if name == "elementwise":
            _check_truth(cls, name, value)
        elif name not in annotations and (name in inherited or _is_number(value)):
            raise TypeError(_unannotated(cls, name, value))
    for name in annotations:
        if name.startswith("_"):
            continue
        if name not in inherited and "ClassVar" not in str(annotations[name]):
            _check_free(cls, name)
        if name not in vars(cls) and name not in inherited and "ClassVar" not in str(annotations[name]):
            setattr(cls, name, REQUIRED)


def _annotations(cls: type) -> Mapping[str, Any]:
    try:
        return inspect.get_annotations(cls)
    except NameError as error:
        raise TypeError(_unresolved(cls, error)) from error


def name_arguments(cls: Any) -> None:
    """Make the generated `__init__` answer to an unknown argument with those that it knows."""
    made = cls.__init__
    fields = [field for field in dataclasses.fields(cls) if field.init]
    known = [field.name for field in sorted(fields, key=lambda field: bool(field.kw_only))]

    @functools.wraps(made)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        for name in values:
            if name not in known:
                taken = ", ".join(known)
                raise TypeError(f"{cls.__name__} got an unexpected keyword argument {name!r}; it takes {taken}")
        made(self, *args, **values)

    cls.__init__ = __init__


def resolve_hints(cls: type) -> Mapping[str, Any]:
    """The annotations of a class and its bases, with their strings evaluated; those of rules only once."""
    known: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:]):
        known |= vars(base).get("_hints", {})
    own = type(cls.__name__, (), {"__annotations__": dict(_annotations(cls)), "__module__": cls.__module__})
    try:
        with contextlib.suppress(NameError):  # a name of the class body: they are looked up below
            known |= typing.get_type_hints(own, include_extras=True)
            if known.keys() >= {field.name for field in dataclasses.fields(cls)}:
                return known
        return typing.get_type_hints(cls, include_extras=True)
    except Exception as error:  # whatever the text of an annotation raises
        raise TypeError(_unresolved(cls, error)) from error


def _unresolved(cls: type, error: Exception) -> str:
    return (
        f"{cls.__name__}: an annotation can't be resolved ({type(error).__name__}: {error}); import the name at module "
        "level, or drop `from __future__ import annotations` where the class is local"
    )


def _check_no_method(cls: type, name: str, value: Any) -> None:
    is_method = isinstance(value, FunctionType) and value.__qualname__ == f"{cls.__qualname__}.{name}"
    if is_method or isinstance(value, property | staticmethod | classmethod):
        raise TypeError(f"{cls.__name__}.{name} is a field and a method; call one of them otherwise")


def _check_truth(cls: type, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{cls.__name__}.{name} = {value!r} must be True or False")


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, bool) or (isinstance(value, int | float) and as_float(value) is not None)


def _unannotated(cls: type, name: str, value: Any) -> str:
    kind = type(value).__name__
    inherited: list[Mapping[str, Any]] = [getattr(base, "_numbers", {}) for base in cls.__mro__[1:]]
    number = next((numbers[name] for numbers in inherited if name in numbers), None)
    text = f"{cls.__name__}.{name} = {value!r} has no annotation and would be ignored; write "
    if number is not None:
        return f"{text}`{name}: {'tuple[Scalar, ...]' if number.many else 'Scalar'} = {value!r}` for another default"
    if isinstance(value, bool):
        return f"{text}`{name}: bool = {value!r}`"
    declared = f"tuple[{', '.join(['Scalar'] * len(value))}]" if isinstance(value, tuple) else "Scalar"
    return (
        f"{text}`{name}: {declared} = {value!r}` for a number, `{name}: {kind} = {value!r}` for structure, "
        f"`{name}: ClassVar[{kind}] = {value!r}` for a constant of the class"
    )


def _check_free(cls: type, name: str) -> None:
    """Raise where a new field is called like a method, or like something that the driver needs."""
    for base in cls.__mro__[1:]:
        there = vars(base).get(name)
        if name == "elementwise":
            raise TypeError(f"{cls.__name__}.elementwise is no field: write `elementwise = False`, without an annotation")
        if callable(there) or isinstance(there, property) or name in getattr(base, "_reserved", ()):
            raise TypeError(f"{cls.__name__}.{name}: this name is taken by {base.__name__}; call the field otherwise")


def check_default(number: Number, field: dataclasses.Field[Any]) -> None:
    """Give a number its default, which must be in its own range."""
    if field.default is dataclasses.MISSING:
        return
    number.default = field.default
    if field.default is not REQUIRED:
        number.coerce(field.default)
