"""What kernels take, without the host: steps captured in a CUDA graph, over sets of arrays that take turns.

Small arrays would stay in the cache from step to step, as they do in no training loop: so there are as many sets as
fill some 200 MB, and a graph steps them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from statistics import median
from typing import Any

from optimkit.bench.contestants import Contestant

STEPS = 20  # in a graph, at least
ROTATED = 200e6  # bytes of all sets together
LAUNCHES = 3  # of a graph, in a sample


def sets_for(traffic: int, quick: bool = False) -> int:
    """How many sets of arrays take turns, where a step moves so many bytes."""
    return 2 if quick else max(1, -(-int(ROTATED) // max(traffic, 1)))


class _Graph:
    """A graph in which each contestant takes a step, in turn: `_launch` runs it, `_time` tells what work takes in ms."""

    def __init__(self, contestants: Sequence[Contestant], steps: int) -> None:
        self.contestants = list(contestants)  # their arrays have to live
        self.steps = -(-steps // len(contestants)) * len(contestants)

    def _warm_up(self) -> None:
        for _ in range(2):
            for contestant in self.contestants:
                contestant.step()

    def _step_all(self) -> None:
        for number in range(self.steps):
            self.contestants[number % len(self.contestants)].step()

    def _launch(self) -> None:
        raise NotImplementedError

    def _time(self, work: Callable[[], None]) -> float:
        raise NotImplementedError

    def _sample(self) -> None:
        for _ in range(LAUNCHES):
            self._launch()

    def seconds(self) -> float:
        """Of one step."""
        self._launch()
        return self._time(self._sample) / 1e3 / self.steps / LAUNCHES


class CapturedSteps(_Graph):
    """Steps captured by CuPy. What a contestant raises that can't be captured leaves."""

    def __init__(self, cupy: Any, contestants: Sequence[Contestant], steps: int = STEPS) -> None:
        super().__init__(contestants, steps)
        self.cupy, self.stream = cupy, cupy.cuda.Stream(non_blocking=True)
        self.stream.wait_event(cupy.cuda.get_current_stream().record())  # the arrays were made there
        with self.stream:
            self._warm_up()
            self.stream.synchronize()
            self.stream.begin_capture()
            try:
                self._step_all()
            finally:
                self.graph = self.stream.end_capture()

    def _launch(self) -> None:
        self.graph.launch(self.stream)

    def _time(self, work: Callable[[], None]) -> float:
        start, stop = (self.cupy.cuda.Event() for _ in range(2))
        start.record(self.stream)
        work()
        stop.record(self.stream)
        stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, stop))


class TorchGraph(_Graph):
    """The same of torch, which captures on a stream of its own."""

    def __init__(self, torch: Any, contestants: Sequence[Contestant], steps: int = STEPS) -> None:
        super().__init__(contestants, steps)
        self.torch = torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._warm_up()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step_all()

    def _launch(self) -> None:
        self.graph.replay()

    def _time(self, work: Callable[[], None]) -> float:
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop))


def measure_graphs(
    made: dict[str, Callable[[], Any]], rounds: int, others: Collection[str] = ()
) -> tuple[dict[str, float], dict[str, str]]:
    """Medians of the seconds of a step of each, in interleaved rounds; and why some of the `others` can't be captured."""
    graphs, left_out = {}, {}
    for name, make in made.items():
        try:
            graphs[name] = make()
        except Exception as error:  # a step that allocates, synchronises, or is not for graphs: told, if it is not ours
            if name not in others:
                raise
            left_out[name] = f"{type(error).__name__}: {error}"
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            taken[name].append(graph.seconds())
    return {name: median(times) for name, times in taken.items()}, left_out
