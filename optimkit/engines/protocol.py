"""What the driver and the engines say to each other.

A `Member` is one parameter of a bucket as an engine sees it; `Tables` are the scalars of a step. A runner runs the
stages of one plan on the members of one bucket. There are two kinds: a `HostRunner` returns when the work is done, a
`DeviceRunner` lays out launches, and all those of an optimizer are told of a step together, by `DeviceLaunches`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from optimkit.arrays import DType
from optimkit.fusion.graph import Node
from optimkit.fusion.stages import GRADIENT, WEIGHT, Plan

Call = Callable[[], Any]


class KernelError(RuntimeError):
    """A kernel could not be compiled or loaded; the message holds its text and the compiler's log."""


@dataclass(eq=False, repr=False)
class Member:
    """One parameter of a bucket: its arrays by key, all in the weight's shape, seen in memory order of the weight.

    The gradient is lent: it is there from `arrays_changed` to the end of that step, and missing where there is none.
    `zero_in_pass`: it may be zeroed right after it was read, since nobody else reads it.
    """

    name: str
    size: int
    arrays: dict[Hashable, Any]
    zero_in_pass: bool = True

    @property
    def weight(self) -> Any:
        return self.arrays[WEIGHT]

    @property
    def gradient(self) -> Any:
        """None where there is none in this step."""
        return self.arrays.get(GRADIENT)


@dataclass(eq=False, repr=False)
class Tables:
    """The scalars of a step.

    rows : (rows, hosts) float64, one row per distinct (group, t); row_of : (members,) its row;
    uniforms : (members, uniforms) float64, filled as their rounds are done.
    """

    rows: np.ndarray
    row_of: np.ndarray
    uniforms: np.ndarray
    rows_changed: bool = True
    row_of_changed: bool = True


class Runner(Protocol):
    """What both kinds of runner are told of arrays.

    `keeps_addresses`: it remembers where gradients are, and what they look like. Then `arrays_changed` is called
    for those that look otherwise than when they were last there, `gradients_moved` when others have another address. An
    engine that does not is lent all gradients in every step.
    """

    keeps_addresses: bool

    def __init__(self, plan: Plan, dtype: DType, members: Sequence[Member]) -> None: ...

    def arrays_changed(self, numbers: Sequence[int]) -> None:
        """The weight or the gradient of these members, which have one, is another array."""

    def presence_changed(self, active: np.ndarray) -> None:
        """These members have a gradient, (members,) bool; before the first step, none has."""

    def compile_ahead(self) -> None:
        """Compile what only some steps need; what all need is compiled when it is made."""

    def gradients_moved(self, shifts: np.ndarray) -> None:
        """The gradients lie elsewhere, by so many bytes, (members,) int64; what they look like is as before."""


class HostRunner(Runner, Protocol):
    """An engine at work on one bucket on the host."""

    def prepare(self, tables: Tables) -> None:
        """A step begins, with these rows: allocate what it needs, so that nothing fails once it writes."""

    def reduce(self, number: int, tables: Tables) -> np.ndarray:
        """Run a stage that reduces: (members, reductions) float64."""

    def fill(self, number: int, tables: Tables) -> None:
        """Run a stage that writes what calls are given."""

    def commit(self, tables: Tables, zero: bool) -> list[Call]:
        """What runs the last stage, which writes, and zeroes the gradients that may be zeroed in the same pass.

        Nothing is written yet. All that can fail has been done: the calls do not, and are calls of compiled code.
        """

    def committed(self) -> None:
        """The calls of `commit` were made: raise what a thread of ours could not do after all."""


class DeviceRunner(Runner, Protocol):
    """An engine at work on a bucket whose arrays live on a device; what is read from there waits for it."""

    @property
    def slot_keys(self) -> Sequence[Hashable]:
        """The slots per parameter, in the order of `place_slots`."""

    @property
    def result(self) -> Callable[[], tuple[float, bool]]:
        """Fetches the norm of all gradients of the step, and whether it is finite."""

    def get_counts(self) -> np.ndarray:
        """The updates of each member, int64."""

    def set_counts(self, counts: np.ndarray) -> None: ...

    def place_slots(self, values: np.ndarray) -> Any:
        """Bring the slots per parameter, (members, slots), to the device; the array whose elements are the live ones."""

    def uniform_values(self, node: Node) -> np.ndarray:
        """A uniform value of the last step, one per member."""


@dataclass(eq=False, repr=False)
class Shared:
    """What all buckets of an optimizer have in common, for engines that work on a device.

    entries : the number of parameters of the optimizer; labels : the numbers of its totals, equal ones have the same;
    slots : the values of its slots that it has once, by key; device_count : update counts live on the device;
    skip : the device decides whether a step is applied; capturable : a step may become part of a CUDA graph;
    orders : what keeps the work on each device in order (`arrays/streams.py`), by device.
    """

    entries: int
    labels: dict[Hashable, int] = field(default_factory=dict)
    slots: dict[Hashable, float] = field(default_factory=dict)
    device_count: bool = False
    skip: bool = False
    capturable: bool = False
    orders: Mapping[Hashable, Any] = field(default_factory=dict)

    @property
    def totals(self) -> int:
        """How many different totals there are."""
        return len(set(self.labels.values()))


class DeviceLaunches(Protocol):
    """All runners of an optimizer whose arrays live on devices, in a step: launches, and what passes between devices.

    `capturing`: the step becomes part of a CUDA graph, and does not run.
    """

    capturing: bool

    def __init__(self, runners: Sequence[DeviceRunner], places: Sequence[np.ndarray], shared: Shared) -> None: ...

    def slot_view(self, key: Hashable) -> Any:
        """A slot of the optimizer in device memory, 0-d float64."""

    def upload(self, active: Sequence[DeviceRunner], tables: Sequence[Tables]) -> None:
        """Bring the rows of a step to the devices."""

    def begin(self, active: Sequence[DeviceRunner], tables: Sequence[Tables]) -> None:
        """A step of these runners begins."""

    def read(self, number: int) -> None:
        """Launch the passes of a round."""

    def finish(self, number: int) -> None:
        """Launch what follows from them: totals, and values that depend on them."""

    def on(self, runner: DeviceRunner) -> Any:
        """A context in which the device of a runner is the current one."""

    def commit(self, zero: bool) -> list[Call]:
        """What launches the last stages, as calls of compiled code; nothing is launched yet."""

    def committed(self) -> None:
        """The calls of `commit` were made."""


class Engine(NamedTuple):
    """An engine by its name: what runs a bucket, and what its kernels look like as text.

    runner : the class of its runners; launches : for an engine on a device, the class that runs all of them;
    texts : a function of (plan, dtype) that gives its kernels as text, None for an engine without kernels.
    """

    name: str
    runner: type[HostRunner] | type[DeviceRunner]
    launches: type[DeviceLaunches] | None = None
    texts: Callable[[Plan, DType], list[str]] | None = None

    @property
    def on_device(self) -> bool:
        """Whether its arrays live on a device, where steps run while the host goes on."""
        return self.launches is not None


