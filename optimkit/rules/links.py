"""Links of a chain: transforms and penalties, small rules that go with any optimizer.

    class Box(Transform):
        limit: NonNegative = 1.0

        def weight(self, w, new, s, h, xp):
            return xp.clip(new, -h.limit, h.limit)
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from optimkit.rules.rule import Rule
from optimkit.rules.whole import check_alike

HOOKS = ("gradient", "step", "weight")

class Transform(Rule, base=True):
    """A small rule that changes the gradient, the step or the new weight of an optimizer.

    Override any of the three hooks. Each returns its value, or (value, {slot: new}) if the rule
    has slots. `h` has the rule's own numbers, `h.lr` and `h.t`.

    With `elementwise = False` in the class, the hooks are not traced but called in each step, for each parameter,
    with whole arrays of its namespace in the weight's shape: a Gaussian filter of the gradient, an orthogonalisation. They
    must not write into what they are given, and return an array like the weight (same shape, dtype, device). What
    stands around them stays fused; nothing is written if one of them raises.

    Parameters
    ----------
    where : str or callable, optional
        The parameters it applies to: a glob on names, or a predicate on `Param`. All by default.
    """

    where: str | Callable[[Any], bool] | None = dataclasses.field(default=None, kw_only=True)

    def gradient(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        """The gradient that the optimizer is to see."""
        return g

    def step(self, w: Any, d: Any, s: Any, h: Any, xp: Any) -> Any:
        """The step that is to be subtracted from the weight."""
        return d

    def weight(self, w: Any, new: Any, s: Any, h: Any, xp: Any) -> Any:
        """The new weight."""
        return new

    def _hooks(self) -> tuple[str, ...]:
        return tuple(hook for hook in HOOKS if getattr(type(self), hook) is not getattr(Transform, hook))

    @classmethod
    def _coerce(cls, name: str, value: Any) -> Any:
        if name == "where":
            check_where(value)
        return super()._coerce(name, value)

    @classmethod
    def _kernel_fields(cls) -> tuple[str, ...]:
        return tuple(name for name in cls._structure if name != "where")


class Penalty(Transform, base=True):
    """A term added to the loss; its gradient is added to the gradient, after all transforms.

    Override `penalize`, and `value` if the loss is to be printed with it.
    """

    def penalize(self, w: Any, h: Any, xp: Any) -> Any:
        """The gradient of the penalty at `w`."""
        raise TypeError(f"{type(self).__name__} must define penalize(self, w, h, xp)")

    def value(self, w: Any) -> float:
        """The penalty at `w`, a number to add to a printed loss."""
        raise TypeError(f"{type(self).__name__} defines no value(self, w)")

    def gradient(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        added = self.penalize(w, h, xp)
        if not self.elementwise:  # nothing is broadcast
            check_alike(f"{type(self).__name__}.penalize returned", "", added, w)
        return g + added


def check_hooks(link: Transform) -> None:
    """Raise TypeError where a link has no hook, or a method that looks like one and is called by nobody."""
    kind = type(link)
    known = f"a Penalty defines penalize, a Transform some of {', '.join(HOOKS)}"
    for name in dir(kind):
        method = getattr(kind, name)
        if name.startswith("_") or name in HOOKS or not inspect.isfunction(method):
            continue
        given = list(inspect.signature(method).parameters)
        if len(given) == 6 and given[1] == "w" and given[3:] == ["s", "h", "xp"]:
            raise TypeError(f"{kind.__name__}.{name}({', '.join(given)}) looks like a hook, and is called by nobody; {known}")
    if not link._hooks():
        raise TypeError(f"{kind.__name__} defines no hook and would do nothing; {known}")


def check_where(where: Any) -> None:
    """Raise TypeError unless `where` can select parameters."""
    if not (where is None or isinstance(where, str) or callable(where)):
        raise TypeError(f"where = {where!r} must be a glob on names, such as '*.bias', or a function of a Param")
