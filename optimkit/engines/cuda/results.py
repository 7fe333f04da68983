"""The results of steps in device memory: each stays as long as somebody can read it, then its place is used again.

    result = results.take(stream)             # the place that the launches of a step write to
    norm, finite = result()                   # waits for them
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from optimkit.engines.cuda.job import RESULT


class Result:
    """The norm of all gradients of one step, and whether it is finite."""

    __slots__ = ("__weakref__", "_device", "_stream", "array")

    def __init__(self, array: Any, device: Any, stream: Any) -> None:
        self.array, self._device, self._stream = array, device, stream

    def __call__(self) -> tuple[float, bool]:
        """Fetch it."""
        with self._device:
            norm, finite = self.array.get(stream=self._stream).tolist()
        return norm, bool(finite)


class Results:
    """Places for the results of the steps of a bucket, by stream; and one for the steps that CUDA graphs repeat."""

    def __init__(self, device: Any, capturable: bool) -> None:
        import cupy

        self.device = device
        self._free: dict[int, list[Any]] = {}
        self._lent: dict[int, weakref.ref[Result]] = {}  # by the address of the place
        self._of_graphs = cupy.zeros(len(RESULT)) if capturable else None

    def take(self, stream: Any, capturing: bool) -> Result:
        """A place for the result of a step. No allocation in a capture, nor where one is free."""
        if capturing:
            return Result(self._of_graphs, self.device, stream)
        free = self._free.setdefault(int(stream.ptr), [])
        if not free:
            import cupy

            free.append(cupy.empty(len(RESULT)))
        array = free.pop()
        result = Result(array, self.device, stream)
        # When nobody can read it any more, its place is free: later steps on the stream come after this one. That is a call of
        # compiled code: what a signal raises in a `__del__` is lost.
        give_back = partial(next, map(free.append, (array,)))
        self._lent[int(array.data.ptr)] = weakref.ref(result, give_back)
        return result
