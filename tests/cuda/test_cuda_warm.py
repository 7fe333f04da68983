"""Warm steps on a device: what compiled code sees of CuPy's arrays, and that nothing depends on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit import transforms
from optimkit.engines.choose import compiled_step
from optimkit.engines.cuda import objects, step
from optimkit.engines.protocol import Engine

SKIP = {"transforms": [transforms.ClipByGlobalNorm(1.0)], "nonfinite": "skip"}
SIZES = (5, 3000, 1, 70)


def build(cupy: Any, **options: Any) -> Any:
    return optimkit.Adam({str(n): cupy.ones(n, cupy.float32) for n in SIZES}, **options)


def gradients(cupy: Any, value: float = 0.5) -> dict[str, Any]:
    return {str(n): cupy.full(n, value, cupy.float32) for n in SIZES}


def warm_steps(opt: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the steps that compiled code takes."""
    taken: list[int] = []
    real = step.CudaStep.run

    def run(self: Any, *arguments: Any) -> int:
        taken.append(real(self, *arguments))
        return taken[-1]

    monkeypatch.setattr(step.CudaStep, "run", run)
    return taken


def test_the_layout_of_arrays_is_found(cupy: Any) -> None:
    assert objects.cupy_objects() is not None, "CuPy's classes have changed: every step is slower by what Python looks at"
    assert step.works()


@pytest.mark.parametrize("options", [{}, SKIP], ids=["plain", "skip"])
def test_steps_are_warm_with_gradients_that_are_new_gone_or_elsewhere(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    opt = build(cupy, **options)
    opt.step(gradients(cupy))
    taken = warm_steps(opt, monkeypatch)
    held = [gradients(cupy) for _ in range(3)]
    for g in (*held, *held, {**held[0], "5": None}, {"3000": held[1]["3000"]}, held[2]):
        opt.step(g)
    assert taken == [1] * 9
    assert {str(n): opt.state[str(n)].t for n in SIZES} == {"5": 8, "3000": 10, "1": 9, "70": 9}


def test_what_is_another_array_is_looked_at_by_python(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another dtype, shape, layout, alignment or class, and a weight that is another one, or another shape."""
    opt = build(cupy)
    opt.step(gradients(cupy))
    taken = warm_steps(opt, monkeypatch)
    plain = gradients(cupy)

    class Sub(cupy.ndarray):
        """A class of its own."""

    others = [
        plain["3000"].astype(cupy.float64),
        cupy.ones(6000, cupy.float32)[::2],
        plain["3000"][::-1],
        cupy.zeros(12004, cupy.uint8)[4:].view(cupy.float32),  # on four bytes only: no vectors
        plain["3000"].view(Sub),
    ]
    for other in others:
        opt.step({**plain, "3000": other})
        opt.step(plain)
    assert taken[0::2][3] == 1, "the address alone is another one"
    assert [each for place, each in enumerate(taken[0::2]) if place != 3] == [0, 0, 0, 0]
    before = opt["5"].data.get()
    opt["5"].data.shape = (5, 1)
    with pytest.raises(ValueError, match=r"'5'.*shape"):
        opt.step(plain)
    opt["5"].data.shape = (5,)
    assert (opt["5"].data.get() == before).all()
    opt["5"].data = cupy.zeros(5, cupy.float32)
    opt.step(plain)
    assert (opt["5"].data.get() != 0).all()


def test_a_weight_as_its_own_gradient_and_slots_are_seen(cupy: Any) -> None:
    """What overlaps what a step writes is copied first, warm or not; the numbers are NumPy's."""
    ours, theirs = build(cupy), optimkit.Adam({str(n): np.ones(n, np.float32) for n in SIZES})
    plain = gradients(cupy), {str(n): np.full(n, 0.5, np.float32) for n in SIZES}
    for number in range(6):
        for opt, g in zip((ours, theirs), plain, strict=True):
            if number == 3:
                g = {**g, "70": opt["70"].data}
            if number == 4:
                g = {**g, "3000": opt.state["3000"]["m"]}
            opt.step(g)
    for n in SIZES:
        assert ours[str(n)].data.get().tobytes() == theirs[str(n)].data.tobytes()


def test_numbers_set_between_warm_steps_are_used(twins: Any, cupy: Any) -> None:
    pair = twins(lambda p: optimkit.AdamW(p, lr=lambda t: 0.1 / (1 + t)), [np.ones(n, np.float32) for n in SIZES])
    for number in range(5):
        if number == 3:
            for opt in (pair.host, pair.device):
                opt.set(betas=(0.8, 0.9))
        pair.step([np.full(n, 0.1 * number - 0.2, np.float32) for n in SIZES])
        pair.check()


@pytest.mark.parametrize("broken", ["no compiler", "another layout"])
def test_without_a_compiler_or_with_another_layout_python_looks(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    expected = build(cupy, **SKIP)
    if broken == "no compiler":
        monkeypatch.setattr(step, "available", lambda: "llvmlite is not there")
    else:
        monkeypatch.setattr(step, "cupy_objects", lambda: None)
    step.works.cache_clear()
    try:
        opt = build(cupy, **SKIP)
        for number in range(4):
            for each in (expected, opt):
                each.step(gradients(cupy, 0.1 * number))
        assert opt._run.warm is None
    finally:
        step.works.cache_clear()
    for n in SIZES:
        assert opt[str(n)].data.get().tobytes() == expected[str(n)].data.get().tobytes()


def test_a_layout_is_refused_where_anything_is_ambiguous(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_word", "_holds"):
        with monkeypatch.context() as patch:
            patch.setattr(objects, name, lambda *arguments: True)
            assert objects._find() is None
    with monkeypatch.context() as patch:
        patch.delattr(cupy.cuda, "UnownedMemory")
        assert objects.cupy_objects.__wrapped__() is None


def test_only_arrays_of_one_library_and_engine_are_compiled() -> None:
    def engine(name: str) -> Engine:
        return Engine(name, object)  # type: ignore[arg-type]

    assert compiled_step([("cupy", engine("eager"))]) is None
    assert compiled_step([("cupy", engine("cuda")), ("numpy", engine("llvm"))]) is None


@pytest.mark.parametrize("options", [{}, SKIP, {"capturable": True}], ids=["plain", "skip", "capturable"])
def test_tables_of_before_are_not_taken_for_those_of_now(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Sets of gradients come back after another dtype, and another weight, made all tables anew."""
    monkeypatch.setattr("optimkit.engines.cuda.job._takes_large_arguments", lambda: False)
    host_options = {name: value for name, value in options.items() if name != "capturable"}
    ours, theirs = build(cupy, **options), optimkit.Adam({str(n): np.ones(n, np.float32) for n in SIZES}, **host_options)
    values = [0.1 * number for number in range(10)]
    held = [gradients(cupy, value) for value in values]
    like = [{str(n): np.full(n, value, np.float32) for n in SIZES} for value in values]
    for number in range(60):
        place = (number * 7) % 10
        ours_g, theirs_g = held[place], like[place]
        if number % 13 == 12:
            ours_g = {**ours_g, "70": ours_g["70"].astype(cupy.float64)}
        if number % 17 == 16:
            for opt in (ours, theirs):
                opt["5"].data = opt["5"].data.copy()
        ours.step(ours_g)
        theirs.step(theirs_g)
        for n in SIZES:
            assert ours[str(n)].data.get().tobytes() == theirs[str(n)].data.tobytes(), number
