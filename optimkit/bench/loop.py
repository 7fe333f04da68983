"""What a small model costs: a warm step, a step inside of a training loop, and sets of gradients that take turns.

A loop is that of a user: a network of four arrays, forward and backward in NumPy, whose backward makes new gradient arrays
in each step. Only the step of the optimizer is timed, with the caches as the rest of the loop leaves them. Two networks
train in turn, one with optimkit, the other with Adam by hand, in place, with scratch memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from optimkit.bench.contestants import OPTIMKIT
from optimkit.bench.measure import Ratio, compare, no_garbage_collection
from optimkit.bench.workloads import BETAS, EPS, LR, WORKLOADS

HAND, FULL_STEP = "by hand", "all of them"
BATCH = 32
TINY = {"W1": (20, 32), "b1": (32,), "W2": (32, 10), "b2": (8,)}  # 1,000 elements
NETWORKS = {"1,000": (8, 80, 4), "14,000": (64, 200, 5), "100,000": (256, 380, 6)}  # weights: inputs, hidden, outputs
SETS = {"200": 200, "20": 20}  # arrays of 100 elements, the one half of which has gradients

Arrays = dict[str, np.ndarray]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Line:
    """Two times of each round, and their ratio: optimkit's over the other's."""

    part: str
    title: str
    other: str
    seconds: dict[str, list[float]]
    ratio: Ratio


class AdamByHand:
    """Adam as it is written with care: in place, with scratch memory, the rate and the corrections in Python numbers."""

    def __init__(self, weights: Arrays) -> None:
        self.weights, self.t = weights, 0
        self.state = {name: tuple(np.zeros_like(w) for _ in range(4)) for name, w in weights.items()}

    def step(self, grads: Arrays) -> None:
        self.t += 1
        rate, root = LR / (1 - BETAS[0] ** self.t), (1 - BETAS[1] ** self.t) ** 0.5
        for name, w in self.weights.items():
            g = grads[name]
            m, v, a, b = self.state[name]
            m *= BETAS[0]
            np.multiply(g, 1 - BETAS[0], out=a)
            m += a
            v *= BETAS[1]
            np.multiply(g, g, out=a)
            a *= 1 - BETAS[1]
            v += a
            np.sqrt(v, out=a)
            a /= root
            a += EPS
            np.multiply(m, rate, out=b)
            b /= a
            w -= b


class Network:
    """A network of one hidden layer, and a batch that it learns."""

    def __init__(self, inputs: int, hidden: int, outputs: int, dtype: str) -> None:
        rng = np.random.default_rng(0)
        self.weights: Arrays = {
            "W1": (rng.normal(size=(inputs, hidden)) / inputs**0.5).astype(dtype),
            "b1": np.zeros(hidden, dtype),
            "W2": (rng.normal(size=(hidden, outputs)) / hidden**0.5).astype(dtype),
            "b2": np.zeros(outputs, dtype),
        }
        self.x, self.y = rng.normal(size=(BATCH, inputs)).astype(dtype), rng.integers(outputs, size=BATCH)

    def gradients(self) -> Arrays:
        """Those of the cross entropy of its softmax, as new arrays."""
        w, x = self.weights, self.x
        hidden = np.maximum(x @ w["W1"] + w["b1"], 0)
        logits = hidden @ w["W2"] + w["b2"]
        error = np.exp(logits - logits.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(BATCH), self.y] -= 1
        error /= BATCH
        back = (error @ w["W2"].T) * (hidden > 0)
        return {"W1": x.T @ back, "b1": back.sum(axis=0), "W2": hidden.T @ error, "b2": error.sum(axis=0)}


def measure_loop(rounds: int, dtype: str, quick: bool, clock: Clock = time.perf_counter) -> list[Line]:
    """All lines.

    Raises
    ------
    RuntimeError
        If both sides do not compute the same.
    """
    steps = 3 if quick else 40
    networks = dict(list(NETWORKS.items())[: 1 if quick else None])
    with no_garbage_collection():
        lines = [warm_steps(name, rounds, dtype, 2 * steps, clock) for name in ("adam", "tail")]
        lines += [training(title, sizes, rounds, dtype, steps, clock) for title, sizes in networks.items()]
        lines += [halves(title, count, rounds, dtype, steps, clock) for title, count in SETS.items()]
    return lines


def warm_steps(workload: str, rounds: int, dtype: str, steps: int, clock: Clock) -> Line:
    """Steps over 1,000 elements whose gradients are the same arrays each time; the tail has no opponent but Adam."""
    rng = np.random.default_rng(0)
    ours, theirs = ({name: np.ones(shape, dtype) for name, shape in TINY.items()} for _ in range(2))
    grads = {name: rng.normal(size=shape).astype(dtype) for name, shape in TINY.items()}
    optimizer, hand = WORKLOADS[workload].optimizer(ours), AdamByHand(theirs)

    def several(step: Callable[[Any], object]) -> float:
        start = clock()
        for _ in range(steps):
            step(grads)
        return (clock() - start) / steps

    for _ in range(3):
        several(optimizer.step)
        several(hand.step)
    if workload == "adam":
        _check_same(ours, theirs)
    taken: dict[str, list[float]] = {OPTIMKIT: [], HAND: []}
    for _ in range(rounds):
        taken[OPTIMKIT].append(several(optimizer.step))
        taken[HAND].append(several(hand.step))
    title = {"adam": "Adam", "tail": "clip + AdamW (over Adam alone)"}[workload]
    return _line("warm step", f"{title}, 4 arrays, 1,000 elements", HAND, taken)


def training(title: str, sizes: tuple[int, int, int], rounds: int, dtype: str, steps: int, clock: Clock) -> Line:
    """Steps inside of a training loop; two networks learn the same, in turn."""
    one, two = Network(*sizes, dtype), Network(*sizes, dtype)
    optimizer, hand = WORKLOADS["adam"].optimizer(one.weights), AdamByHand(two.weights)

    def timed(network: Network, step: Callable[[Any], object]) -> float:
        grads = network.gradients()
        start = clock()
        step(grads)
        return clock() - start

    def several() -> tuple[float, float]:
        pairs = [(timed(one, optimizer.step), timed(two, hand.step)) for _ in range(steps)]
        return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)

    several()
    _check_same(one.weights, two.weights)
    taken: dict[str, list[float]] = {OPTIMKIT: [], HAND: []}
    for _ in range(rounds):
        ours, theirs = several()
        taken[OPTIMKIT].append(ours)
        taken[HAND].append(theirs)
    return _line("loop", f"training loop, {title} weights", HAND, taken)


def halves(title: str, count: int, rounds: int, dtype: str, steps: int, clock: Clock) -> Line:
    """A step in which one half of the parameters has gradients, after one of the other half; over a step of all."""
    weights = {str(number): np.ones(100, dtype) for number in range(count)}
    grads = {name: np.full(100, 0.5, dtype) for name in weights}
    names = list(weights)
    first, second = ({name: grads[name] for name in part} for part in (names[: count // 2], names[count // 2 :]))
    optimizer = WORKLOADS["adam"].optimizer(weights)

    def timed(given: Arrays) -> float:
        start = clock()
        optimizer.step(given)
        return clock() - start

    def several() -> tuple[float, float]:
        turns = [timed(each) for _ in range(steps) for each in (first, second)][1:]  # each after the other half
        optimizer.step(grads)
        return median(turns), median(timed(grads) for _ in range(steps))

    several()
    taken: dict[str, list[float]] = {OPTIMKIT: [], FULL_STEP: []}
    for _ in range(rounds):
        turn, full = several()
        taken[OPTIMKIT].append(turn)
        taken[FULL_STEP].append(full)
    return _line("halves", f"halves of {title} arrays in turn", FULL_STEP, taken)


def _line(part: str, title: str, other: str, taken: dict[str, list[float]]) -> Line:
    return Line(part, title, other, taken, compare(taken[OPTIMKIT], taken[other]))


def _check_same(ours: Arrays, theirs: Arrays) -> None:
    for name, w in ours.items():
        far = float(np.abs(w - theirs[name]).max())
        if not far <= 2e-3:  # where a gradient is nearly 0, Adam's step depends on its last digits
            raise RuntimeError(f"Adam by hand computes something else than optimkit: {name} differs by {far:.3g}")
