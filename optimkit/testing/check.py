"""Checks of rules: one call runs a rule through all backends, engines, dtypes and layouts.

    check_optimizer(SignMomentum, lr=0.1, beta=0.9)

Each weight and slot must equal, to the bit, what the rule's own `update` computes when it is called
by hand on NumPy arrays (`Oracle`); within a tolerance where an operation such as `exp` is rounded
differently by each library. What differs is said in words: where, in which step, both values.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from optimkit.driver.build import chain_of, program_of
from optimkit.numbers import Follow
from optimkit.optimizers.sgd import SGD
from optimkit.rule import Penalty, Transform
from optimkit.testing.backends import BACKENDS, TOLERANCES, Backend
from optimkit.testing.compare import difference, inexact_operations, zeros_are_signed
from optimkit.testing.draw import Spec, draw, few_specs, special_specs, specs
from optimkit.testing.oracle import Oracle

Reference = Callable[[Any, Any, dict[str, Any], int], Any]
RATE = 0.125  # the learning rate of the optimizer that carries a transform or a penalty


@dataclass
class Report:
    """What a check did: the backends that passed, and the reasons of those that could not run."""

    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"passed: {', '.join(self.passed)}"]
        return "\n".join(lines + [f"skipped: {name}: {reason}" for name, reason in self.skipped.items()])


def check_optimizer(
    optimizer: Callable[..., Any],
    *,
    reference: Reference | None = None,
    backends: Iterable[str] | None = None,
    dtypes: Sequence[str] = ("float32", "float64"),
    steps: int = 4,
    seed: int = 0,
    **settings: Any,
) -> Report:
    """Check an optimizer against its own `update` called by hand, on all backends, dtypes and layouts.

    Parameters
    ----------
    optimizer : class or callable
        Called as `optimizer(params, engine=..., **settings)`; use `functools.partial` for a number that
        is called like a parameter of this function.
    reference : callable, optional
        What the update is meant to be, in plain NumPy: `reference(w, g, state, t)` returns the new weight.
        `state` is a dict of its own for each parameter, empty at first, for the function to fill; `t`
        counts from 1. Compared within `TOLERANCES`.
    backends : iterable of str, optional
        Names of `BACKENDS`; all of them by default.
    dtypes : sequence of str
        Of "float32" and "float64".
    steps : int, default 4
        From 1.
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
    ValueError
        If a backend, a dtype or `steps` is out of range.

    Examples
    --------
    >>> import optimkit
    >>> from optimkit.rule import zeros
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
    _check_arguments(dtypes, steps)
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
    if reference is not None:
        failures += [failure for dtype in dtypes for failure in _against(reference, make, dtype, steps, seed)]
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


def _check_arguments(dtypes: Sequence[str], steps: int) -> None:
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


def _label(optimizer: Any, settings: dict[str, Any]) -> str:
    while isinstance(optimizer, partial):
        optimizer, settings = optimizer.func, {**optimizer.keywords, **settings}
    return f"{getattr(optimizer, '__name__', optimizer)}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"


def programs(optimizer: Any) -> list[Any]:
    """The traced programs of an optimizer with parameters."""
    found = []
    for entry in optimizer._entries:
        chain = chain_of(type(optimizer), entry.group, optimizer._links, entry, optimizer.maximize)
        found.append(program_of(chain, entry.param.dtype == "float64", optimizer.nonfinite != "allow")[1])
    return list({id(program): program for program in found}.values())


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


class Stepper:
    """An optimizer at work on a backend: in place, or in the functional form."""

    def __init__(self, make: Callable[..., Any], backend: Backend, params: dict[str, Any]) -> None:
        self.backend, self.params = backend, params
        if backend.functional:
            # the twin on NumPy gives the oracle numbers, links and memory order (C)
            self.twin = make({name: backend.to_numpy(x) for name, x in params.items()}, engine="eager")
            self.state, self.apply = self.twin.init(params), _jitted(backend, self.twin)
        else:
            self.twin = make(params, engine=backend.engine)

    def step(self, grads: dict[str, Any]) -> None:
        if self.backend.functional:
            self.params, self.state = self.apply(self.params, grads, self.state)
        else:
            self.twin.step(grads)

    def results(self, name: str) -> dict[str, Any]:
        """Weight, slots and count of a parameter."""
        if self.backend.functional:
            slots, t = self.state["slots"][name], self.state["t"][name]
        else:
            slots, t = self.twin.state[name], self.twin.state[name].t
        found = {f"slot {slot!r}": _host(self.backend, slots[slot]) for slot in slots}
        return {"the weight": self.backend.to_numpy(self.params[name]), **found, "the count t": int(t)}

    @property
    def shared(self) -> dict[str, float]:
        held = self.state["shared"] if self.backend.functional else self.twin.state.shared
        return {name: float(value) for name, value in held.items()}


