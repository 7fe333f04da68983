"""The results of steps in device memory: each stays as long as somebody can read it, then its place is used again.

    result = results.take(stream)             # the place that the launches of a step write to
    norm, finite = result()                   # waits for them
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from optimkit.engines.cuda.job import RESULT

AT_ONCE = 32  # places in one piece of memory


class Result:
    """The norm of all gradients of one step, and whether it is finite."""

    __slots__ = ("__weakref__", "_order", "_replayed", "_stream", "array")

    def __init__(self, array: Any, order: Any, stream: Any, replayed: bool) -> None:
        self.array, self._order, self._stream, self._replayed = array, order, stream, replayed

    def __call__(self) -> tuple[float, bool]:
        """Fetch it."""
        if self._replayed:
            self._order.settle()
        norm, finite = self._order.fetch(self.array, self._stream).tolist()
        return norm, bool(finite)


class Results:
    """Places for the results of the steps of a bucket; and one for the steps that CUDA graphs repeat.

    All steps of an optimizer are in order, on whatever streams they run: a place that nobody can read any more is free.
    """

    def __init__(self, order: Any, capturable: bool) -> None:
        self._order = order
        self._free: list[Any] = []
        self._lent: dict[int, weakref.ref[Result]] = {}  # by the address of the place
        self._make_places()
        self._of_graphs = self._free.pop() if capturable else None

    def _make_places(self) -> None:
        import cupy

        self._order.allocates()
        self._free.extend(cupy.zeros((AT_ONCE, len(RESULT))))

    def take(self, stream: Any, capturing: bool) -> Result:
        """A place for the result of a step. No allocation in a capture, nor where one is free."""
        if capturing:
            return Result(self._of_graphs, self._order, stream, True)
        if not self._free:
            self._make_places()
        array = self._free.pop()
        result = Result(array, self._order, stream, False)
        # When nobody can read it any more, its place is free: later steps come after this one. That is a call of
        # compiled code: what a signal raises in a `__del__` is lost.
        give_back = partial(next, map(self._free.append, (array,)))
        self._lent[int(array.data.ptr)] = weakref.ref(result, give_back)
        return result
