"""Whether a step is under way: no flag, which an exception at the wrong moment could leave standing.

It is a reference to what the call alone holds, while it is made: when the call ends, however that is, it is gone.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from operator import call
from typing import Any


class _Held(list[Any]):
    """What is to be called, held by the call alone."""


class Underway:
    """True while a call is being made."""

    def __init__(self) -> None:
        self._held: Callable[[], Any] = _nothing

    def __bool__(self) -> bool:
        return self._held() is not None

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function; until it returns or raises, this is true."""
        return next(map(call, self._hold(function)))

    def _hold(self, function: Callable[[], Any]) -> _Held:
        held = _Held([function])
        self._held = weakref.ref(held)
        return held


def _nothing() -> None:
    return None
