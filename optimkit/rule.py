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
from collections.abc import Callable, Hashable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform

from optimkit.definition import check_body, check_default, name_arguments, resolve_hints
from optimkit.fusion.trace import Namespace
from optimkit.numbers import REQUIRED, Follow, Fraction, Number, Scalar, as_float, parse_annotation, shown

__all__ = ["Fraction", "Penalty", "Rule", "Scalar", "Slot", "Transform", "abs2", "copy_of_weight", "full", "norm"]
__all__ += ["total", "total_norm", "zeros", "zeros_real"]


@dataclass(frozen=True)
class Slot:
    """One piece of a rule's state.

    Parameters
    ----------
    kind : {"zeros", "full", "copy_of_weight"}
        What it starts as.
    value : float
        What a "full" slot starts as.
    extent : {"element", "parameter", "optimizer"}
        One value per element (in the compute dtype), per parameter or per optimizer (float64).
    is_real : bool
        Real also for complex weights.
    """

    kind: str
    value: float = 0.0
    extent: str = "element"
    is_real: bool = False

    def per(self, extent: str) -> Slot:
        """The same slot with another extent: `zeros.per("optimizer")`."""
        if extent not in ("element", "parameter", "optimizer"):
            raise ValueError(f"extent = {extent!r} must be 'element', 'parameter' or 'optimizer'")
        if extent != "element" and self.kind == "copy_of_weight":
            raise ValueError("copy_of_weight has one value per element; use zeros or full(...) for other extents")
        return dataclasses.replace(self, extent=extent)

    def real(self) -> Slot:
        """The same slot, real also for complex weights."""
        return dataclasses.replace(self, is_real=True)


zeros = Slot("zeros")
zeros_real = Slot("zeros").real()
copy_of_weight = Slot("copy_of_weight")


def full(value: float) -> Slot:
    """A slot that starts with `value` everywhere."""
    number = as_float(value)
    if number is None:
        raise ValueError(f"full({value!r}): a slot starts with a number")
    return Slot("full", number)


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

    _hints: ClassVar[Mapping[str, Any]] = {}
    _numbers: ClassVar[dict[str, Number]] = {}
    _structure: ClassVar[tuple[str, ...]] = ()
    _flags: ClassVar[frozenset[str]] = frozenset()
    _reserved: ClassVar[frozenset[str]] = frozenset({"slots"})

    def __init_subclass__(cls, base: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not base:  # the classes that define the taken names
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
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no value for {name} yet") from None

    def _set_number(self, name: str, value: Any) -> None:
        if (self.__dict__.get(name) is None) != (value is None) or isinstance(self.__dict__.get(name), Follow):
            self._structure_changed()
        self.__dict__[name] = value

    def _structure_key(self) -> Hashable:
        """What of this rule a kernel depends on: its class, structure, and which numbers are None."""
        absent = tuple(name for name, number in self._numbers.items() if number.optional and self.__dict__[name] is None)
        values = tuple((name, type(self.__dict__[name]), self.__dict__[name]) for name in self._kernel_fields())
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


class Transform(Rule, base=True):
    """A small rule that changes the gradient, the step or the new weight of an optimizer.

    Override any of the three hooks. Each returns its value, or (value, {slot: new}) if the rule
    has slots. `h` has the rule's own numbers, `h.lr` and `h.t`.

    Parameters
    ----------
    where : str or callable, optional
        The parameters it applies to: a glob on names, or a predicate on `Param`. All by default.
    """

    where: str | Callable[[Any], bool] | None = dataclasses.field(default=None, kw_only=True)

    _reserved = frozenset({"slots", "gradient", "step", "weight", "where", "t"})

    def gradient(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        """The gradient that the optimizer is to see."""
        return g

    def step(self, w: Any, d: Any, s: Any, h: Any, xp: Any) -> Any:
        """The step that is to be subtracted from the weight."""
        return d

    def weight(self, w: Any, new: Any, s: Any, h: Any, xp: Any) -> Any:
        """The new weight."""
        return new

    @classmethod
    def _coerce(cls, name: str, value: Any) -> Any:
        if name == "where":
            check_where(value)
        return super()._coerce(name, value)

    @classmethod
    def _kernel_fields(cls) -> tuple[str, ...]:
        return tuple(name for name in cls._structure if name != "where")


class Penalty(Transform):
    """A term added to the loss; its gradient is added to the gradient, after all transforms.

    Override `penalize`, and `value` if the loss is to be printed with it.
    """

    _reserved = Transform._reserved | {"penalize", "value"}

    def penalize(self, w: Any, h: Any, xp: Any) -> Any:
        """The gradient of the penalty at `w`."""
        raise TypeError(f"{type(self).__name__} must define penalize(self, w, h, xp)")

    def value(self, w: Any) -> float:
        """The penalty at `w`, a number to add to a printed loss."""
        raise TypeError(f"{type(self).__name__} defines no value(self, w)")

    def gradient(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        return g + self.penalize(w, h, xp)


def check_where(where: Any) -> None:
    """Raise TypeError unless `where` can select parameters."""
    if not (where is None or isinstance(where, str) or callable(where)):
        raise TypeError(f"where = {where!r} must be a glob on names, such as '*.bias', or a function of a Param")


_active: ContextVar[Namespace] = ContextVar("namespace of the rule that runs")


def _namespace(what: str) -> Any:
    try:
        return _active.get()
    except LookupError:
        raise TypeError(f"{what} works inside an update or a hook of a rule only") from None


def abs2(x: Any) -> Any:
    """|x|^2, real: x*x, or real(x)^2 + imag(x)^2."""
    return _namespace("abs2").abs2(x)


def norm(x: Any) -> Any:
    """The 2-norm over the elements of this parameter, in float64; finite whenever `x` is."""
    return _namespace("norm").norm(x)


def total(x: Any) -> Any:
    """The sum over all elements of all parameters that have a gradient in this step, in float64."""
    return _namespace("total").total(x)


def total_norm(x: Any) -> Any:
    """The 2-norm over all parameters that have a gradient in this step, in float64."""
    return _namespace("total_norm").norm(x, total=True)


