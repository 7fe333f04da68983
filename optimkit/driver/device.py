"""Steps on a device: the host lays out the launches, and does not wait for them.

Buckets of arrays that live on devices share a `DeviceSteps`. It knows no array library; the engine's own
class (`Runner.together`) does the launches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import numpy as np

from optimkit.driver.bucket import Bucket
from optimkit.driver.entries import Entry
from optimkit.driver.result import StepResult
from optimkit.engines.runner import DeviceRunner, Shared


class DeviceSteps:
    """All buckets of an optimizer whose arrays live on devices.

    Parameters
    ----------
    buckets : sequence of Bucket
        All buckets of the optimizer; those of the host are left alone.
    entries : sequence of Entry
        All parameters.
    shared : dict
        The slots that the optimizer has once; they become views of device memory.

    Raises
    ------
    ValueError
        If totals over all parameters are wanted where some are on the host.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        entries: Sequence[Entry],
        shared: dict[tuple[int, str], Any],
        skip: bool,
        capturable: bool,
    ) -> None:
        own = [bucket for bucket in buckets if bucket.on_device]
        labels = tuple(dict.fromkeys(node.key for bucket in buckets for node in bucket.plan.program.totals))
        slots: dict[Hashable, float] = {("slot", *key, "optimizer"): float(value) for key, value in shared.items()}
        if len(own) < len(buckets) and (labels or slots):
            raise ValueError(
                "some parameters are on the host and some on a device, and this optimizer takes a total over all of them "
                "(a norm for clipping or for nonfinite='raise' or 'skip', or a slot per optimizer); use one optimizer for each"
            )
        self.device_count, self.skip = skip or capturable, skip
        settings = Shared(len(entries), labels, slots, self.device_count, skip, capturable)
        runners = [bucket.runner for bucket in own]
        self.together = runners[0].together(runners, [bucket.places for bucket in own], settings)
        for key in shared:
            shared[key] = self.together.slot_view(("slot", *key, "optimizer"))
        for bucket in own:
            bucket.device = self
            self._place_slots(bucket)
            if self.device_count:
                _runner(bucket).set_counts(bucket.t)

    def _place_slots(self, bucket: Bucket) -> None:
        """The slots per parameter move to the device; `opt.state` shows them there."""
        runner = _runner(bucket)
        keys: list[Any] = [key[1:3] for key in runner.slot_keys]  # type: ignore[index]
        values = np.array([[float(entry.uniforms[key]) for key in keys] for entry in bucket.entries])
        table = runner.place_slots(values.reshape(len(bucket.entries), len(keys)))
        for p, entry in enumerate(bucket.entries):
            for column, key in enumerate(keys):
                entry.uniforms[key] = table[p, column]

    def reduce(self, active: Sequence[Bucket]) -> None:
        """Launch all passes that read."""
        self.together.reduce([bucket.runner for bucket in active], [bucket.tables for bucket in active])

    def upload(self, active: Sequence[Bucket]) -> None:
        """Bring the rows to the device."""
        self.together.upload([bucket.runner for bucket in active], [bucket.tables for bucket in active])

    def commit(self, active: Sequence[Bucket], zero: bool) -> None:
        """Launch the last stages, and count."""

        def launched(place: int) -> None:
            if not self.device_count:
                active[place].count_up()

        self.together.commit([bucket.runner for bucket in active], zero, launched)

    @property
    def capturing(self) -> bool:
        """Whether the step became part of a CUDA graph, and did not run."""
        return bool(self.together.capturing)

    def result(self, active: Sequence[Bucket]) -> StepResult:
        """What the step tells; fetched from the device when it is read."""
        if active[0].plan.program.gradient_norm is None:
            return StepResult(True, None)
        return StepResult(True, None, Pending(_runner(active[0]).result, self.skip))

    def fetch_norm(self, active: Sequence[Bucket]) -> float:
        """The norm of all gradients; waits for the device."""
        return _runner(active[0]).result()[0]

    def fetch_sums(self, active: Sequence[Bucket]) -> None:
        """Bring the sums of squares of the step to the buckets' `values`; waits for the device."""
        for bucket in active:
            nodes = [node for stage in bucket.plan.reading for node in stage.reductions if node.op == "sum_of_squares"]
            bucket.values = {node: _runner(bucket).uniform_values(node) for node in nodes}


def _runner(bucket: Bucket) -> DeviceRunner:
    return cast(DeviceRunner, bucket.runner)


class Pending:
    """The norm and the decision of a step, in device memory."""

    def __init__(self, fetch: Callable[[], tuple[float, bool]], skip: bool) -> None:
        self.fetch, self.skip = fetch, skip

    def values(self) -> tuple[bool, float]:
        """(applied, norm); waits for the device."""
        norm, finite = self.fetch()
        return finite or not self.skip, norm
