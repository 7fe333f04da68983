"""What kernels take, without the host: steps captured in a CUDA graph, over sets of arrays that take turns.

Small arrays would stay in the cache from step to step, as they do in no training loop: so there are as many sets as
fill some 200 MB, and a graph steps them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from optimkit.bench.contestants import Contestant

STEPS = 20  # in a graph, at least
ROTATED = 200e6  # bytes of all sets together
LAUNCHES = 3  # of a graph, in a sample


def sets_for(traffic: int, quick: bool = False) -> int:
    """How many sets of arrays take turns, where a step moves so many bytes."""
    return 2 if quick else max(1, -(-int(ROTATED) // max(traffic, 1)))


class CapturedSteps:
    """A graph in which each contestant takes a step, in turn; the contestants are captured as they are warm.

    Raises
    ------
    Exception
        What a contestant raises that can't be captured.
    """

    def __init__(self, cupy: Any, contestants: Sequence[Contestant], steps: int = STEPS) -> None:
        self.cupy, self.contestants = cupy, list(contestants)
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.stream.wait_event(cupy.cuda.get_current_stream().record())  # the arrays were made there
        self.steps = -(-steps // len(contestants)) * len(contestants)
        with self.stream:
            for _ in range(2):
                for contestant in contestants:
                    contestant.step()
            self.stream.synchronize()
            self.stream.begin_capture()
            try:
                for number in range(self.steps):
                    contestants[number % len(contestants)].step()
            finally:
                graph = self.stream.end_capture()
        self.launch: Callable[[], Any] = lambda: graph.launch(self.stream)

    def seconds(self) -> float:
        """Of one step."""
        start, stop = (self.cupy.cuda.Event() for _ in range(2))
        self.launch()
        start.record(self.stream)
        for _ in range(LAUNCHES):
            self.launch()
        stop.record(self.stream)
        stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, stop)) / 1e3 / self.steps / LAUNCHES


class TorchGraph:
    """The same of torch, which captures on a stream of its own."""

    def __init__(self, torch: Any, contestants: Sequence[Contestant], steps: int = STEPS) -> None:
        self.torch, self.contestants = torch, list(contestants)
        self.steps = -(-steps // len(contestants)) * len(contestants)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                for contestant in contestants:
                    contestant.step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for number in range(self.steps):
                contestants[number % len(contestants)].step()

    def seconds(self) -> float:
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.graph.replay()
        start.record()
        for _ in range(LAUNCHES):
            self.graph.replay()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3 / self.steps / LAUNCHES


def measure_graphs(made: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each, in interleaved rounds; who can't be captured is left out."""
    graphs = {}
    for name, make in made.items():
        try:
            graphs[name] = make()
        except Exception:  # a step that allocates, synchronises, or is not for graphs
            continue
    return _in_turn(graphs, rounds)


def _in_turn(graphs: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            taken[name].append(graph.seconds())
    return taken


def middle(taken: dict[str, list[float]]) -> dict[str, float]:
    """The medians."""
    return {name: median(times) for name, times in taken.items()}
