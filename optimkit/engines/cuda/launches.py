"""All CUDA buckets of an optimizer in a step: the order of their launches.

One bucket: each pass is one launch, whose last block computes what follows from it. Several: the passes of
a round, then one small launch per bucket computes what follows, then what each parameter adds to a total goes to
the other devices.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from optimkit.engines.cuda.exchange import DeviceExchange
from optimkit.engines.protocol import Shared, Tables


class CudaLaunches:
    """The CUDA buckets of one optimizer.

    Parameters
    ----------
    runners : sequence of CudaRunner
        All of them; a step may concern some.
    places : sequence
        Where the members of each stand among all parameters.
    """

    def __init__(self, runners: Sequence[Any], places: Sequence[np.ndarray], shared: Shared) -> None:
        self.runners, self.shared, self.capturing = list(runners), shared, False
        self.active: list[Any] = []
        self.devices = list(dict.fromkeys(runner.device.id for runner in runners))
        self.exchange = DeviceExchange(self.devices, shared)
        for runner, place in zip(runners, places, strict=True):
            number = runner.device.id
            order = self.devices.index(number), len(self.devices)
            runner.connect(shared, place, *order, self.exchange.contributions[number], self.exchange.slots[number])

    def slot_view(self, key: Hashable) -> Any:
        """A slot of the optimizer in device memory, 0-d float64."""
        return self.exchange.slot_view(key)

    def on(self, runner: Any) -> _Current:
        """A context in which the device of a runner is the current one; it gives the current stream."""
        return _Current(runner.device)

    def upload(self, active: Sequence[Any], tables: Sequence[Tables]) -> None:
        """Bring the rows of a step to the devices."""
        for runner, own in zip(active, tables, strict=True):
            with self.on(runner) as stream:
                runner.send_rows(own.rows, stream)

    def begin(self, active: Sequence[Any], tables: Sequence[Tables]) -> None:
        """A step of these runners begins: its tables are brought to the devices."""
        self.active = list(active)
        self.capturing = self._check_capture(active, tables)
        self._forget_absent()
        self.exchange.share_slots(self.devices[0], self.shared.slots)
        for runner, own in zip(active, tables, strict=True):
            with self.on(runner) as stream:
                runner.begin(own, stream, len(active) == 1, self.capturing)

    def read(self, number: int) -> None:
        """Launch the passes of a round."""
        for runner in self.active:
            plan = runner.plan
            for place, stage in enumerate(plan.stages[:-1]):
                if stage.round == number:
                    with self.on(runner) as stream:
                        (runner.read if stage.reductions else runner.fill)(place, stream)

    def finish(self, number: int) -> None:
        """Launch what follows from them. The only bucket does so in its passes, but for what comes before the first."""
        if len(self.active) == 1 and number not in self.active[0].uniform.head_rounds():
            return
        for runner in self.active:
            with self.on(runner) as stream:
                runner.finish(number, stream)
        if len(self.active) > 1 and any(number in runner.uniform.numbers for runner in self.active):
            self.exchange.share()

    def _check_capture(self, active: Sequence[Any], tables: Sequence[Tables]) -> bool:
        """Whether this step becomes part of a CUDA graph; an error, before any launch, where it can't."""
        import cupy

        if not any(cupy.cuda.get_current_stream(number).is_capturing() for number in self.devices):
            return False
        if not self.shared.capturable:
            raise RuntimeError(
                "this step would be captured in a CUDA graph, which repeats its numbers and counts as they are now; "
                "build the optimizer with capturable=True"
            )
        if len(self.devices) > 1:
            raise RuntimeError(
                "parameters on several devices can't be captured in a CUDA graph; use an optimizer for each device"
            )
        for runner, own in zip(active, tables, strict=True):
            runner.refuse_capture(own)
        if any(runner.contributes and runner not in active for runner in self.runners):
            raise RuntimeError("other parameters had a gradient before; run one step with these before the capture")
        return True

    def _forget_absent(self) -> None:
        """Buckets that take no part any more add nothing to the totals."""
        absent = [runner for runner in self.runners if runner.contributes and runner not in self.active]
        for runner in absent:
            with self.on(runner):
                runner.clear_contributions()
        if absent:
            self.exchange.share()

    def commit(self, zero: bool, launched: Callable[[int], None]) -> None:
        """Run the last stages; `launched` is told after each.

        A slot of the optimizer is written by the bucket that has the first parameter with a gradient, of those that have
        the slot; it is launched last, since the others read the slot.
        """
        active = self.active
        order = sorted(range(len(active)), key=lambda place: active[place].first_present, reverse=True)
        writers = {key: active[place] for place in order for key in active[place].uniform.shared}
        slots = {id(runner): [key for key, writer in writers.items() if writer is runner] for runner in active}
        for place in order:
            runner = active[place]
            with self.on(runner) as stream:
                runner.write(zero, slots[id(runner)], stream)
            launched(place)
        for key, writer in writers.items():
            self.exchange.share_slots(writer.device.id, [key])


class _Current:
    """A device made current, and its current stream."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __enter__(self) -> Any:
        import cupy

        self.device.__enter__()
        return cupy.cuda.get_current_stream()

    def __exit__(self, *exception: Any) -> None:
        self.device.__exit__(*exception)
