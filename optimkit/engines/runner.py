"""What the driver and the engines say to each other.

A `Member` is one parameter of a bucket as an engine sees it; `Tables` are the scalars of a step; a
`Runner` runs the stages of one plan on the members of one bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from optimkit.fusion.graph import Node
from optimkit.fusion.stages import Plan


@dataclass(eq=False)
class Member:
    """One parameter of a bucket: its weight and gradient seen in memory order, its slots, flat.

    `gradient` is lent: it is there from `members_changed` to the end of that step, and None where there is none.
    `zero_in_pass`: it may be zeroed right after it was read, since nobody else reads it.
    """

    name: str
    weight: Any
    slots: dict[Hashable, Any]
    size: int
    gradient: Any = None
    zero_in_pass: bool = True


@dataclass
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


@dataclass
class Shared:
    """What all buckets of an optimizer have in common, for engines that work on a device.

    entries : the number of parameters of the optimizer; labels : its totals, in order; slots : the
    values of its slots that it has once, by key; device_count : update counts live on the device;
    skip : the device decides whether a step is applied; capturable : a step may become part of a CUDA graph.
    """

    entries: int
    labels: tuple[Hashable, ...] = ()
    slots: dict[Hashable, float] = field(default_factory=dict)
    device_count: bool = False
    skip: bool = False
    capturable: bool = False


class Runner(Protocol):
    """An engine at work on one bucket.

    `together` is None, or, for an engine whose arrays live on a device, the class that runs all of
    its buckets of an optimizer: instead of `reduce` and `commit`, which wait for results.

    `keeps_addresses`: it remembers where gradients are, and what they look like. Then `members_changed` is called
    for those that look otherwise than in the step before, `gradients_moved` when others have another address. An
    engine that does not is lent all gradients in every step.
    """

    name: str
    together: Any
    keeps_addresses: bool

    def __init__(self, plan: Plan, dtype: str, members: Sequence[Member]) -> None: ...

    def members_changed(self, numbers: Sequence[int]) -> None:
        """The weight or the gradient of these members is another array, there is none, or one again."""

    def gradients_moved(self, shifts: np.ndarray) -> None:
        """The gradients lie elsewhere, by so many bytes, (members,) int64; what they look like is as before."""

    def prepare(self, tables: Tables) -> None:
        """A step begins, with these rows: allocate what it needs, so that nothing fails once it writes."""

    def reduce(self, number: int, tables: Tables) -> np.ndarray:
        """Run a reading stage: (members, reductions) float64."""

    def commit(self, tables: Tables, zero: bool) -> None:
        """Run the last stage, which writes; zero the gradients that may be zeroed in the same pass."""


class DeviceRunner(Runner, Protocol):
    """An engine at work on a bucket whose arrays live on a device; what is read from there waits for it.

    `result` fetches the norm of all gradients of the step, and whether it is finite.
    """

    slot_keys: Sequence[Hashable]
    result: Callable[[], tuple[float, bool]]

    def get_counts(self) -> np.ndarray:
        """The updates of each member, int64."""

    def set_counts(self, counts: np.ndarray) -> None: ...

    def place_slots(self, values: np.ndarray) -> Any:
        """Bring the slots per parameter, (members, slots), to the device; the array whose elements are the live ones."""

    def uniform_values(self, node: Node) -> np.ndarray:
        """A uniform value of the last step, one per member."""


@dataclass
class Counters:
    """What engines did, for tests and for the curious: `optimkit.counters`."""

    compiles: int = 0
    cache_hits: int = 0
    launches: int = 0
    uploads: int = 0
    gradients_checked: int = 0
    extra: dict[str, int] = field(default_factory=dict)


counters = Counters()
