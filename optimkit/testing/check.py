"""Checks of rules: one call runs a rule through all backends, engines, dtypes and layouts.

    check_optimizer(SignMomentum, lr=0.1, beta=0.9)

Each weight and slot must equal, to the bit, what the rule's own `update` computes when it is called
by hand on NumPy arrays (`Oracle`); within a tolerance where an operation such as `exp` is rounded
differently by each library. What differs is said in words: where, in which step, both values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from optimkit.arrays import SUPPORTED
from optimkit.driver.entries.selection import some_parameters
from optimkit.driver.optimizer import Optimizer
from optimkit.optimizers.sgd import SGD
from optimkit.rules.links import Penalty, Transform
from optimkit.testing.backends import BACKENDS, TOLERANCES, Backend
from optimkit.testing.draw import few_specs, special_specs, specs
from optimkit.testing.side_by_side import Reference, against, compare

RATE = 0.125  # the learning rate of the optimizer that carries a transform or a penalty


@dataclass
class Report:
    """What a check did: the backends that passed, and the reasons of those that could not run."""

    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"passed: {', '.join(self.passed)}"]
        return "\n".join(lines + [f"skipped: {name}: {reason}" for name, reason in self.skipped.items()])


@some_parameters()
def check_optimizer(
    optimizer: Callable[..., Any],
    *,
    reference: Reference | None = None,
    backends: Iterable[str] | None = None,
    dtypes: Sequence[str] = SUPPORTED,
    steps: int = 4,
    seed: int = 0,
    **settings: Any,
) -> Report:
    """Check an optimizer against its own `update` called by hand, on all backends, dtypes and layouts.

    Parameters
    ----------
    optimizer : class, callable or Optimizer
        Called as `optimizer(params, engine=..., **settings)`; use `functools.partial` for a number that
        is called like a parameter of this function. Or an optimizer without parameters, with its settings.
    reference : callable, optional
        What the update is meant to be, in plain NumPy: `reference(w, g, state, t)` returns the new weight.
        `state` is a dict of its own for each parameter, for the function to fill: at first it has nothing but
        the constant slots, filled, by their names in `opt.state`; `t` counts from 1. Compared within `TOLERANCES`.
    backends : iterable of str, optional
        Names of `BACKENDS`; all of them by default.
    dtypes : sequence of str
        Of "float32" and "float64".
    steps : int, default 4
        From 1. A rule that does something else after more updates needs more of them.
    seed : int
        Of the weights and gradients.
    **settings
        Given to the optimizer: its numbers, and `penalty`, `transforms`, `maximize`.

    Returns
    -------
    Report
        The backends that passed, and why others could not run; `print` it.

    Raises
    ------
    AssertionError
        If something differs; it names backend, dtype, layout, parameter, step, element and both values.
    ValueError, TypeError
        If a backend, a dtype or `steps` is out of range, or the engine is set.
    RuntimeError
        If none of the backends that were asked for can run here, with the reasons.

    Examples
    --------
    >>> import optimkit
    >>> from optimkit import zeros
    >>> class Momentum(optimkit.Optimizer):
    ...     lr: optimkit.Scalar = 0.1
    ...     def slots(self):
    ...         return {"m": zeros}
    ...     def update(self, w, g, s, h, xp):
    ...         m = 0.5 * s.m + g
    ...         return h.lr * m, {"m": m}
    >>> def reference(w, g, state, t):
    ...     state["m"] = 0.5 * state.get("m", 0) + g
    ...     return w - 0.1 * state["m"]
    >>> report = check_optimizer(Momentum, lr=0.1, reference=reference, backends=["numpy-eager"])
    >>> report.passed
    ['numpy-eager']
    """
    _check_arguments(dtypes, steps, settings)
    optimizer = _as_partial(optimizer)
    make = partial(optimizer, **settings)
    report, failures = Report(), []
    for backend in _chosen(backends):
        reason = backend.available()
        if reason:
            report.skipped[backend.name] = reason
            continue
        found = [failure for dtype in dtypes for failure in _failures(make, backend, dtype, steps, seed)]
        failures += found
        if not found:
            report.passed.append(backend.name)
    if not report.passed and not failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report.skipped.items())
        raise RuntimeError(f"none of the backends could run: {reasons}")
    if reference is not None:
        failures += [failure for dtype in dtypes for failure in against(reference, make, dtype, steps, seed)]
    if failures:
        passed = f"\nIt passes on {', '.join(report.passed)}." if report.passed else ""
        listed = "\n".join(f"  - {failure}" for failure in failures)
        raise AssertionError(f"{_label(optimizer, settings)} fails:\n{listed}{passed}")
    return report


def check_transform(
    transform: Transform, *, reference: Reference | None = None, optimizer: Callable[..., Any] | None = None, **options: Any
) -> Report:
    """Check a transform, as a link of `SGD(lr=0.125)` or of another optimizer.

    Parameters
    ----------
    transform : Transform
        With its numbers: `ClipByValue(1.0)`.
    reference : callable, optional
        As for `check_optimizer`; it computes the new weight of the optimizer with the transform:
        `lambda w, g, state, t: w - 0.125 * np.clip(g, -1, 1)`.
    optimizer : class or callable, optional
        What carries the transform; `functools.partial(Adam, lr=0.1)`.
    **options
        As for `check_optimizer`.

    Returns
    -------
    Report
        As `check_optimizer`, which see for what is raised too.

    Examples
    --------
    >>> from optimkit.transforms import ClipByValue
    >>> def reference(w, g, state, t):
    ...     return w - 0.125 * np.clip(g, -1, 1)
    >>> check_transform(ClipByValue(1.0), reference=reference, backends=["numpy-eager"]).passed
    ['numpy-eager']
    """
    if not isinstance(transform, Transform):
        raise TypeError(f"transform = {transform!r} must be a Transform with its numbers, such as ClipByValue(1.0)")
    return check_optimizer(optimizer or partial(SGD, lr=RATE), reference=reference, transforms=[transform], **options)


def check_penalty(penalty: Penalty, *, reference: Callable[[Any], Any] | None = None, **options: Any) -> Report:
    """Check a penalty: its gradient on all backends, and its `value` against its gradient.

    Parameters
    ----------
    penalty : Penalty
        With its numbers: `L2(1e-2)`.
    reference : callable, optional
        The gradient of the penalty in plain NumPy: `lambda w: 0.02 * w`.
    **options
        As for `check_optimizer`.

    Returns
    -------
    Report
        As `check_optimizer`, which see for what is raised too.

    Examples
    --------
    >>> from optimkit.transforms import L2
    >>> check_penalty(L2(0.5), reference=lambda w: w, backends=["numpy-eager"]).passed
    ['numpy-eager']
    """
    if not isinstance(penalty, Penalty):
        raise TypeError(f"penalty = {penalty!r} must be a Penalty with its numbers, such as L2(1e-2)")
    whole: Reference | None = None
    if reference is not None:
        gradient = reference

        def whole(w: Any, g: Any, state: dict[str, Any], t: int) -> Any:
            return w - RATE * (g + gradient(w))

    report = check_optimizer(partial(SGD, lr=RATE), reference=whole, penalty=penalty, **options)
    if type(penalty).value is not Penalty.value:
        _check_value(penalty)
    return report


def _check_value(penalty: Penalty) -> None:
    """The slope of `value` between two near points is the gradient that `penalize` adds."""
    rng = np.random.default_rng(0)
    w, direction, near = rng.normal(size=9), rng.normal(size=9), 1e-6
    slope = (penalty.value(w + near * direction) - penalty.value(w - near * direction)) / (2 * near)
    moved = w.copy()
    SGD(moved, lr=1.0, penalty=penalty, engine="eager").step(np.zeros(9))
    expected = float((w - moved) @ direction)
    if abs(slope - expected) > 1e-6 * (abs(expected) + 1):
        raise AssertionError(
            f"{penalty!r}: value(w) rises by {slope:.9g} along a direction in which penalize says {expected:.9g}; "
            "one of the two is not the other's gradient"
        )


def _check_arguments(dtypes: Sequence[str], steps: int, settings: dict[str, Any]) -> None:
    if "engine" in settings:
        raise TypeError(f"engine = {settings['engine']!r} is the matter of the backends; pass backends=['numpy-eager']")
    if isinstance(dtypes, str) or not dtypes or not set(dtypes) <= set(TOLERANCES):
        raise ValueError(f"dtypes = {dtypes!r} must be a list of {', '.join(map(repr, TOLERANCES))}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps = {steps!r} must be a whole number from 1")


def _chosen(names: Iterable[str] | None) -> list[Backend]:
    names = list(BACKENDS) if names is None else [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in BACKENDS]
    if unknown or not names:
        raise ValueError(f"backends = {names!r} must be some of {', '.join(BACKENDS)}")
    return [BACKENDS[name] for name in names]


def _as_partial(optimizer: Any) -> Any:
    """What makes optimizers like a given one; a class or a function as it is."""
    if not isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer.names:
        raise TypeError(f"{optimizer!r} has parameters; pass its class and settings, or build it without")
    options = ("penalty", "transforms", "maximize", "nonfinite")
    chosen = {name: getattr(optimizer, name) for name in options if getattr(optimizer, name) != getattr(type(optimizer), name)}
    return partial(type(optimizer), **optimizer._run.groups[0].values, **chosen)


def _label(optimizer: Any, settings: dict[str, Any]) -> str:
    while isinstance(optimizer, partial):
        optimizer, settings = optimizer.func, {**optimizer.keywords, **settings}
    return f"{getattr(optimizer, '__name__', optimizer)}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"


def _failures(make: Callable[..., Any], backend: Backend, dtype: str, steps: int, seed: int) -> Iterator[str]:
    """At most one failure of the drawn values, and one of the special ones."""
    sets = [few_specs() if backend.functional else specs(backend.layouts)]
    if backend.exact and not backend.flushes:
        sets.append(special_specs())
    for chosen in sets:
        with backend.settings():
            try:
                failure = next(compare(make, backend, dtype, chosen, steps, seed), None)
            except Exception as error:
                error.add_note(f"while it ran on {backend}, {dtype}")
                raise
        if failure:
            yield f"{backend}, {dtype}: {failure}"
