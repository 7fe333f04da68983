"""What was done, counted, for tests and for the curious: `optimkit.counters`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """Counts of this process, from its start.

    Attributes
    ----------
    traces : int
        Rules that were traced: one for each structure.
    compiles, cache_hits : int
        Kernels that were compiled, and found in the folder of kernels.
    launches, uploads : int
        Kernels started on a GPU, and tables brought there.
    gradients_checked : int
        Gradients that did not look as in the step before.
    """

    traces: int = 0
    compiles: int = 0
    cache_hits: int = 0
    launches: int = 0
    uploads: int = 0
    gradients_checked: int = 0


counters = Counters()
