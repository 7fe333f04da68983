"""A step, from the caller's gradients to the arrays: collect, check, rows, reduce, decide, commit.

    take_step(run, grads, zero_grad)

Until the commit nothing is written, so an error, a skipped step or Ctrl-C leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from optimkit import arrays
from optimkit.driver.gradients.collect import Gradients
from optimkit.driver.gradients.overlaps import zero
from optimkit.driver.run import Run
from optimkit.driver.steps.build import Steps
from optimkit.driver.steps.device import DeviceSteps
from optimkit.driver.steps.host import HostSteps
from optimkit.driver.steps.interrupts import deferred_interrupts
from optimkit.driver.steps.result import StepResult
from optimkit.engines.choose import compiled_comparison


def take_step(run: Run, grads: Any, zero_grad: bool) -> StepResult:
    """One step of all parameters that have a gradient. The lock of the run is held."""
    run.require_entries()
    if run.stepping:
        raise RuntimeError(f"{run.kind.__name__}.step() was called in its own step, by a schedule or a signal handler")
    try:
        run.stepping = True
        gradients = adopt_weights(run)
        values, frozen = gradients.collect(grads)
        steps = _lend(run, gradients, values, zero_grad)
        active = steps.active
        for each in active:
            for bucket in each.buckets:
                if bucket.n_active:
                    bucket.fill_rows(run.step_number)
        for each in active:
            each.prepare()
        if not active:
            run.count += 1
            if zero_grad:
                _zero(gradients, [*values, *frozen], len(values), False)
            return StepResult(False, 0.0)
        with deferred_interrupts():
            for each in active:
                _reduce(each)
            decisions = [each.decide() for each in active]  # all are asked
            applied = all(decisions)
            _count(run, active)
            for each in active if applied else ():
                each.commit(zero_grad)
            if zero_grad:
                _zero(gradients, [*values, *frozen], len(values), applied)
            return active[-1].result()
    finally:
        if run.steps is not None:
            run.steps.take_back()
        run.stepping = False


def adopt_weights(run: Run) -> Gradients:
    """Adopt the weights that stand in their containers now."""
    gradients, watch = run.ready_gradients()
    changed = {id(entry) for entry in watch.changed()}
    places = [place for place, entry in enumerate(run.entries) if id(entry) in changed] if changed else []
    for place in places:
        entry = run.entries[place]
        if entry.take_data():  # another memory order: its slots are brought into it
            run.forget()
            entry.reorder_slots()
        for bucket in run.steps.buckets if run.steps is not None else ():
            bucket.adopt(place)
    if run.gradients is None:
        return adopt_weights(run)
    for place in places:
        gradients.replaced_weight(place)
    return gradients


def _lend(run: Run, gradients: Gradients, values: list[Any], zero_grad: bool) -> Steps:
    """Check the gradients, all of them before any is taken, and hand to the engines what they have not seen."""
    run.check_versions()
    views = gradients.check(values, zero_grad, run.steps is None)
    steps = run.ready_steps()
    if not gradients.settled:
        shifts = gradients.fingerprints.now - gradients.fingerprints.before
        for bucket in steps.buckets:
            bucket.lend(views, shifts, gradients.sharing)
        gradients.settle()
        if gradients.fingerprints.compiled is None:
            gradients.make = compiled_comparison((bucket.entries[0].param.library, bucket.engine) for bucket in steps.buckets)
    for bucket in steps.buckets:
        if bucket.plan.calls or not bucket.runner.keeps_addresses:
            bucket.lend_all(values)
    return steps


def _reduce(steps: HostSteps | DeviceSteps) -> None:
    """All that only reads, round by round: passes, what follows from them, and calls."""
    steps.begin()
    for number in steps.rounds:
        steps.read(number)
        steps.finish(number)
        steps.call(number)


def _count(run: Run, active: Sequence[HostSteps | DeviceSteps]) -> None:
    """The step counts, for schedules; one that became part of a graph counts when that is replayed, on the device."""
    graphs = [each for each in active if each.capturing]
    run.captured += graphs  # they go on using their tables
    run.count += not graphs


def _zero(gradients: Gradients, values: Sequence[Any], parameters: int, applied: bool) -> None:
    """Zero gradients outside of a pass: those that it could not, those of frozen parameters, all after a skipped step."""
    places: Iterable[int] = range(len(values))
    if applied:
        places = (*gradients.sharing, *range(parameters, len(values)))
    zero(arrays.view(values[place]) for place in places if values[place] is not None)
