"""Measurements as text: one table for each update, one line for each shape."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from optimkit.bench.measure import Ratio
from optimkit.bench.targets import Target
from optimkit.bench.workloads import WORKLOADS

RATIOS = "A ratio is the other's time over optimkit's, the median of the rounds (least..largest)."
QUICK = "--quick: small arrays, few rounds. It shows that everything runs; the times are worth nothing."


class Unavailable(Exception):
    """The benchmark can't run on this machine; says why and what to do."""


def progress(text: str) -> None:
    """Say what is being measured, where somebody looks on."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns side by side, the first to the left, the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def text(line: Sequence[str]) -> str:
        first, *rest = zip(line, widths, strict=True)
        return "  " + "   ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]).rstrip()

    return "\n".join(map(text, lines))


def seconds(value: float) -> str:
    """A time with its unit: "12.4 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def size(value: float) -> str:
    """A number of bytes with its unit: "3.2 kB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} bytes"


def ratio(cell: dict[str, Any], name: str) -> str:
    found = cell["ratios"].get(name)
    return "-" if found is None else str(Ratio(**found))


def cells(found: Sequence[dict[str, Any]], others: Sequence[str], own: Sequence[tuple[str, str]]) -> str:
    """The table of one update: `own` are columns of optimkit's numbers (head, key), `others` whom it is compared with."""
    first = found[0]
    traffic = f"{first['bytes_read']} bytes read and {first['bytes_written']} written per element"
    head = ["", "step", "GB/s", *(name for name, _ in own), *others]
    rows = [
        [
            cell["title"],
            seconds(median(cell["seconds"]["optimkit"])),
            f"{cell['gb_per_s']:.1f}",
            *(cell[key] for _, key in own),
            *(ratio(cell, name) for name in others),
        ]
        for cell in found
    ]
    return f"{WORKLOADS[first['workload']].title}: {traffic}\n{table(head, rows)}\n"


def launches(found: Sequence[dict[str, Any]]) -> str:
    """Launches in a step, on a device."""
    names = list(found[0]["launches"])
    rows = [[cell["title"], *(str(cell["launches"][name] or "?") for name in names)] for cell in found]
    return f"{table(['launches and memsets', *names], rows)}\n"


def loop(found: Sequence[dict[str, Any]]) -> str:
    """What small models cost; here a ratio is optimkit's time over the other's."""
    rows = [
        [line["title"], seconds(median(own)), f"{line['other']} {seconds(median(other))}", str(Ratio(**line["ratio"]))]
        for line in found
        for own, other in (line["seconds"].values(),)
    ]
    head = ["", "step", "other", "ratio"]
    return f"Small models: optimkit's step, and how much of the other's it takes\n{table(head, rows)}\n"


def extras(found: dict[str, Any]) -> str:
    """First steps, imports, replaced gradients."""
    imports, replaced = found["imports"], found["replaced"]
    costs = [cost * 1e6 for cost in replaced["seconds"]]
    along = f"; it brings along {', '.join(imports['heavy'])}" if imports["heavy"] else ", which brings nothing heavy along"
    lines = ["In fresh processes, and once"]
    for step in found["first_steps"]:
        times = f"{step['cold']:.2f} s with an empty kernel cache, {step['cached']:.2f} s from the cache"
        torch = f"; import torch takes {step['torch']:.2f} s" if step["torch"] else ""
        lines.append(f"  first step, {WORKLOADS[step['workload']].title}: {times}{torch}")
    lines.append(
        f"  import optimkit {seconds(imports['optimkit'])}, import numpy {seconds(imports['numpy'])}: "
        f"{Ratio(**imports['ratio'])}{along}"
    )
    lines.append(
        f"  a gradient that is another array in each step: {median(costs):.2f} us more per parameter "
        f"({min(costs):.2f}..{max(costs):.2f}), {replaced['parameters']} parameters"
    )
    return "\n".join(lines) + "\n"


def targets(judged: Sequence[Target]) -> str:
    """What is promised, line by line; in one line where nothing of it was measured, for one reason."""
    reasons = {each.why for each in judged}
    if len(reasons) == 1 and all(each.measured is None for each in judged):
        return f"Targets: not measured, {reasons.pop()}"
    return "\n".join(["Targets", *map(str, judged)])
