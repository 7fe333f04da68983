"""The entry: run a benchmark, print it, and write its numbers to a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import optimkit
from optimkit import info
from optimkit.bench.neighbours import Neighbours, warning
from optimkit.bench.options import Options


def run(options: Options, show: Callable[[str], None] = print) -> dict[str, Any]:
    """Run a benchmark.

    Parameters
    ----------
    options : Options
    show : function of str
        Takes the report, piece by piece, as it is measured.

    Returns
    -------
    dict
        All numbers, as `--json` writes them.

    Raises
    ------
    Unavailable
        If there is no device to measure on.
    RuntimeError
        If contestants do not compute the same.
    OSError
        If the file can't be written; all was shown by then.
    """
    if options.backend == "cupy":
        from optimkit.bench.cupy import measure
    else:
        from optimkit.bench.cpu import measure
    neighbours = Neighbours()
    found = {
        "optimkit": optimkit.__version__,
        "machine": info.machine(),
        "options": {key: value for key, value in vars(options).items() if key != "json"},
        **measure(options, show),
    }
    found["neighbours"] = neighbours.share()
    if warning(found["neighbours"]):
        show(warning(found["neighbours"]))
    if options.json is not None:
        try:
            options.json.write_text(json.dumps(found, indent=1))
        except OSError as error:
            raise OSError(f"--json {options.json} could not be written: {error}") from error
        show(f"All numbers are in {options.json}")
    return found
