"""Fingerprints: what an array is, apart from its values and its address.

Two arrays with the same fingerprint need the same checks and the same kernels; only their address is told anew.

>>> import numpy as np
>>> fingerprint(np.zeros(3))[0] == fingerprint(np.ones(3))[0]
True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optimkit.arrays.libraries import UNSEEN, Fingerprint, Seen, library_of

__all__ = ["UNSEEN", "Fingerprint", "Seen", "fingerprint"]

_known: dict[type, Callable[[Any], Seen]] = {type(None): lambda x: (None, 0)}


def fingerprint(x: Any) -> Seen:
    """The fingerprint of an array and its address; UNSEEN where nothing sure can be said."""
    kind = type(x)
    how = _known.get(kind)
    if how is None:
        how = _known[kind] = library_of(x).fingerprinter(kind)
    return how(x)
