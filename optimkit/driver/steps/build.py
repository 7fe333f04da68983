"""From entries to buckets: chains, programs, plans, engines. Done when the structure changes, not in a step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from optimkit.driver.entries.entry import Entry
from optimkit.driver.entries.group import Group
from optimkit.driver.gradients.collect import Collected
from optimkit.driver.steps.bucket import Bucket
from optimkit.driver.steps.common import Common
from optimkit.driver.steps.device import DeviceSteps
from optimkit.driver.steps.host import HostSteps
from optimkit.engines.choose import choose, compiled_step
from optimkit.engines.protocol import Engine
from optimkit.fusion.stages import total_rounds
from optimkit.rules.chain import Chain
from optimkit.rules.programs import plan_of, program_of


def build_buckets(
    entries: Sequence[Entry],
    chain_of: Callable[[Entry], Chain],
    check: bool,
    engine: str | None,
    device_count: bool = False,
) -> list[Bucket]:
    """Sort entries into buckets and set an engine to work on each.

    Parameters
    ----------
    chain_of : function of an Entry
        Its chain.
    check : bool
        The norm of all gradients is wanted.
    engine : str or None
        The engine that is forced.
    device_count : bool
        Engines whose arrays live on a device count updates there.
    """
    wide = any(entry.dtype.wide for entry in entries)
    sorted_: dict[Hashable, list[int]] = {}
    chains: dict[Hashable, Chain] = {}
    by_group: dict[Hashable, tuple[Chain, Hashable]] = {}
    for place, entry in enumerate(entries):
        chain = chain_of(entry)
        links = id(entry.group), tuple(index for index, _ in chain.links)
        known = by_group.get(links) or by_group.setdefault(links, (chain, chain.key()))
        own: Hashable = (entry.bucket_key, known[1])
        chains.setdefault(own, known[0])
        sorted_.setdefault(own, []).append(place)
    engines: dict[Hashable, Engine] = {}
    for key, places in sorted_.items():
        param = entries[places[0]].param
        engines[key] = choose(param.library, param.device, engine)
    programs = {
        key: program_of(chains[key], entries[places[0]].dtype, wide, check, device_count and engines[key].on_device)
        for key, places in sorted_.items()
    }
    floor = total_rounds([program for _, program in programs.values()])
    buckets = []
    for key, places in sorted_.items():
        plan = plan_of(*programs[key], floor)
        for place in places:
            entries[place].settle_order(bool(plan.reducing))
        buckets.append(Bucket([entries[place] for place in places], places, chains[key], plan, engines[key]))
    return buckets


class Steps:
    """The buckets of an optimizer, those on the host and those on devices, each with the class that steps them.

    Parameters
    ----------
    buckets : sequence of Bucket
        All of them.
    common : Common
        What they have in common.

    Raises
    ------
    ValueError
        If a graph is to be captured where arrays are on the host or a hook gets whole arrays, or totals over all
        parameters are wanted where some are on the host and some on a device.
    """

    def __init__(self, buckets: Sequence[Bucket], common: Common) -> None:
        self.buckets = list(buckets)
        on_host = [bucket for bucket in buckets if not bucket.engine.on_device]
        on_device = [bucket for bucket in buckets if bucket.engine.on_device]
        if common.capturable:
            _check_capturable(buckets, on_host)
        if on_host and on_device and (common.shared or any(bucket.plan.program.totals for bucket in buckets)):
            raise ValueError(
                "some parameters are on the host and some on a device, and this optimizer takes a total over all of them "
                "(a norm for clipping or for nonfinite='raise' or 'skip', or a slot per optimizer); use one optimizer for each"
            )
        self.host = HostSteps(on_host, common) if on_host else None
        self.device = DeviceSteps(on_device, common) if on_device else None
        self._place_of = {id(entry): (bucket, n) for bucket in buckets for n, entry in enumerate(bucket.entries)}
        self._both: list[HostSteps | DeviceSteps] = [each for each in (self.host, self.device) if each is not None]

    @property
    def active(self) -> list[HostSteps | DeviceSteps]:
        """Those that have something to do: there is a gradient for them."""
        return [each for each in self._both if any(bucket.n_active for bucket in each.buckets)]

    def lend(self, found: Collected) -> None:
        """Hand the gradients of a step to the engines, as far as they have not seen them."""
        self.take_back()  # where a step was interrupted as it did so
        for bucket in self.buckets:
            if found.shifts is not None:
                bucket.lend(found.views, found.shifts, found.present, found.sharing)
            if bucket.plan.calls or not bucket.runner.keeps_addresses:
                bucket.lend_all(found.values)

    def take_back(self) -> None:
        """The step is over: hold no gradient any more."""
        for bucket in self.buckets:
            bucket.take_back()

    def fill_rows(self, value: Callable[[Group, Hashable], float]) -> None:
        """Compute the host values of the buckets that have gradients."""
        for bucket in self.buckets:
            if bucket.n_active:
                bucket.fill_rows(value)

    def compiled_step(self) -> Callable[..., Any] | None:
        """What takes warm steps in compiled code, where all arrays are NumPy's."""
        return compiled_step((bucket.library.name, bucket.engine) for bucket in self.buckets)

    def store_count(self, entry: Entry) -> None:
        """Write the update count of one parameter back to it."""
        found = self._place_of.get(id(entry))
        if found is not None:  # else it was removed
            entry.t = int(found[0].counts()[found[1]])

    def store_counts(self) -> None:
        """Write the update counts back to the entries."""
        for bucket in self.buckets:
            bucket.store_counts()


def _check_capturable(buckets: Sequence[Bucket], on_host: Sequence[Bucket]) -> None:
    if on_host:
        raise ValueError(
            "capturable = True is for CuPy arrays on the cuda engine; these parameters are on the host, or forced to 'eager'"
        )
    for bucket in buckets:
        for call in bucket.plan.calls:
            what = f"{call.function.label} gets whole arrays (elementwise = False)"
            raise ValueError(f"capturable = True: {what}, and can't be part of a CUDA graph")
