"""A step on devices: the host lays out the launches, and does not wait for them.

`DeviceSteps` has the same verbs as `HostSteps`. It knows no array library; the engine's own class (`Engine.launches`)
does the launches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import numpy as np

from optimkit.driver.steps.bucket import Bucket
from optimkit.driver.steps.calls import run_calls
from optimkit.driver.steps.common import Common
from optimkit.driver.steps.result import NonFiniteGradientError, StepResult, name_nonfinite
from optimkit.engines import protocol
from optimkit.fusion.graph import Level, Node
from optimkit.fusion.stages import number_totals


class DeviceSteps:
    """All buckets of an optimizer whose arrays live on devices.

    Parameters
    ----------
    buckets : sequence of Bucket
        They are in it for good; a step concerns some of them.
    common : Common
        What they have in common. Where steps are left out, the kernels themselves see whether one is applied.
    """

    def __init__(self, buckets: Sequence[Bucket], common: Common) -> None:
        shared, capturable = common.shared, common.capturable
        self.buckets, self.nonfinite = list(buckets), common.nonfinite
        self.skip = self.nonfinite == "skip"
        self.device_count = self.skip or capturable
        labels = number_totals(bucket.plan for bucket in buckets)
        slots: dict[Hashable, float] = {("slot", *key, "optimizer"): float(value) for key, value in shared.items()}
        settings = protocol.Shared(
            common.exchange.entries, labels, slots, self.device_count, self.skip, capturable, common.orders
        )
        launches = buckets[0].engine.launches
        assert launches is not None
        self.launches = launches([_runner(bucket) for bucket in buckets], [bucket.places for bucket in buckets], settings)
        for key in shared:
            shared[key] = self.launches.slot_view(("slot", *key, "optimizer"))
        for bucket in buckets:
            self._place_slots(bucket)
            if self.device_count:
                bucket.counts_on_device = True
                _runner(bucket).set_counts(bucket.t)
        self.active: list[Bucket] = []
        self._begun: tuple[list[protocol.DeviceRunner], list[protocol.Tables]] = [], []  # what the launches are told of these
        self.rounds: list[int] = []  # of the active buckets: those in which there is something to do
        self.calls: frozenset[int] = frozenset()  # those in which there are calls

    def _place_slots(self, bucket: Bucket) -> None:
        """The slots per parameter move to the device; `opt.state` shows them there."""
        keys: list[Any] = [key[1:3] for key in _runner(bucket).slot_keys]  # type: ignore[index]
        values = np.array([[float(entry.uniforms[key]) for key in keys] for entry in bucket.entries])
        table = _runner(bucket).place_slots(values.reshape(len(bucket.entries), len(keys)))
        for p, entry in enumerate(bucket.entries):
            for column, key in enumerate(keys):
                entry.uniforms[key] = table[p, column]

    def upload(self) -> None:
        """Bring the rows of the buckets that have gradients to the device, without a step."""
        active = [bucket for bucket in self.buckets if bucket.n_active]
        self.launches.upload([_runner(bucket) for bucket in active], [bucket.tables for bucket in active])

    def prepare(self) -> None:
        """A step of the buckets that have gradients."""
        active = [bucket for bucket in self.buckets if bucket.n_active]
        if active != self.active:
            self.active = active
            self._begun = [_runner(bucket) for bucket in active], [bucket.tables for bucket in active]
            self.rounds = sorted({number for bucket in active for number in bucket.plan.rounds})
            self.calls = frozenset(call.round for bucket in active for call in bucket.plan.calls)

    def begin(self) -> None:
        """The step begins: its tables are brought to the device."""
        self.launches.begin(*self._begun)

    def read(self, number: int) -> None:
        """Launch the passes of a round."""
        self.launches.read(number)

    def finish(self, number: int) -> None:
        """Launch what follows from them."""
        self.launches.finish(number)

    def call(self, number: int) -> None:
        """Make the calls of a round, on the current stream of each device."""
        for bucket in self.active:
            with self.launches.on(_runner(bucket)):
                run_calls(bucket, number, self._value_of(bucket))

    def _value_of(self, bucket: Bucket) -> Callable[[Node], Any]:
        """The numbers of calls; a count that lives on the device is fetched, which waits for it."""

        def value(node: Node) -> Any:
            if node.level is Level.HOST:
                return bucket.tables.rows[bucket.tables.row_of, bucket.plan.hosts.index(node)]
            return _runner(bucket).get_counts() + 1

        return value

    def decide(self) -> bool:
        """Whether the last stages are to be launched; there the device itself sees whether the step is applied.

        The host waits for the device with `nonfinite="raise"`, and with "skip" if there are calls to be made.

        Raises
        ------
        NonFiniteGradientError
            With `nonfinite="raise"`.
        """
        if self.nonfinite == "allow" or (self.skip and not self.calls):
            return True
        _, finite = _runner(self.active[0]).result()
        if not finite and self.nonfinite == "raise":
            found = ((bucket, _runner(bucket).uniform_values(bucket.plan.program.gradient_sum)) for bucket in self.active)
            raise NonFiniteGradientError(name_nonfinite(found))
        return finite

    def commit(self, zero: bool) -> list[protocol.Call]:
        """What launches the last stages, and counts."""
        return [*self.launches.commit(zero), *(call for bucket in self.active for call in bucket.count_up())]

    def committed(self) -> None:
        """The calls were made."""
        self.launches.committed()
        for bucket in self.active:
            bucket.counted()

    @property
    def capturing(self) -> bool:
        """Whether the step became part of a CUDA graph, and did not run."""
        return bool(self.launches.capturing)

    def result(self) -> StepResult:
        """What the step tells; fetched from the device when it is read."""
        return self._result(self.active[0])

    def result_of_all(self) -> StepResult:
        """The same, of a step of all buckets."""
        return self._result(self.buckets[0])

    def _result(self, first: Bucket) -> StepResult:
        if first.plan.program.gradient_norm is None:
            return StepResult(True, None)
        return StepResult(True, None, Pending(_runner(first).result, self.skip, self.capturing))


def _runner(bucket: Bucket) -> protocol.DeviceRunner:
    return cast(protocol.DeviceRunner, bucket.runner)


class Pending:
    """The norm and the decision of a step, in device memory; `repeated`: graphs write them anew."""

    def __init__(self, fetch: Callable[[], tuple[float, bool]], skip: bool, repeated: bool) -> None:
        self.fetch, self.skip, self.repeated = fetch, skip, repeated

    def values(self) -> tuple[bool, float]:
        """(applied, norm); waits for the device."""
        norm, finite = self.fetch()
        return finite or not self.skip, norm
