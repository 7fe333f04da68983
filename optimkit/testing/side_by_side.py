"""Two sides that step together: an optimizer on a backend and the oracle, the oracle and a reference.

What differs first is yielded in words; a caller that wants no more takes no more.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from optimkit.arrays import DTYPES
from optimkit.rules.numbers import Follow
from optimkit.rules.programs import program_of
from optimkit.testing.backends import BACKENDS, TOLERANCES, Backend
from optimkit.testing.compare import difference, inexact_operations, zeros_are_signed
from optimkit.testing.draw import Spec, draw, specs
from optimkit.testing.oracle import Oracle

Reference = Callable[[Any, Any, dict[str, Any], int], Any]


class Stepper:
    """An optimizer at work on a backend: in place, or in the functional form."""

    def __init__(self, make: Callable[..., Any], backend: Backend, params: dict[str, Any]) -> None:
        self.backend, self.params = backend, params
        self.twin_backend = BACKENDS["numpy-eager"] if backend.functional else backend
        if backend.functional:
            # the twin on NumPy gives the oracle numbers, links and memory order (C)
            self.twin = make({name: backend.to_numpy(x) for name, x in params.items()}, engine="eager")
            self.state, self.apply = self.twin.init(params), _jitted(backend, self.twin)
        else:
            self.twin = make(params, engine=backend.engine)

    def fill_constants(self, name: str, rng: np.random.Generator, spec: Spec, dtype: str) -> None:
        """Fill the constant slots of a parameter, as a user would: with values that tell them apart."""
        for label in constants(self.twin, name):
            filled = draw(rng, spec, "weight", dtype)
            self.twin.state[name][label][...] = self.twin_backend.make(filled, dtype)
            if self.backend.functional:
                self.state["slots"][name][label] = self.backend.make(filled, dtype)

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


def constants(optimizer: Any, name: str) -> list[str]:
    """The constant slots of a parameter."""
    chain = optimizer._run.chain(optimizer._run.entry(name))
    return [chain.slot_label(key) for key, slot in chain.slots().items() if slot.is_constant]


def _jitted(backend: Backend, optimizer: Any) -> Callable[..., Any]:
    """The functional form, in JAX jitted, unless a schedule wants to see the count as a number."""
    run = optimizer._run
    held = [(optimizer, run.groups[0].values), *((link, link.__dict__) for link in run.links)]
    numbers = [values[name] for rule, values in held for name in rule._numbers]
    parts = [part for number in numbers for part in (number if isinstance(number, tuple) else (number,))]
    if backend.library != "jax" or any(callable(part) and not isinstance(part, Follow) for part in parts):
        return optimizer.apply  # type: ignore[no-any-return]
    return importlib.import_module("jax").jit(optimizer.apply)  # type: ignore[no-any-return]


def _host(backend: Backend, value: Any) -> Any:
    return float(value) if getattr(value, "shape", None) == () and "float64" in str(value.dtype) else backend.to_numpy(value)


def programs(optimizer: Any) -> list[Any]:
    """The traced programs of an optimizer with parameters."""
    found = []
    for entry in optimizer._run.entries:
        chain = optimizer._run.chain(entry)
        found.append(program_of(chain, entry.dtype, entry.dtype.wide, optimizer.nonfinite != "allow")[1])
    return list({id(program): program for program in found}.values())


def compare(
    make: Callable[..., Any], backend: Backend, dtype: str, chosen: Sequence[Spec], steps: int, seed: int
) -> Iterator[str]:
    """Step an optimizer on a backend and the oracle side by side; what differs, in words."""
    rng = np.random.default_rng(seed)
    other = next(name for name, record in DTYPES.items() if name != dtype and record.kind == DTYPES[dtype].kind)
    params = {spec.name: backend.make(draw(rng, spec, "weight", dtype), dtype, spec.layout) for spec in chosen}
    stepper = Stepper(make, backend, params)
    traced = programs(stepper.twin)
    inexact = inexact_operations(traced)
    flushes = backend.flushes
    if "call" in inexact:  # whole arrays are the library's own matter, and linear algebra of NaN is nobody's
        flushes, chosen = flushes or backend.library_flushes, [spec for spec in chosen if spec.values != "special"]
    for spec in chosen:
        stepper.fill_constants(spec.name, rng, spec, dtype)
    oracle = Oracle(stepper.twin)
    tolerance = 0.0 if backend.exact and not inexact else TOLERANCES[dtype]
    signed = zeros_are_signed(traced)
    scales = {name: _largest(weight) for name, weight in oracle.params.items()}
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
        weights, state, counts = oracle.params, oracle.state, oracle.t
        for spec in chosen:
            expected = {"the weight": weights[spec.name], "the count t": counts[spec.name]}
            expected |= {f"slot {slot!r}": value for slot, value in state[spec.name].items()}
            got = stepper.results(spec.name)
            for what, value in expected.items():
                scale = scales[spec.name] if what == "the weight" else 0.0
                found = difference(got[what], value, tolerance, signed, flushes, scale)
                if found:
                    yield f"{spec}, step {t}: {what}: {found}, by the rule called by hand"
            if spec.name in grads and difference(backend.to_numpy(grads[spec.name]), drawn[spec.name]):
                yield f"{spec}, step {t}: the gradient was written"
        for name, value in oracle.shared.items():
            found = difference(stepper.shared[name], value, tolerance, signed, flushes)
            if found:
                yield f"step {t}: the slot per optimizer {name!r}: {found}, by the rule called by hand"


def _largest(values: Any) -> float:
    return float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0))


def against(reference: Reference, make: Callable[..., Any], dtype: str, steps: int, seed: int) -> Iterator[str]:
    """The first difference between the rule called by hand and a reference."""
    rng = np.random.default_rng(seed)
    chosen = [spec for spec in specs(["contiguous"]) if not spec.other_dtype]
    params = {spec.name: draw(rng, spec, "weight", dtype) for spec in chosen}
    twin = make({name: w.copy() for name, w in params.items()}, engine="eager")
    scales = {name: _largest(w) for name, w in params.items()}
    states: dict[str, dict[str, Any]] = {spec.name: {} for spec in chosen}
    for spec in chosen:
        for label in constants(twin, spec.name):
            states[spec.name][label] = draw(rng, spec, "weight", dtype)
            twin.state[spec.name][label][...] = states[spec.name][label]
    oracle = Oracle(twin)
    for t in range(1, steps + 1):
        grads = {spec.name: draw(rng, spec, "gradient", dtype) for spec in chosen if t not in spec.missing}
        oracle.step(grads)
        weights, counts = oracle.params, oracle.t
        for spec in chosen:
            if spec.name not in grads:
                continue
            with np.errstate(all="ignore"):
                new = reference(params[spec.name], grads[spec.name], states[spec.name], counts[spec.name])
            params[spec.name] = np.asarray(new).astype(dtype)
            found = difference(weights[spec.name], params[spec.name], TOLERANCES[dtype], scale=scales[spec.name])
            if found:
                yield f"the rule called by hand, {dtype}: {spec}, step {t}: the weight: {found}, by the reference"
                return
