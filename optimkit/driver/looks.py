"""What gradients look like: how a step sees which were replaced, without keeping any alive.

A look is an array's class, dtype, shape and strides; its address is kept apart. An array that looks as the one
before at another address needs no check, only its address:

    others = looks.compare(values)      # these look otherwise, and have to be checked
    looks.now - looks.before            # how far the rest moved

Every gradient is looked at in every step: one that was freed, resized or given another shape in place is seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from optimkit import arrays
from optimkit.driver.spans import Spans

UNSEEN: Any = object()  # the look of what has to be checked each time: not even like itself before
Look = tuple[Any, ...] | None


class Compiled(Protocol):
    """`Looks.compare` in compiled code, for NumPy arrays."""

    moved: bool
    meet: bool
    read_only: bool

    def keep(self, place: int, seen: Look) -> None: ...

    def compare(self, values: list[Any]) -> list[int]: ...


MakeCompiled = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Compiled]


class Looks:
    """The looks of gradients, None where there was none; where they are, with `spans`, says whether they share memory."""

    def __init__(self, spans: Spans) -> None:
        n = len(spans.entries)
        self.spans = spans
        self.seen: list[Look] = [UNSEEN] * n
        self.before, self.now = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.moved = False  # whether some array of the same look is at another address
        self.compiled: Compiled | None = None

    def compile(self, make: MakeCompiled) -> None:
        """Compare in compiled code from now on."""
        self.compiled = make(self.before, self.now, self.spans.weights, self.spans.gradients)
        for place, seen in enumerate(self.seen):
            self.compiled.keep(place, seen)

    def compare(self, values: list[Any]) -> list[int]:
        """The places of the gradients that look otherwise than before; `now` has the addresses of the rest."""
        if self.compiled is not None:
            others = self.compiled.compare(values)
            self.moved = self.compiled.moved
            return others
        now, others = self.before.tolist(), []
        for place, (before, x) in enumerate(zip(self.seen, values, strict=True)):
            seen, address = look(x)
            if seen == before and seen is not UNSEEN:
                now[place] = address
            else:
                others.append(place)
        self.now[:] = now
        self.moved = bool((self.now != self.before).any())
        return others

    def meet(self, compared: bool) -> bool:
        """Whether some array's memory may be that of another gradient or weight."""
        if compared and self.compiled is not None:
            return self.compiled.meet
        return self.spans.meet(self.now)

    def keep(self, place: int, x: Any, address: int = 0) -> None:
        """A gradient was checked: this is how it looks now. UNSEEN: check it again in the next step."""
        seen = self.seen[place] = UNSEEN if x is UNSEEN else look(x)[0]
        self.now[place] = address
        if self.compiled is not None:
            self.compiled.keep(place, seen)

    def settle(self) -> None:
        """Engines have the new addresses: they are those before, in the next step."""
        self.before[:] = self.now

    def read_only(self, values: Sequence[Any], compared: bool) -> list[int]:
        """The places of gradients that can't be zeroed, as far as their library says."""
        if compared and self.compiled is not None and not self.compiled.read_only:
            return []
        return [place for place, x in enumerate(values) if isinstance(x, np.ndarray | np.generic) and not x.flags.writeable]


Seen = tuple[Look, int]
_LOOKS: dict[type, Callable[[Any], Seen]] = {
    type(None): lambda x: (None, 0),
    np.ndarray: lambda x: ((np.ndarray, x.dtype, x.shape, x.strides, x.flags.aligned), arrays.address(x)),
}


def look(x: Any) -> Seen:
    """How an array looks, and its address; UNSEEN where nothing sure can be said."""
    kind = type(x)
    how = _LOOKS.get(kind)
    if how is None:
        library = arrays.library(x)
        if library not in _OTHERS:
            return UNSEEN, 0
        how = _LOOKS[kind] = _OTHERS[library](kind)
    return how(x)


def _look_torch(kind: type) -> Callable[[Any], Seen]:
    strided = sys.modules["torch"].strided

    def how(x: Any) -> Seen:
        if x.layout is not strided:
            return UNSEEN, 0
        return (kind, x.dtype, x.shape, x.stride(), x.is_cpu or x.device, x.is_neg()), x.data_ptr()

    return how


def _look_cupy(kind: type) -> Callable[[Any], Seen]:
    return lambda x: ((kind, x.dtype, x.shape, x.strides, x.data.device_id), x.data.ptr)


_OTHERS = {"torch": _look_torch, "cupy": _look_cupy}
