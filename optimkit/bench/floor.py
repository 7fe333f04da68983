"""The memory floor: the reads and writes of a step, without its arithmetic.

For each pass of a plan, flat arrays of the same total size are read and written in the same way, by
as many threads of the same pool. What is written are the other arrays of the pass (Adam's is
w = m + g, m = v, v = w), so that no read can be left out; one addition costs nothing beside the
memory. A pass that only reads collects bits with "or".
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from optimkit.bench.contestants import FLOOR, Contestant
from optimkit.engines import threads
from optimkit.engines.choose import llvm_problem
from optimkit.engines.cpu.kernels import compile_text
from optimkit.engines.cpu.runner import SMALL
from optimkit.fusion.stages import GRADIENT, Plan

BLOCK = 1 << 16  # elements that a thread takes at a time

_TEXT = """\
# a pass over memory, without arithmetic
from optimkit.engines.cpu.language import claim, load_int64, store_int64
from optimkit.engines.cpu.language import {real} as real, load_{real} as load, store_{real} as store


def kernel(counter, total, sink, {names}):
    bits = 0
    while True:
        start = claim(counter, {block})
        if start >= total:
            break
        for i in range(start, min(start + {block}, total)):
            {body}
    store_int64(sink, 0, bits)
"""


class Pass:
    """One pass over flat arrays of one size and dtype.

    Parameters
    ----------
    arrays : dict
        The arrays, by key.
    reads, writes, zeroed : sequence
        Keys: what is read, what is written, and what is filled with zeros after it was read.
    """

    def __init__(
        self,
        arrays: dict[Hashable, np.ndarray],
        reads: Sequence[Hashable],
        writes: Sequence[Hashable],
        zeroed: Sequence[Hashable] = (),
    ) -> None:
        keys = tuple(dict.fromkeys((*reads, *writes, *zeroed)))
        self.arrays = [arrays[key] for key in keys]
        self.reads, self.writes, self.zeroed = ([keys.index(key) for key in chosen] for chosen in (reads, writes, zeroed))
        self.size = self.arrays[0].size
        self.counter, self.sink = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self.both = [key for key in self.writes if key in self.reads]
        self.only_read = [key for key in self.reads if key not in self.writes]
        self.blocks: Iterator[int] = iter(())
        self._run = self._run_slices if llvm_problem() else self._compiled()

    def __call__(self) -> None:
        self.counter[0], self.blocks = 0, iter(range(0, self.size, BLOCK))
        workers = 1 if self.size < SMALL else threads.get_num_threads()
        if workers == 1:
            self._run(0)
        else:
            threads.run(self._run, workers)

    def source(self, key: int) -> list[int]:
        """The arrays whose sum is written to `key`: the next one that is read and written; the first takes those only read."""
        following = self.both[(self.both.index(key) + 1) % len(self.both)] if key in self.both else self.reads[0]
        return [following, *(self.only_read if key == self.writes[0] else ())]

    def text(self) -> str:
        """The text of the kernel. A pass that only reads goes over words of 8 bytes."""
        if self.writes:
            body = [f"x{key} = load(a{key}, i)" for key in self.reads]
            body += [f"store(a{key}, i, {' + '.join(f'x{k}' for k in self.source(key))})" for key in self.writes]
            body += [f"store(a{key}, i, real(0.0))" for key in self.zeroed]
        else:
            body = [f"bits |= load_int64(a{key}, i)" for key in self.reads]
        return _TEXT.format(
            real=self.arrays[0].dtype.name,
            names=", ".join(f"a{key}" for key in range(len(self.arrays))),
            block=BLOCK,
            body=("\n" + 12 * " ").join(body),
        )

    def _compiled(self) -> Callable[[int], None]:
        total = self.size if self.writes else self.size * self.arrays[0].itemsize // 8
        words = [self.counter.ctypes.data, total, self.sink.ctypes.data, *(array.ctypes.data for array in self.arrays)]
        kernel = compile_text(self.text(), len(words), "vectorized" if self.writes else "unrolled")
        call = kernel.held if self.size < SMALL else kernel.free
        return lambda thread: call(*words)

    def _run_slices(self, thread: int) -> None:
        """The same in NumPy, in slices that stay in the cache."""
        for start in self.blocks:
            parts = [array[start : start + BLOCK] for array in self.arrays]
            if not self.writes:
                for key in self.reads:
                    np.bitwise_or.reduce(parts[key].view(f"i{parts[key].itemsize}"))
            first = parts[self.both[0]].copy() if self.both else None
            for key in self.writes:
                following, *others = self.source(key)
                parts[key][...] = first if key != following == self.both[0] else parts[following]
                for other in others:
                    np.add(parts[key], parts[other], out=parts[key])
            for key in self.zeroed:
                parts[key].fill(0)


def floor_contestant(plan: Plan, elements: int, dtype: str, zeroing: bool) -> Contestant:
    """The memory traffic of all stages of a plan, for parameters of `elements` elements together."""
    arrays: dict[Hashable, np.ndarray] = {key: np.full(elements, 1e-3, dtype) for key in plan.arrays}
    passes = []
    for stage in plan.stages:
        zeroed = [GRADIENT] if zeroing and stage is plan.last else []
        passes.append(Pass(arrays, stage.reads, list(stage.outputs), zeroed))

    def step() -> None:
        for each in passes:
            each()

    return Contestant(FLOOR, step)
