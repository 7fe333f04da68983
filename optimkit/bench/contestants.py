"""Who is measured: optimkit, torch and plain expressions, each with arrays of its own making.

A contestant has a `step`, which is timed, a `refill`, which is not (it puts the gradients back where a
step zeroes them), and `weights`, by which the benchmark sees that all of them compute the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimkit import Optimizer
from optimkit.arrays import to_numpy
from optimkit.bench.shapes import Shapes
from optimkit.bench.workloads import MAX_NORM, WORKLOADS, by_hand, clip_by_hand, corrections
from optimkit.driver.explain import plan_alone
from optimkit.fusion.show import traffic
from optimkit.fusion.stages import Plan

OPTIMKIT, FUSED, FOREACH, BY_HAND, FLOOR = "optimkit", "torch fused", "torch foreach", "NumPy in place", "memory floor"
APEX = "apex"

Data = tuple[list[np.ndarray], list[np.ndarray]]  # weights and gradients


@dataclass
class Contestant:
    """Somebody who can take a step; `weights` is None for the memory floor, which computes nothing."""

    name: str
    step: Callable[[], object]
    refill: Callable[[], object] | None = None
    weights: Callable[[], list[Any]] | None = None
    optimizer: Optimizer | None = None


def make_data(shapes: Shapes, dtype: str) -> Data:
    """Weights and gradients of a normal distribution."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape, dtype) for shape in shapes.shapes]  # type: ignore[call-overload]
    return weights, [rng.standard_normal(shape, dtype) for shape in shapes.shapes]  # type: ignore[call-overload]


def optimkit_contestant(
    name: str, data: Data, make: Callable[[np.ndarray], Any] = np.array, **options: Any
) -> Contestant:
    """optimkit on arrays that `make` copies from the data."""
    workload = WORKLOADS[name]
    weights, grads = [make(w) for w in data[0]], [make(g) for g in data[1]]
    optimizer = workload.optimizer(weights, **options)

    def step() -> None:
        optimizer.step(grads, zero_grad=workload.tail)

    return Contestant(OPTIMKIT, step, refilling(workload.tail, grads, data[1], make), lambda: weights, optimizer)


def refilling(
    wanted: bool, grads: Sequence[Any], source: Sequence[np.ndarray], make: Callable[[np.ndarray], Any] = np.asarray
) -> Callable[[], None] | None:
    """A function that fills the gradients again, or None where nobody zeroes them."""
    if not wanted:
        return None
    kept = source if make is np.array or make is np.asarray else [make(g) for g in source]

    def refill() -> None:
        for g, values in zip(grads, kept, strict=True):
            g[...] = values

    return refill


def expressions_contestant(
    name: str, data: Data, xp: Any = np, label: str = BY_HAND, update: Callable[..., None] | None = None
) -> Contestant:
    """The update as people write it: in place, a parameter at a time.

    `update(w, g, slots, t)` takes the place of the expressions of `by_hand`.
    """
    workload, count = WORKLOADS[name], 0
    weights, grads = [xp.array(w) for w in data[0]], [xp.array(g) for g in data[1]]
    slots = [[xp.zeros_like(w) for _ in range(workload.slots)] for w in weights]

    def plain(w: Any, g: Any, own: Sequence[Any], t: int) -> None:
        by_hand(name, xp, w, g, own, corrections(t))

    chosen = update or plain

    def step() -> None:
        nonlocal count
        count += 1
        if workload.tail:
            clip_by_hand(xp, grads)
        for w, g, own in zip(weights, grads, slots, strict=True):
            chosen(w, g, own, count)
            if workload.tail:
                g[...] = 0

    return Contestant(label, step, refilling(workload.tail, grads, data[1], xp.array), lambda: weights)


def torch_problem(device: str = "cpu") -> str:
    """Why torch can't take part; empty if it can."""
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError, AttributeError and others
        return f"torch can't be imported ({error}); pip install torch"
    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device; install a build of torch for CUDA"
    return ""


def apex_problem() -> str:
    """Why apex can't take part; empty if it can."""
    try:
        from apex.optimizers import FusedAdam  # noqa: F401
    except Exception as error:  # another package has that name
        return f"apex can't be imported ({error})"
    return ""


def torch_contestant(name: str, data: Data, kind: str, device: str = "cpu", **more: Any) -> Contestant:
    """torch.optim with `fused=True` or `foreach=True`, or apex, on tensors that torch allocated."""
    torch = sys.modules["torch"]
    workload = WORKLOADS[name]
    params = [torch.from_numpy(w).to(device, copy=True).requires_grad_() for w in data[0]]
    for p, g in zip(params, data[1], strict=True):
        p.grad = torch.from_numpy(g).to(device, copy=True)
    cls, arguments = workload.torch
    if kind == APEX:
        from apex import optimizers

        known = {"SGD": ("FusedSGD", {}), "Adam": ("FusedAdam", {"adam_w_mode": False}), "AdamW": ("FusedAdam", {})}
        own, options = known[cls]
        optimizer = getattr(optimizers, own)(params, **arguments, **options, **more)
    else:
        optimizer = getattr(torch.optim, cls)(params, **arguments, **{kind: True}, **more)

    def step() -> None:
        optimizer.step()

    def tail() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    if device == "cpu":  # filled through NumPy, so that torch's threads stay asleep
        refill = refilling(workload.tail, [p.grad.numpy() for p in params], data[1])
    else:
        refill = refilling(workload.tail, [p.grad for p in params], data[1], lambda g: torch.from_numpy(g).to(device))
    label = {"fused": FUSED, "foreach": FOREACH, APEX: APEX}[kind]
    return Contestant(label, tail if workload.tail else step, refill, lambda: params)


def plan_of(name: str, dtype: str) -> Plan:
    """The plan of a workload: its stages, and what each reads and writes."""
    return plan_alone(WORKLOADS[name].optimizer(np.zeros(1, dtype))._run.chain(), dtype)


def bytes_per_element(plan: Plan, dtype: str, zeroing: bool) -> tuple[int, int]:
    """Bytes read and written per element in a whole step, all stages."""
    itemsize = np.dtype(dtype).itemsize
    stages = [traffic(plan, number, itemsize) for number in range(len(plan.stages))]
    return sum(read for read, _ in stages), sum(written for _, written in stages) + itemsize * zeroing


def check_same(contestants: Sequence[Contestant], dtype: str) -> None:
    """Raise if somebody computed something else than the first; all have taken the same number of steps.

    Raises
    ------
    RuntimeError
        With the names, and how far they are apart.
    """
    several = [each for each in contestants if each.weights is not None]
    tolerance = {"float32": 1e-4, "float64": 1e-6}[dtype]  # torch clips with max_norm / (norm + 1e-6)
    for other in several[1:]:
        assert several[0].weights is not None
        assert other.weights is not None
        for place, (mine, theirs) in enumerate(zip(several[0].weights(), other.weights(), strict=True)):
            far = float(abs(to_numpy(mine) - to_numpy(theirs)).max()) if mine.size else 0.0
            if not far <= tolerance:
                raise RuntimeError(
                    f"{other.name} computes something else than {several[0].name}: parameter {place} differs by {far:.3g}; "
                    "there is nothing to compare"
                )
