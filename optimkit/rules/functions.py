"""Functions that a rule calls beside those of `xp`: `abs2`, and reductions over a parameter or over all of them.

They ask the namespace of the rule that runs: one that traces, or one that computes.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NoReturn

from optimkit.fusion.trace import Namespace

active: ContextVar[Namespace] = ContextVar("namespace of the rule that runs")


class _NotTraced:
    """What these functions do in a hook that gets whole arrays: there is no graph, and no other parameter."""

    def abs2(self, x: Any) -> Any:
        return x * x

    def norm(self, x: Any, total: bool = False) -> Any:
        self._refuse("total_norm" if total else "norm")

    def norms(self, x: Any, total: bool = False) -> Any:
        self._refuse("total_norm")

    def total(self, x: Any) -> Any:
        self._refuse("total")

    def _refuse(self, what: str) -> NoReturn:
        raise TypeError(f"{what} is for rules that are traced; with elementwise = False write it with the functions of xp")


NOT_TRACED: Any = _NotTraced()


def _namespace(what: str) -> Any:
    try:
        return active.get()
    except LookupError:
        raise TypeError(f"{what} works inside an update or a hook of a rule only") from None


def abs2(x: Any) -> Any:
    """|x|^2, real: x*x, or real(x)^2 + imag(x)^2."""
    return _namespace("abs2").abs2(x)


def norm(x: Any) -> Any:
    """The 2-norm over the elements of this parameter, in float64; finite whenever `x` is: at most 1.8e308."""
    return _namespace("norm").norm(x)


def total(x: Any) -> Any:
    """The sum over all elements of all parameters that have a gradient in this step, in float64."""
    return _namespace("total").total(x)


def total_norm(x: Any) -> Any:
    """The 2-norm over all parameters that have a gradient in this step, in float64."""
    return _namespace("total_norm").norm(x, total=True)


def total_norms(x: Any) -> tuple[Any, Any]:
    """`total_norm(x)`, and its root, which is right where the norm is beyond float64 too."""
    return _namespace("total_norm").norms(x, total=True)  # type: ignore[no-any-return]
