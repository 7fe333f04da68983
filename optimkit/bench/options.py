"""What to measure, checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimkit.arrays import SUPPORTED
from optimkit.bench.shapes import FULL
from optimkit.bench.workloads import WORKLOADS
from optimkit.engines.threads import get_num_threads

BACKENDS = ("numpy", "cupy")
EXTRAS, LOOP, HOST = "extras", "loop", "host"


@dataclass(frozen=True)
class Options:
    """The options of a benchmark.

    Attributes
    ----------
    backend : {"numpy", "cupy"}
    workloads, shapes : tuple of str
        Keys of `WORKLOADS` and of the shapes.
    extras, loop : bool
        Whether to measure first steps, imports and replaced gradients too, and what small models cost.
    host : bool
        Whether to measure what a step takes on the host, apart from the device.
    rounds, threads : int
        From 1.
    dtype : {"float32", "float64"}
    quick : bool
        Small arrays: everything runs, and nothing is worth comparing.
    json : Path or None
    """

    backend: str = "numpy"
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    shapes: tuple[str, ...] = tuple(FULL)
    extras: bool = True
    loop: bool = True
    host: bool = True
    rounds: int = 15
    threads: int = 1
    dtype: str = "float32"
    quick: bool = False
    json: Path | None = None

    @classmethod
    def read(
        cls,
        backend: str = "numpy",
        only: str | None = None,
        rounds: Any = None,
        threads: Any = None,
        dtype: str = "float32",
        quick: bool = False,
        json: str | None = None,
    ) -> Options:
        """Options from text, as a command line has them.

        Raises
        ------
        ValueError
            If one is not allowed; the message names it.
        """
        workloads, shapes, extras, loop, host = _parts(only)
        if backend == "cupy" and not workloads and not host:
            raise ValueError(f"--only {only} is measured on the CPU alone; leave out --backend cupy, or name more")
        if backend == "numpy" and only is not None and host:
            raise ValueError(f"--only {only}: {HOST} is measured with a device alone; add --backend cupy")
        return cls(
            backend=_one_of("--backend", backend, BACKENDS),
            workloads=workloads,
            shapes=shapes,
            extras=extras,
            loop=loop,
            host=host,
            rounds=(3 if quick else 15) if rounds is None else _whole("--rounds", rounds),
            threads=get_num_threads() if threads is None else _whole("--threads", threads),
            dtype=_one_of("--dtype", dtype, SUPPORTED),
            quick=quick,
            json=None if json is None else _writable(json),
        )


def _one_of(option: str, value: str, allowed: Iterable[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{option} {value} must be one of {', '.join(allowed)}")
    return value


def _whole(option: str, value: Any) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{option} {value} must be a whole number from 1")
    return number


def _parts(only: str | None) -> tuple[tuple[str, ...], tuple[str, ...], bool, bool, bool]:
    """Names of workloads and shapes, and whether "extras", "loop" and "host" are among them.

    Of workloads and shapes, a kind of which nothing is named is taken whole; extras, loop and host only when named.
    """
    if only is None:
        return tuple(WORKLOADS), tuple(FULL), True, True, True
    names = [name.strip().lower() for name in only.split(",") if name.strip()]
    known = (*WORKLOADS, *FULL, EXTRAS, LOOP, HOST)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = f"names {', '.join(unknown)}" if unknown else "is empty"
        raise ValueError(f"--only {what}; write one or more of {', '.join(known)}, separated by commas")
    workloads = tuple(name for name in WORKLOADS if name in names)
    shapes = tuple(name for name in FULL if name in names)
    more = EXTRAS in names, LOOP in names, HOST in names
    if not workloads and not shapes:
        return (), (), *more
    return workloads or tuple(WORKLOADS), shapes or tuple(FULL), *more


def _writable(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        raise ValueError(f"--json {name} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"--json {name}: there is no folder {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--json {name} can't be written; name another file")
    return path
