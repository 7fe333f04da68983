"""A step, from the caller's gradients to the arrays: collect, check, rows, reduce, decide, commit.

    take_step(run, grads, zero_grad)

A step in which nothing is new is left to compiled code (`steps/warm.py`), where that can take it. Until the commit
nothing is written, so an error, a skipped step or Ctrl-C leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optimkit.driver.gradients.collect import Gradients
from optimkit.driver.run import Run
from optimkit.driver.steps.device import DeviceSteps
from optimkit.driver.steps.host import HostSteps
from optimkit.driver.steps.interrupts import deferred_interrupts
from optimkit.driver.steps.result import StepResult


def take_step(run: Run, grads: Any, zero_grad: bool) -> StepResult:
    """One step of all parameters that have a gradient. The lock of the run is held."""
    if run.stepping or not run.entries:
        run.require_entries()
        run.refuse_in_step("step()")
    run.stepping = True
    try:
        if run.links:
            run.check_versions()
        warm = run.warm or run.ready_warm()
        result = warm.take(run.step_number, grads, zero_grad) if warm is not None else None
        return result if result is not None else take_anew(run, grads, zero_grad)
    finally:
        run.stepping = False


def take_anew(run: Run, grads: Any, zero_grad: bool) -> StepResult:
    """A step in which something may be new: arrays, counts, structure."""
    if run.warm is not None:
        run.warm.hand_over()
    try:
        gradients = adopt_weights(run)
        found = gradients.collect(grads, zero_grad, run.steps is None)
        steps = run.ready_steps()
        steps.lend(found)
        gradients.settle()
        steps.fill_rows(run.step_number)
        active = steps.active  # on the host, on devices, or both
        for each in active:
            each.prepare()
        with deferred_interrupts() as interrupts:
            decisions = [reduce(each, interrupts) for each in active]  # all are asked
            applied = bool(active) and all(decisions)
            count(run, active)
            for each in active if applied else ():
                each.commit(zero_grad)
            if zero_grad:
                found.zero(applied)
            return active[-1].result() if active else StepResult(False, 0.0)
    finally:
        if run.steps is not None:
            run.steps.take_back()


def adopt_weights(run: Run) -> Gradients:
    """Adopt the weights that stand in their containers now."""
    gradients, watch = run.ready_gradients()
    changed = {id(entry) for entry in watch.changed()}
    if not changed:
        return gradients
    places = [place for place, entry in enumerate(run.entries) if id(entry) in changed]
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


def reduce(steps: HostSteps | DeviceSteps, interrupts: deferred_interrupts) -> bool:
    """All that only reads, round by round: passes, what follows from them, and calls of hooks that get whole arrays.

    Returns
    -------
    bool
        Whether the step is to be applied. No hook is called in a step that is not.
    """
    steps.begin()
    applied = None
    for number in steps.rounds:
        steps.read(number)
        steps.finish(number)
        if number in steps.calls:
            applied = steps.decide() if applied is None else applied
            if not applied:
                return False
            with interrupts.lifted():  # Ctrl-C stops a hook; nothing is written yet
                steps.call(number)
    return steps.decide() if applied is None else applied


def count(run: Run, active: Sequence[HostSteps | DeviceSteps]) -> None:
    """The step counts, for schedules; one that became part of a graph counts when that is replayed, on the device."""
    graphs = [each for each in active if each.capturing]
    run.captured += graphs  # they go on using their tables
    run.count += not graphs
