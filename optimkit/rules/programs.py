"""Programs and plans, each structure traced and cut once: the latest 256 are kept.

A notebook that defines a class again and again must not grow for ever; what is used stays.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from optimkit.arrays import DType
from optimkit.fusion.stages import Plan, Program, make_plan
from optimkit.rules.chain import Chain
from optimkit.rules.tracing import trace

MOST = 256

Value = TypeVar("Value")


class LatestUsed(Generic[Value]):
    """A cache of a bounded size, from which the least recently used goes first.

    Threads may share it, without a lock that a fork could leave behind: at worst a value is made twice.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What is kept under a key, or made."""
        found = self._kept.get(key)
        if found is None:
            found = self._kept.setdefault(key, make())
        with contextlib.suppress(KeyError):  # another thread needed the place
            self._kept.move_to_end(key)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return found

    def __len__(self) -> int:
        return len(self._kept)


programs: LatestUsed[Program] = LatestUsed(MOST)
plans: LatestUsed[Plan] = LatestUsed(MOST)


def program_of(
    chain: Chain, dtype: DType, wide: bool, check: bool = False, device_count: bool = False
) -> tuple[Hashable, Program]:
    """The traced program of a chain for weights of a dtype, and its key; see `trace`."""
    key = (chain.key(), dtype.kind, wide, check, device_count)
    return key, programs.get(key, lambda: trace(chain, dtype.kind, wide, check, device_count))


def plan_of(key: Hashable, program: Program, floor: Mapping[Hashable, int]) -> Plan:
    """The plan of a program in an optimizer whose totals have at least these rounds."""
    return plans.get((key, tuple(sorted(floor.items(), key=repr))), lambda: make_plan(program, floor))
