"""How much of the machine other processes used meanwhile: a busy machine makes ratios worthless.

Threads that wait for each other (torch's do, ours do not) suffer most from neighbours, so a busy
machine also flatters optimkit.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

TOO_MUCH = 0.1  # of all cores


@dataclass(frozen=True)
class Neighbours:
    """Counts from now on; `share()` is what others used since then."""

    start: tuple[float, float, float] | None = field(default_factory=lambda: _read())

    def share(self) -> float | None:
        """Core time of other processes over that of all cores; None where the system does not tell (not Linux)."""
        end = _read()
        if self.start is None or end is None:
            return None
        busy, own, all_cores = (after - before for before, after in zip(self.start, end, strict=True))
        return max(busy - own, 0.0) / all_cores if all_cores > 0 else 0.0


def _read() -> tuple[float, float, float] | None:
    """Seconds: busy cores of the machine, this process with its children, and all cores since some time."""
    try:
        with open("/proc/stat") as file:
            total = [int(number) for number in file.readline().split()[1:9]]
            cores = sum(line.startswith("cpu") for line in file)
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _waiting, *interrupts_and_stolen = total
    return (user + nice + system + sum(interrupts_and_stolen)) / ticks, sum(os.times()[:4]), cores * time.monotonic()


def warning(share: float | None) -> str:
    """What to say about it; empty if there is nothing to say."""
    if share is None or share <= TOO_MUCH:
        return ""
    return f"Other processes used {share:.0%} of the cores meanwhile: times, and above all ratios, are not to be relied on."
