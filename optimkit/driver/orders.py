"""The order of what an optimizer does on devices, whatever streams it does it on (`arrays/streams.py`).

    orders.enter()      # before state is touched
    orders.leave()      # after

Where all parameters are on the host, nothing happens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from optimkit.driver.entries.entry import Entry


class Orders:
    """One order for each device that there are parameters on.

    Parameters
    ----------
    owner : object
        What has the memory: the run of an optimizer.
    entries : callable
        The parameters as they are now.
    captured : list
        What CUDA graphs of this optimizer use.
    """

    def __init__(self, owner: Any, entries: Callable[[], Sequence[Entry]], captured: Sequence[Any]) -> None:
        self._owner, self._entries, self._captured = weakref.ref(owner), entries, captured
        self.by_device: dict[Hashable, Any] = {}
        self._here: list[Any] | None = None
        self.idle = False  # known to have nothing to keep in order: all is on the host

    def forget(self) -> None:
        """Parameters may be on other devices now."""
        self._here, self.idle = None, False

    def _all(self) -> list[Any]:
        if self._here is None:
            devices = {entry.param.device: entry for entry in self._entries()}
            for device, entry in devices.items():
                if device not in self.by_device:
                    self.by_device[device] = entry.library.order(entry.param.data, self._owner())
            self._here = [order for order in map(self.by_device.get, devices) if order is not None]
            self.idle = not self._here
        return self._here

    def enter(self, allocates: bool = False, replays: bool = False) -> None:
        """What is submitted from here on comes after what was done before, on other streams too.

        With `replays` the host waits for graphs that repeat steps: on what streams they run, only the caller knows.
        """
        for order in self._all():
            order.enter()
            if allocates:
                order.allocates()
            if replays and self._captured:
                order.settle()

    def leave(self) -> None:
        """Whoever enters next comes after this."""
        for order in self._all():
            order.leave()

    def settle(self) -> None:
        """Wait for the devices on which several streams use what is prepared, before that goes."""
        for order in self._all():
            if order.several or self._captured:
                order.settle()
