"""A step, from the caller's gradients to the arrays: collect, check, rows, reduce, decide, commit.

    take_step(run, grads, zero_grad)

A step in which nothing is new is left to compiled code (`steps/warm.py`), where that can take it. Until the commit
nothing is written, so an error, a skipped step or Ctrl-C leaves everything as it was; the commit can't be interrupted
(`engines/atomic.py`). A preparation that was left half done is done again, from the start (`Run.renew`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from optimkit.driver.gradients.collect import Collected, Gradients
from optimkit.driver.run import Run
from optimkit.driver.steps.build import Steps
from optimkit.driver.steps.device import DeviceSteps
from optimkit.driver.steps.host import HostSteps
from optimkit.driver.steps.result import StepResult
from optimkit.driver.values import step_number
from optimkit.engines.atomic import at_once
from optimkit.engines.protocol import Call


def take_step(run: Run, grads: Any, zero_grad: bool) -> StepResult:
    """One step of all parameters that have a gradient. The lock of the run is held."""
    if run.stepping or not run.entries:
        run.require_entries()
        run.refuse_in_step("step()")
    result: StepResult = run.stepping.call(partial(_take, run, grads, zero_grad))
    return result


def _take(run: Run, grads: Any, zero_grad: bool) -> StepResult:
    run.asked = {}
    if run.links:
        run.check_versions()
    if run.orders.idle:
        return _take_step(run, grads, zero_grad)
    run.orders.enter()
    try:
        return _take_step(run, grads, zero_grad)
    finally:
        run.orders.leave()


def _take_step(run: Run, grads: Any, zero_grad: bool) -> StepResult:
    if run.whole:
        warm = run.warm or run.ready_warm()
        result = warm.take(partial(step_number, run), grads, zero_grad) if warm is not None else None
        if result is not None:
            return result
    return take_anew(run, grads, zero_grad)


def take_anew(run: Run, grads: Any, zero_grad: bool) -> StepResult:
    """A step in which something may be new: arrays, counts, structure."""
    try:
        found, steps = prepare(run, grads, zero_grad)
        active = steps.active  # on the host, on devices, or both
        decisions = [reduce(each) for each in active]  # all are asked
        applied = bool(active) and all(decisions)
        calls = counting(run, active)
        for each in active if applied else ():
            calls += each.commit(zero_grad)
        if zero_grad:
            calls += found.zeroing(applied)
        at_once(calls)
        for each in active if applied else ():
            each.committed()
        return active[-1].result() if active else StepResult(False, None)
    finally:
        if run.steps is not None:
            run.steps.take_back()


def prepare(run: Run, grads: Any, zero_grad: bool) -> tuple[Collected, Steps]:
    """All that comes before the first pass: arrays, gradients, rows of numbers, as the engines know them."""
    if not run.whole:
        run.renew()
    run.whole = False
    if run.warm is not None:
        run.warm.hand_over()
    gradients = adopt_weights(run)
    found = gradients.collect(grads, zero_grad, run.steps is None)
    steps = run.ready_steps()
    steps.lend(found)
    gradients.settle()
    steps.fill_rows(partial(step_number, run))
    for each in steps.active:
        each.prepare()
    run.whole = True
    return found, steps


def adopt_weights(run: Run) -> Gradients:
    """Adopt the weights that stand in their containers now."""
    gradients, watch = run.ready_gradients()
    changed = {id(entry) for entry in watch.changed()}
    if not changed:
        return gradients
    places = [place for place, entry in enumerate(run.entries) if id(entry) in changed]
    for place in places:
        if run.entries[place].take_data():
            run.orders.enter(allocates=True)
            run.forget()
        for bucket in run.steps.buckets if run.steps is not None else ():
            bucket.adopt(place)
    if run.gradients is None:
        return adopt_weights(run)
    for place in places:
        gradients.replaced_weight(place)
    return gradients


def reduce(steps: HostSteps | DeviceSteps) -> bool:
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
            steps.call(number)
    return steps.decide() if applied is None else applied


def counting(run: Run, active: list[HostSteps | DeviceSteps]) -> list[Call]:
    """What counts the step, for schedules; one that became part of a graph counts when that is replayed, on the device."""
    graphs = [each for each in active if each.capturing]
    run.captured.extend(each for each in graphs if each not in run.captured)  # they go on using their tables
    return [] if graphs else [partial(np.add, run.counted, 1, run.counted)]