def _jitted(backend: Backend, optimizer: Any) -> Callable[..., Any]:
    """The functional form, in JAX jitted, unless a schedule wants to see the count as a number."""
    held = [(optimizer, optimizer._groups[0].values), *((link, link.__dict__) for link in optimizer._links)]
    numbers = [values[name] for rule, values in held for name in rule._numbers]
    parts = [part for number in numbers for part in (number if isinstance(number, tuple) else (number,))]
    if backend.library != "jax" or any(callable(part) and not isinstance(part, Follow) for part in parts):
        return optimizer.apply  # type: ignore[no-any-return]
    return importlib.import_module("jax").jit(optimizer.apply)  # type: ignore[no-any-return]


def _host(backend: Backend, value: Any) -> Any:
    return float(value) if getattr(value, "shape", None) == () and "float64" in str(value.dtype) else backend.to_numpy(value)


def compare(
    make: Callable[..., Any], backend: Backend, dtype: str, chosen: Sequence[Spec], steps: int, seed: int
) -> Iterator[str]:
    """Step an optimizer on a backend and the oracle side by side; what differs, in words."""
    rng = np.random.default_rng(seed)
    other = {"float32": "float64", "float64": "float32"}[dtype]
    params = {spec.name: backend.make(draw(rng, spec, "weight", dtype), dtype, spec.layout) for spec in chosen}
    stepper = Stepper(make, backend, params)
    oracle = Oracle(stepper.twin)
    traced = programs(stepper.twin)
    exact = backend.exact and not inexact_operations(traced)
    tolerance = 0.0 if exact else TOLERANCES[dtype]
    signed = zeros_are_signed(traced)
    scales = {spec.name: _largest(oracle.params[spec.name]) for spec in chosen}
    for t in range(1, steps + 1):
        grads, drawn = {}, {}
        for spec in chosen:
            own = other if spec.other_dtype else dtype
            values = draw(rng, spec, "gradient", own)
            if t not in spec.missing:
                drawn[spec.name] = values
                grads[spec.name] = backend.make(values, own, spec.gradient_layout)
        stepper.step(grads)
        oracle.step(drawn)
        for spec in chosen:
            expected = {"the weight": oracle.params[spec.name], "the count t": oracle.t[spec.name]}
            expected |= {f"slot {slot!r}": value for slot, value in oracle.state[spec.name].items()}
            got = stepper.results(spec.name)
            for what, value in expected.items():
                scale = scales[spec.name] if what == "the weight" else 0.0
                found = difference(got[what], value, tolerance, signed, backend.flushes, scale)
                if found:
                    yield f"{spec}, step {t}: {what}: {found}, by the rule called by hand"
            if spec.name in grads and difference(backend.to_numpy(grads[spec.name]), drawn[spec.name]):
                yield f"{spec}, step {t}: the gradient was written"
        for name, value in oracle.shared.items():
            found = difference(stepper.shared[name], value, tolerance, signed, backend.flushes)
            if found:
                yield f"step {t}: the slot per optimizer {name!r}: {found}, by the rule called by hand"


def _largest(values: Any) -> float:
    return float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0))


def _against(reference: Reference, make: Callable[..., Any], dtype: str, steps: int, seed: int) -> Iterator[str]:
    """The first difference between the rule called by hand and a reference."""
    rng = np.random.default_rng(seed)
    chosen = [spec for spec in specs(["contiguous"]) if not spec.other_dtype]
    params = {spec.name: draw(rng, spec, "weight", dtype) for spec in chosen}
    oracle = Oracle(make({name: w.copy() for name, w in params.items()}, engine="eager"))
    scales = {name: _largest(w) for name, w in params.items()}
    states: dict[str, dict[str, Any]] = {spec.name: {} for spec in chosen}
    for t in range(1, steps + 1):
        grads = {spec.name: draw(rng, spec, "gradient", dtype) for spec in chosen if t not in spec.missing}
        oracle.step(grads)
        for spec in chosen:
            if spec.name not in grads:
                continue
            with np.errstate(all="ignore"):
                new = reference(params[spec.name], grads[spec.name], states[spec.name], oracle.t[spec.name])
            params[spec.name] = np.asarray(new).astype(dtype)
            found = difference(oracle.params[spec.name], params[spec.name], TOLERANCES[dtype], scale=scales[spec.name])
            if found:
                yield f"the rule called by hand, {dtype}: {spec}, step {t}: the weight: {found}, by the reference"
                return
