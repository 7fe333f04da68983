"""What a hook is given, and hooks that are given whole arrays.

A rule with `elementwise = False` is not traced: its hooks are called in each step, between the passes over the memory, with
the arrays themselves in the weight's shape, and with plain numbers. In the graph such a call is one node, and each
array that comes out is one; what stands around it stays fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimkit import arrays
from optimkit.rules.functions import NOT_TRACED, active
from optimkit.rules.rule import Rule


class Slots:
    """`s` of a rule: its slots as attributes."""

    def __init__(self, rule: Rule, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)
        self.__dict__["_rule"] = type(rule).__name__

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(key for key in self.__dict__ if key != "_rule") or "none"
        raise AttributeError(f"{self._rule}: s.{name} is no slot; slots() declares {known}")


class Numbers:
    """`h` of a rule: its numbers, `h.t`, and for links the optimizer's `h.lr`."""

    def __init__(self, rule: Rule, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)
        self.__dict__["_rule"] = rule

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(key for key in self.__dict__ if key != "_rule")
        kind = "structure: write self." + name if name in self._rule._structure else "no number"
        raise AttributeError(f"{type(self._rule).__name__}: h.{name} is {kind}; h has {known}")


def split(rule: Rule, method: str, result: Any) -> tuple[Any, Mapping[str, Any]]:
    """`value` or `(value, slots)`, as a hook may return it."""
    if isinstance(result, tuple):
        if len(result) == 2 and isinstance(result[1], Mapping):
            return result[0], result[1]
        raise TypeError(f"{type(rule).__name__}.{method} must return a value, or (value, {{slot: new value}}); got {result!r}")
    if result is None:
        raise TypeError(f"{type(rule).__name__}.{method} returns None; it must return a value, or (value, {{slot: new value}})")
    return result, {}


class WholeCall:
    """One hook of a rule with `elementwise = False`.

    Parameters
    ----------
    index, method, rule
        Which hook of which rule of the chain; the rule with its structure alone.
    writes : sequence of str
        The slots that it returns. A rule that has some has one hook, which returns all of them.
    s, h : Slots, Numbers
        What the rule has: only the names are taken.

    Attributes
    ----------
    count : int
        How many arrays it is given.
    results : tuple of str
        What comes out: "" for the value, then the slots.
    """

    def __init__(self, index: int, method: str, rule: Rule, writes: Sequence[str], s: Slots, h: Numbers) -> None:
        self.index, self.method, self.rule = index, method, rule
        self.slots = [name for name in vars(s) if name != "_rule"]
        self.numbers = {
            name: len(value) if isinstance(value, tuple) else None if value is None else 0
            for name, value in vars(h).items()
            if name != "_rule"
        }
        self.count, self.results = 2 + len(self.slots), ("", *writes)  # the weight and the value, then slots
        if writes and rule._hooks() != (method,):
            several = ", ".join(rule._hooks())
            raise TypeError(
                f"{type(rule).__name__} has slots, elementwise = False and the hooks {several}; with whole arrays a rule that "
                "has slots has one hook, which returns all of them"
            )

    @property
    def label(self) -> str:
        return f"{type(self.rule).__name__}.{self.method}"

    def apply(self, xp: Any, args: Sequence[Any], s: Slots, h: Numbers) -> tuple[Any, dict[str, Any]]:
        """The call in a namespace that traces, or that computes."""
        flat = [part for name in self.numbers for part in _parts(vars(h)[name])]
        found = dict(zip(self.results, xp.whole(self, [*args, *(vars(s)[name] for name in self.slots)], flat), strict=True))
        return found.pop(""), found

    def __call__(self, parameter: str, given: Sequence[Any], numbers: Sequence[Any]) -> list[Any]:
        """The arrays that come out for a parameter, checked, in the order of `results`.

        `given` are the weight, the value and the slots, in the weight's shape.

        Raises
        ------
        TypeError
            If something else comes out than arrays like the weight.
        """
        flat = iter(numbers)
        s = Slots(self.rule, dict(zip(self.slots, given[2:], strict=True)))
        h = Numbers(self.rule, {name: _joined(flat, count) for name, count in self.numbers.items()})
        token = active.set(NOT_TRACED)
        try:
            returned = getattr(self.rule, self.method)(*given[:2], s, h, arrays.namespace(given[0]))
            value, slots = split(self.rule, self.method, returned)
            self._check_slots(parameter, slots)
            found = [value, *(slots[name] for name in self.results[1:])]
            for name, x in zip(self.results, found, strict=True):
                slot = f" for the slot {name!r}" if name else ""
                alike = vars(s)[name] if name else given[0]
                check_alike(f"{self.label} returned", f"{slot} for parameter {parameter!r}", x, alike)
        except Exception as error:
            error.add_note(f"in {self.label}, called with whole arrays for parameter {parameter!r}; nothing was written")
            raise
        finally:
            active.reset(token)
        return found

    def _check_slots(self, parameter: str, slots: Mapping[str, Any]) -> None:
        """Raise TypeError unless the slots that were returned are those that the hook has to return."""
        where = f"{self.label}, for parameter {parameter!r},"
        for name in self.results[1:]:
            if name not in slots:
                raise TypeError(f'{where} does not return the slot {name!r}; return (value, {{..., "{name}": new value}})')
        for name in slots:
            if name not in self.results[1:]:
                why = "it is constant: it is read and never written" if name in self.slots else "slots() does not declare it"
                raise TypeError(f"{where} returns the slot {name!r}, but {why}")


def check_alike(what: str, more: str, x: Any, like: Any) -> None:
    """Raise TypeError unless an array is like another, a weight or a slot: library, shape, dtype and device."""
    given, expected = arrays.describe(x), arrays.describe(like)
    if not arrays.is_array(x) or given != expected:
        article = "a " if arrays.is_array(x) else ""
        cast = given.rpartition(",")[0] == expected.rpartition(",")[0] and arrays.is_array(x)
        remedy = "; cast it, xp.astype(x, w.dtype)" if cast and tuple(x.shape) == tuple(like.shape) else ""
        raise TypeError(f"{what} {article}{given}{more}, not a {expected}{remedy}")
    arrays.check_readable(f"what {what.removesuffix(' returned')} returned{more}", x)


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _joined(flat: Iterator[Any], count: int | None) -> Any:
    """A number as a rule sees it: None, a float, or a tuple of them."""
    if count is None:
        return None
    return tuple(next(flat) for _ in range(count)) if count else next(flat)
