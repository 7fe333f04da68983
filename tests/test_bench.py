"""The benchmark's contestants: that everybody computes the same, and that the floor moves every byte. No times."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from optimkit.bench import contestants, floor, fresh, warm, workloads
from optimkit.bench.contestants import Contestant
from optimkit.bench.shapes import FULL, Shapes
from optimkit.bench.workloads import WORKLOADS
from optimkit.engines import threads

TORCH = contestants.torch_problem()
SMALL = Shapes("two", ((7, 5), (3,)))


def test_shapes_are_those_of_the_papers():
    assert (len(FULL["resnet"].shapes), FULL["resnet"].elements) == (161, 25_557_032)
    assert FULL["resnet"].shapes[:4] == ((64, 3, 7, 7), (64,), (64,), (64, 64, 1, 1))
    assert {name: (len(each.shapes), each.elements) for name, each in FULL.items() if name != "resnet"} == {
        "large": (1, 20_000_000),
        "small": (1000, 2_080_000),
        "mlp": (4, 101_770),
    }


def everybody(name, dtype):
    data = contestants.make_data(SMALL, dtype)
    found = [contestants.optimkit_contestant(name, data), contestants.expressions_contestant(name, data)]
    return found + ([] if TORCH else [contestants.torch_contestant(name, data, kind) for kind in ("fused", "foreach")])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_everybody_computes_the_same(name, dtype):
    found = everybody(name, dtype)
    for each in found:
        for _ in range(3):
            if each.refill:
                each.refill()
            each.step()
    contestants.check_same(found, dtype)
    moved = np.abs(found[0].weights()[0] - contestants.make_data(SMALL, dtype)[0][0]).max()
    assert moved > 10 * {"float32": 1e-4, "float64": 1e-6}[dtype]  # what the comparison tolerates


def test_everybody_clips(monkeypatch):
    """Adam hides a factor of the gradient, unless the gradient comes near eps."""
    for module in (workloads, contestants):
        monkeypatch.setattr(module, "MAX_NORM", 1e-7)
    found = everybody("tail", "float64")
    for each in found:
        each.step()
    contestants.check_same(found, "float64")
    (before, _), (w, _) = contestants.make_data(SMALL, "float64")[0], found[0].weights()
    assert 1e-5 < np.abs(w - before).mean() < 0.8 * workloads.LR


def test_a_tail_that_is_not_refilled_has_no_gradients():
    for each in everybody("tail", "float64"):
        each.step()
        before = [np.array(contestants.to_numpy(w)) for w in each.weights()]
        each.step()
        first = [np.array(contestants.to_numpy(w)) for w in each.weights()]
        each.refill()
        each.step()
        second = [contestants.to_numpy(w) for w in each.weights()]
        decayed = np.abs(first[1] - before[1]).max()
        assert np.abs(second[1] - first[1]).max() > 1.2 * decayed, each.name


def test_nobody_may_compute_something_else():
    def holding(name, value):
        return Contestant(name, lambda: None, weights=lambda: [np.full(3, value)])

    with pytest.raises(RuntimeError, match=r"b computes something else than a: parameter 0 differs by 0\.1"):
        contestants.check_same([holding("a", 1.0), holding("b", 1.1)], "float32")
    with pytest.raises(RuntimeError, match="differs by nan"):
        contestants.check_same([holding("a", 1.0), holding("b", np.nan)], "float32")


@pytest.mark.parametrize(
    ("name", "dtype", "expected"), [("sgd", "float32", (12, 8)), ("adam", "float32", (16, 12)), ("tail", "float64", (40, 32))]
)
def test_bytes_per_element(name, dtype, expected):
    assert contestants.bytes_per_element(contestants.plan_of(name, dtype), dtype, WORKLOADS[name].tail) == expected


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", [1, 100_003, floor.SMALL + 1])
def test_the_floor_reads_and_writes_everything(monkeypatch, compiled, size):
    monkeypatch.setattr(threads, "_threads", 2)
    if not compiled:
        monkeypatch.setattr(floor, "llvm_problem", lambda: "left out")
    arrays = {key: np.arange(size, dtype=np.float32) % 1000 + number for number, key in enumerate("wgmv")}
    before = {key: array.copy() for key, array in arrays.items()}
    floor.Pass(arrays, "wgmv", "wmv", "g")()
    assert np.array_equal(arrays["w"], before["m"] + before["g"])
    assert np.array_equal(arrays["m"], before["v"])
    assert np.array_equal(arrays["v"], before["w"])
    assert not arrays["g"].any()
    floor.Pass(arrays, "wm", "w")()
    assert np.array_equal(arrays["w"], before["m"] + before["g"] + before["v"])


def test_a_reading_pass_reads_all(monkeypatch):
    monkeypatch.setattr(threads, "_threads", 1)
    bits = np.zeros(3000, np.float32)
    one = floor.Pass({"g": bits}, "g", "")
    for place in (0, 1234, 2999):
        bits[:] = 0.0
        one()
        assert one.sink[0] == 0
        bits[place] = 1.0
        one()
        assert one.sink[0] != 0


def test_the_floor_of_a_step_has_its_passes():
    plan = contestants.plan_of("tail", "float32")
    made = []
    original = floor.Pass

    def remember(*arguments):
        made.append(original(*arguments))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floor, "Pass", remember)
        floor.floor_contestant(plan, 100, "float32", True).step()
    assert [(len(each.reads), len(each.writes), len(each.zeroed)) for each in made] == [(1, 0, 0), (4, 3, 1)]


def test_allocations_of_a_step_are_seen():
    assert warm.allocated(Contestant("x", lambda: np.ones(500_000))) >= 4_000_000
    own = contestants.optimkit_contestant("adam", contestants.make_data(Shapes("one", ((300_000,),)), "float32"))
    assert warm.allocated(own) < 100_000


def test_replaced_gradients_are_other_arrays(monkeypatch):
    """A step takes 1 s, and 3 us more for each array that is not that of the step before."""
    now, last = [0.0], {}

    class Optimizer:
        def step(self, grads):
            now[0] += 1.0 + 3e-6 * sum(last.get(place) is not g for place, g in enumerate(grads))
            last.update(enumerate(grads))

    monkeypatch.setitem(WORKLOADS, "adam", SimpleNamespace(optimizer=lambda params: Optimizer()))
    costs = warm.replaced_gradients("adam", SMALL, "float32", 2, clock=lambda: now[0])
    assert costs == pytest.approx([3e-6, 3e-6], rel=1e-3)


def test_first_steps_start_cold_and_find_the_cache():
    found = fresh.measure_first_step("sgd", "float32", 1, torch=False)
    assert found.compiles >= 1
    assert found.cached_compiles == 0
    assert (found.torch, found.cold_ratio, found.cached_ratio) == (0.0, 0.0, 0.0)
    if not contestants.torch_problem():
        found = fresh.measure_first_step("sgd", "float32", 1, torch=True)
        assert found.cold_ratio == found.cold / found.torch


def test_imports_are_fresh():
    found = fresh.measure_imports(1)
    assert found.heavy == ()
    assert found.ratio.median == found.optimkit / found.numpy


def test_a_process_that_fails_tells_why():
    with pytest.raises(RuntimeError, match=r"failed with 1:(.|\n)*ZeroDivisionError"):
        fresh.run_python("1 / 0")
