"""A step on the host: passes of engines that return when they are done, and the uniform values between them.

`HostSteps` has the same verbs as `DeviceSteps`: begin, read, finish, call, decide, commit,
committed, result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from optimkit.driver.steps.bucket import Bucket
from optimkit.driver.steps.calls import run_calls
from optimkit.driver.steps.common import Common
from optimkit.driver.steps.result import NonFiniteGradientError, StepResult, name_nonfinite
from optimkit.driver.steps.uniforms import Uniforms
from optimkit.engines.protocol import Call, HostRunner


class _Part(NamedTuple):
    """A bucket, the engine at work on it, and its uniform values."""

    bucket: Bucket
    runner: HostRunner
    uniforms: Uniforms


class HostSteps:
    """All buckets of an optimizer whose arrays engines of the host read and write.

    Parameters
    ----------
    buckets : sequence of Bucket
        They are in it for good; a step concerns some of them.
    common : Common
        What they have in common.
    """

    capturing = False  # steps on the host never become part of a graph

    def __init__(self, buckets: Sequence[Bucket], common: Common) -> None:
        self.buckets, self.shared, self.nonfinite = list(buckets), common.shared, common.nonfinite
        self.exchange = common.exchange
        self.parts = [_Part(bucket, cast(HostRunner, bucket.runner), Uniforms(bucket)) for bucket in buckets]
        self.active: list[_Part] = []
        self.rounds: list[int] = []  # of the active buckets: those in which there is something to do
        self.calls: frozenset[int] = frozenset()  # those in which there are calls
        self.norm: float | None = None
        self.applied, self._has_norm = True, False

    def prepare(self) -> None:
        """A step of the buckets that have gradients: allocate what it needs, so that nothing fails once it writes."""
        active = [part for part in self.parts if part.bucket.n_active]
        if active != self.active:
            self.active = active
            self.rounds = sorted({number for part in active for number in part.bucket.plan.rounds})
            self.calls = frozenset(call.round for part in active for call in part.bucket.plan.calls)
            self._has_norm = all(part.bucket.plan.program.gradient_norm is not None for part in active)
        for bucket, runner, _ in active:
            runner.prepare(bucket.tables)

    def begin(self) -> None:
        """The step begins."""
        for _, _, uniforms in self.active:
            uniforms.start(self.shared)

    def read(self, number: int) -> None:
        """Run the passes of a round: those that reduce, and those that write what calls are given."""
        for bucket, runner, uniforms in self.active:
            for place, stage in enumerate(bucket.plan.stages[:-1]):
                if stage.round != number:
                    continue
                if not stage.reductions:
                    runner.fill(place, bucket.tables)
                    continue
                results = runner.reduce(place, bucket.tables)
                for column, node in enumerate(stage.reductions):
                    uniforms.keep(node, results[:, column])

    def finish(self, number: int) -> None:
        """Compute what follows from the passes of a round: totals over all buckets, and the values of each parameter."""
        if not number:
            return
        totals = self.exchange.totals((bucket.places, uniforms.contributions(number)) for bucket, _, uniforms in self.active)
        for _, _, uniforms in self.active:
            uniforms.finish(number, totals)

    def call(self, number: int) -> None:
        """Make the calls of a round."""
        for bucket, _, uniforms in self.active:
            run_calls(bucket, number, uniforms.value)

    def decide(self) -> bool:
        """Whether the step is to be applied; known when all rounds are done, and before the first call.

        Raises
        ------
        NonFiniteGradientError
            With `nonfinite="raise"`.
        """
        self.norm = self.active[0].uniforms.gradient_norm() if self._has_norm else None
        self.applied = self.nonfinite == "allow" or self.norm is None or bool(np.isfinite(self.norm))
        if not self.applied and self.nonfinite == "raise":
            found = ((bucket, uniforms.values[bucket.plan.program.gradient_sum]) for bucket, _, uniforms in self.active)
            raise NonFiniteGradientError(name_nonfinite(found))
        return self.applied

    def commit(self, zero: bool) -> list[Call]:
        """What writes weights, slots and counts."""
        active = self.active
        if self.shared:  # their values are those of the first parameter: its bucket comes last
            active = sorted(active, key=lambda part: part.bucket.first_place, reverse=True)
        calls = []
        for bucket, runner, uniforms in active:
            calls += [*runner.commit(bucket.tables, zero), *uniforms.write_slots(self.shared), *bucket.count_up()]
            if bucket.library.counts_writes:
                bucket.library.written(bucket.written())
        return calls

    def committed(self) -> None:
        """The calls were made."""
        for bucket, runner, _ in self.active:
            bucket.counted()
            runner.committed()

    def result(self) -> StepResult:
        """What the step tells."""
        return StepResult(self.applied, self.norm)
