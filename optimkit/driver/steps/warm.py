"""A warm step: nothing is new but the addresses of gradients, and which parameters have one.

What only Python can do is done here: the containers are compared, gradients found, numbers and schedules read. One call
of compiled code does the rest (`engines/cpu/step.py`), or says that something is new; then the step is taken as a first
one is. Sets of gradients that take turns are all warm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optimkit.driver.gradients.collect import Gradients
from optimkit.driver.gradients.fingerprints import Compiled
from optimkit.driver.members.watch import ContainerWatch
from optimkit.driver.steps.bucket import Bucket
from optimkit.driver.steps.numbers import Value
from optimkit.driver.steps.result import StepResult
from optimkit.driver.steps.uniforms import Shared
from optimkit.engines.atomic import at_once


class WarmStep:
    """The warm steps of buckets as they are prepared now; `compiled` takes them."""

    def __init__(
        self,
        gradients: Gradients,
        watch: ContainerWatch,
        buckets: Sequence[Bucket],
        compiled: Compiled,
        result: Callable[[], StepResult] | None = None,
    ) -> None:
        self.gradients, self.watch, self.compiled = gradients, watch, compiled
        self.result = result
        self.buckets, self.numbers = list(buckets), [bucket.numbers for bucket in buckets]
        self.read = gradients.mirror.read_plain
        self.ids: np.ndarray | None = None
        self.runners: list[Any] = [bucket.runner for bucket in buckets]
        self.threaded = any(runner.threaded for runner in self.runners)
        self.ahead = False  # of the buckets: compiled code may have counted, or placed gradients, since they were told

    @classmethod
    def of(
        cls,
        gradients: Gradients,
        watch: ContainerWatch,
        buckets: Sequence[Bucket],
        compiled: Compiled,
        shared: Shared,
        checked: bool,
        steps: np.ndarray,
        result: Callable[[], StepResult] | None = None,
    ) -> WarmStep | None:
        """Those of buckets that have taken a first step; None where compiled code can't take them.

        `shared` are the slots of the optimizer. `checked`: a step with a NaN or Inf in a gradient is left to others. Steps
        are counted in `steps`. `result` gives what they tell, where that is on a device.
        """
        parts = [
            (each.runner, each.places, each.t, each.group_of, each.numbers.table, [entry.uniforms for entry in each.entries])
            for each in buckets
        ]
        served = compiled.serve(parts, shared, checked, steps)
        return cls(gradients, watch, buckets, compiled, result) if served else None

    def take(self, value: Value, grads: Any, zero: bool) -> StepResult | None:
        """Take a step, or None, and nothing is written. `value` gives the numbers, as `Numbers` reads them."""
        gradients, watch = self.gradients, self.watch
        standing = None if gradients.sharing else watch.standing()
        if standing is None:
            return None
        values = gradients.own() if grads is None else self.read(grads)
        if values is None or (zero and (gradients.frozen or gradients.folded)):
            return None
        for place in gradients.frozen:
            values[place] = None
        for numbers in self.numbers:
            numbers.refresh(value)
        gradients.passed = grads is not None
        if watch.ids is not self.ids:
            self.compiled.expect(watch.ids)
            self.ids = watch.ids
        self.ahead = True
        taken = (self._on_threads if self.threaded else self.compiled.run)(standing, values, zero)
        if not taken:
            return None
        return StepResult(True, self.compiled.norm) if self.result is None else self.result()

    def hand_over(self) -> None:
        """Tell the buckets what compiled code did: a step is taken that is not warm."""
        if self.ahead:
            present = self.gradients.fingerprints.present_before != 0
            for bucket in self.buckets:
                bucket.stepped_elsewhere(present)
            self.ahead = False

    def _on_threads(self, standing: list[Any], values: list[Any], zero: bool) -> int:
        for runner in self.runners:
            runner.ready_threads()
        if not self.compiled.prepare(standing, values, zero):
            return 0
        at_once([*(call for runner in self.runners for call in runner.commit_warm(zero)), self.compiled.count])
        return 1
