"""What was done, counted, for tests and for the curious: `optimkit.counters`."""

from __future__ import annotations

from types import SimpleNamespace


class Counters(SimpleNamespace):
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

    traces: int
    compiles: int
    cache_hits: int
    launches: int
    uploads: int
    gradients_checked: int

    def __init__(self) -> None:
        super().__init__(traces=0, compiles=0, cache_hits=0, launches=0, uploads=0, gradients_checked=0)


counters = Counters()
