"""All CUDA buckets of an optimizer in a step: the order of their launches.

One bucket: each pass is one launch, whose last block computes what follows from it. Several: the passes of
a round, then one small launch per bucket computes what follows, then what each parameter adds to a total goes to
the other devices.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from optimkit.counting import counters
from optimkit.engines.cuda.exchange import DeviceExchange
from optimkit.engines.protocol import Call, Shared, Tables

Kernel = Callable[..., None]  # what launches one, but for the stream and the arguments


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
        import cupy

        self.runners, self.shared, self.capturing = list(runners), shared, False
        self._current_device, self._current_stream = cupy.cuda.runtime.getDevice, cupy.cuda.get_current_stream
        self.active: list[Any] = []
        self.devices = list(dict.fromkeys(runner.device.id for runner in runners))
        self.exchange = DeviceExchange(self.devices, shared)
        for runner, own in zip(runners, places, strict=True):
            number = runner.device.id
            tables = self.exchange.contributions[number], self.exchange.slots[number]
            runner.connect(self, self.devices.index(number), shared, own, *tables)
        self._laid_out: list[Any] = []  # what the launches below are for
        self._passes: dict[int, list[tuple[Any, Kernel]]] = {}  # (runner, kernel) of each round,
        self._finishing: dict[int, list[tuple[Any, Kernel]]] = {}  # and of what follows from it
        self._last: list[tuple[int, int]] = []  # (place among the active, bits of the slots that it writes), in order
        self._writers: dict[Hashable, int] = {}  # the device on which each slot of the optimizer is written
        self._unshared: dict[Hashable, int] = {}  # those that the other devices do not have yet
        self._warm: list[Call] = []  # all launches of a step of all runners,
        self._warm_of: int | None = None  # on this stream

    def slot_view(self, key: Hashable) -> Any:
        """A slot of the optimizer in device memory, 0-d float64."""
        return self.exchange.slot_view(key)

    def on(self, runner: Any) -> Any:
        """A context in which the device of a runner is the current one."""
        return runner.device

    def upload(self, active: Sequence[Any], tables: Sequence[Tables]) -> None:
        """Bring the rows of a step to the devices."""
        for runner, own in zip(active, tables, strict=True):
            with runner.device:
                runner.send_rows(own.rows, self._current_stream())
                own.rows_changed = False

    def begin(self, active: Sequence[Any], tables: Sequence[Tables]) -> None:
        """A step of these runners begins: its tables are brought to the devices."""
        streams = {number: self._current_stream(number) for number in self.devices}
        self.capturing = any(stream.is_capturing() for stream in streams.values())
        if self.capturing:
            self._check_capture(active, tables)
        wanted = [(runner, runner.first_place) for runner in active]
        if wanted != self._laid_out:
            self._forget_absent(active)
            self._lay_out(active)
            self._laid_out = wanted
        self.committed()  # where a step was interrupted
        if self.shared.slots:
            self.exchange.share_slots(self.devices[0], self.shared.slots)
        current = self._current_device()
        for runner, own in zip(active, tables, strict=True):
            number = runner.device.id
            runner.elsewhere = number != current
            if runner.elsewhere:
                with runner.device:
                    runner.begin(own, streams[number], len(active) == 1, self.capturing)
            else:
                runner.begin(own, streams[number], len(active) == 1, self.capturing)

    def read(self, number: int) -> None:
        """Launch the passes of a round."""
        for runner, kernel in self._passes.get(number, ()):
            runner.launch(kernel)

    def finish(self, number: int) -> None:
        """Launch what follows from them. The only bucket does so in its passes, but for what comes before the first."""
        for runner, kernel in self._finishing.get(number, ()):
            runner.launch(kernel)
        if len(self.active) > 1 and any(number in runner.uniform.adding_rounds for runner in self.active):
            self.exchange.share()

    def _lay_out(self, active: Sequence[Any]) -> None:
        """What the rounds of a step of these runners are.

        A slot of the optimizer is written by the bucket that has the first parameter with a gradient, of those that have
        the slot; it is launched last, since the others read the slot.
        """
        self._laid_out, self._warm_of = [], None  # should this be interrupted
        self.active, self._passes, self._finishing = list(active), {}, {}
        for runner in active:
            for place, stage in enumerate(runner.plan.stages[:-1]):
                self._passes.setdefault(stage.round, []).append((runner, runner.passes[place]))
            for number in runner.uniform.numbers:
                if len(active) > 1 or number in runner.uniform.head_rounds():
                    self._finishing.setdefault(number, []).append((runner, runner.finishing[number]))
        order = sorted(range(len(active)), key=lambda place: active[place].first_place, reverse=True)
        writers = {key: place for place in order for key in active[place].uniform.shared}
        self._writers = {key: active[place].device.id for key, place in writers.items()}
        self._last = []
        for place in order:
            bits = [1 << active[place].uniform.places[key] for key, writer in writers.items() if writer == place]
            self._last.append((place, sum(bits)))

    def _check_capture(self, active: Sequence[Any], tables: Sequence[Tables]) -> None:
        """An error, before any launch, where this step can't become part of a CUDA graph."""
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

    def _forget_absent(self, active: Sequence[Any]) -> None:
        """Buckets that take no part any more add nothing to the totals."""
        absent = [runner for runner in self.runners if runner.contributes and runner not in active]
        for runner in absent:
            with runner.device:
                runner.clear_contributions()
        if absent:
            self.exchange.share()

    # ---- steps that compiled code has prepared (`step`)

    def can_be_warm(self, checked: bool) -> bool:
        """Whether all launches of a step can be made at once: on one device, and the host decides and calls nothing."""
        decides = checked and not self.shared.skip
        one_writer = not self.shared.slots or len(self.runners) == 1
        return len(self.devices) == 1 and one_writer and not decides and not any(runner.plan.calls for runner in self.runners)

    def warm_stream(self) -> Any:
        """The stream of a step that begins; None where it is captured, or another device is the current one."""
        if self._current_device() != self.devices[0]:
            return None
        stream = self._current_stream()
        self.capturing = stream.is_capturing()
        return None if self.capturing else stream

    def warm(self, stream: Any, zero: bool) -> list[Call]:
        """All launches of a step of all runners."""
        if self._warm_of != stream.ptr or len(self._laid_out) != len(self.runners):
            self._lay_out(self.runners)
            self._laid_out = [(runner, runner.first_place) for runner in self.runners]
            self._warm, self._warm_of = self._all_launches(stream), stream.ptr
        for place, slots in self._last:
            self.runners[place].tell_write(zero, slots)
        counters.launches += len(self._warm)
        return self._warm

    def _all_launches(self, stream: Any) -> list[Call]:
        found: list[Call] = []
        for number in sorted({*self._passes, *self._finishing}):
            both = *self._passes.get(number, ()), *self._finishing.get(number, ())
            found += [runner.bound(kernel, stream) for runner, kernel in both]
        return found + [self.runners[place].bound(self.runners[place].last, stream) for place, _ in self._last]

    def commit(self, zero: bool) -> list[Call]:
        """What runs the last stages."""
        self._unshared = dict(self._writers) if len(self.devices) > 1 else {}
        return [call for place, slots in self._last for call in self.active[place].write(zero, slots)]

    def committed(self) -> None:
        """The calls were made: what one device wrote goes to the others."""
        for key, device in self._unshared.items():
            self.exchange.share_slots(device, [key])
        self._unshared = {}
