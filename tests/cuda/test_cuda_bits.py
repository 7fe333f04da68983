"""The CUDA engine computes the bits of the NumPy engines: layouts, dtypes, ranges, groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit import transforms

SHAPES = [(37, 29), (5,), (), (0, 3), (4097,), (3, 7, 11)]


def draw(rng: Any, shapes: list[Any], dtype: str, low: int = -6, high: int = 3) -> list[Any]:
    return [np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(low, high), dtype) for shape in shapes]


MAKE = {
    "sgd": lambda p: optimkit.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "adagrad": lambda p: optimkit.Adagrad(p, lr=1e-2, lr_decay=0.1),
    "rmsprop": lambda p: optimkit.RMSProp(p, momentum=0.9, centered=True, penalty=optimkit.ElasticNet(1e-3, 1e-2)),
    "amsgrad": lambda p: optimkit.AMSGrad(p, lr=1e-2, maximize=True),
    "clip": lambda p: optimkit.AdamW(p, lr=1e-2, transforms=[transforms.ClipByGlobalNorm(0.5)], nonfinite="skip"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MAKE)
def test_same_bits_down_to_subnormals(twins: Any, name: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    pair = twins(MAKE[name], draw(rng, SHAPES, dtype, 0, 1))
    tiny = -42 if dtype == "float32" else -318
    for step in range(5):
        low = tiny if step in (0, 2) else -6
        pair.step(draw(rng, SHAPES, dtype, low, low + 4), zero_grad=step == 3)
        pair.check()


def test_subnormal_gradients_are_not_flushed(twins: Any) -> None:
    pair = twins(lambda p: optimkit.SGD(p, lr=1.0), [np.zeros(9, np.float32)])
    pair.step([np.full(9, 1e-41, np.float32)])
    assert (pair.device_arrays[0].get() == -np.float32(1e-41)).all()
    assert np.float32(1e-41) != 0


def strided(xp: Any, x: Any) -> Any:
    found = xp.zeros((x.shape[0] * 2, x.shape[1] * 3), x.dtype)[::2, ::3]
    found[...] = x
    return found


def negative(xp: Any, x: Any) -> Any:
    found = xp.zeros(x.shape, x.dtype)[::-1, ::-1]
    found[...] = x
    return found


def unaligned(xp: Any, x: Any) -> Any:
    found = xp.zeros(x.size + 1, x.dtype)[1:].reshape(x.shape)
    found[...] = x
    return found


def other_dtype(xp: Any, x: Any) -> Any:
    return xp.array(x, "float64" if x.dtype == "float32" else "float32")


def fortran(xp: Any, x: Any) -> Any:
    return xp.array(x, order="F")


def contiguous(xp: Any, x: Any) -> Any:
    return xp.array(x)


LAYOUTS = [contiguous, fortran, strided, negative, unaligned]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("of_gradient", [*LAYOUTS, other_dtype])
@pytest.mark.parametrize("of_weight", LAYOUTS)
def test_layouts(twins: Any, of_weight: Any, of_gradient: Any, dtype: str) -> None:
    rng = np.random.default_rng(1)
    pair = twins(MAKE["clip"], draw(rng, [(33, 130)], dtype, 0, 1), of_weight)
    for zero in (False, True):
        pair.step(draw(rng, [(33, 130)], dtype), of_gradient, zero_grad=zero)
        pair.check()
    assert not pair.device_grads[0].any()


def test_strided_neighbours_are_not_touched(cupy: Any) -> None:
    buffer = cupy.full((66, 390), 7.0, cupy.float32)
    opt = optimkit.SGD(buffer[::2, ::3], lr=1.0)
    opt.step(cupy.ones((33, 130), cupy.float32))
    found = buffer.get()
    assert (found[::2, ::3] == 6.0).all()
    found[::2, ::3] = 7.0
    assert (found == 7.0).all()


def test_groups_with_different_counts(twins: Any) -> None:
    """More rows than a launch carries by value: they are uploaded."""
    rng = np.random.default_rng(2)
    shapes = [(int(n),) for n in rng.integers(1, 600, 200)]
    pair = twins(
        lambda p: optimkit.Adam([{"params": p[k::20], "lr": 1e-3 * (k + 1)} for k in range(20)]), draw(rng, shapes, "float32")
    )
    for _ in range(6):
        grads = [g if rng.random() < 0.7 else None for g in draw(rng, shapes, "float32")]
        host = [g if g is None else g.copy() for g in grads]
        pair.host.step([host[k::20] for k in range(20)])
        import cupy

        pair.device.step([[None if g is None else cupy.asarray(g) for g in grads[k::20]] for k in range(20)])
    pair.host_grads = pair.device_grads = []
    (bucket,) = pair.device._run.steps.buckets
    rows = int(bucket.runner.job["row_count"]) * len(bucket.plan.hosts)
    assert rows > 384, "as many rows as fit by value: the other path is not tested"
    pair.check()


class Uniform(optimkit.Optimizer):
    """Slots of every extent, reductions of every kind, totals that follow from each other."""

    lr: optimkit.Scalar = 1e-2

    def slots(self) -> dict[str, Any]:
        per_optimizer = {"d": optimkit.full(1.0).per("optimizer"), "k": optimkit.zeros.per("optimizer")}
        return {"m": optimkit.zeros, "n": optimkit.zeros.per("parameter"), **per_optimizer}

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        m = 0.9 * s.m + g
        n = 0.5 * s.n + optimkit.norm(m) + xp.max(abs(m)) - xp.min(m) + xp.mean(w)
        d = 0.9 * s.d + 0.1 * optimkit.total(n) + optimkit.total_norm(g - m * 0.5)
        step = h.lr * m / (d + n + 1.0) * xp.sqrt(1.0 * h.t)
        return step, {"m": m, "d": d, "n": n, "k": s.k + 1.0 + 0.0 * optimkit.total(abs(w))}


@pytest.mark.parametrize("dtypes", [["float32"] * 4, ["float32", "float64"] * 2], ids=["one bucket", "two buckets"])
@pytest.mark.parametrize("nonfinite", ["allow", "skip"])
def test_uniform_values(twins: Any, dtypes: list[str], nonfinite: str) -> None:
    """Slots per parameter and per optimizer, totals over two buckets, a bucket that drops out and comes back."""
    rng = np.random.default_rng(3)
    shapes = [(300,), (4000,), (17,), (1,)]

    def values() -> list[Any]:
        return [np.asarray(rng.standard_normal(shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

    pair = twins(lambda p: Uniform(p, nonfinite=nonfinite), values())
    for step in range(5):
        grads = values()
        if step == 1 and nonfinite == "skip":
            grads[1][3] = np.nan
        if step == 3:
            grads[1] = grads[3] = None
        host, device = pair.step(grads)
        assert host.applied == device.applied == (step != 1 or nonfinite == "allow")
        pair.check()


def test_long_runs_of_units(twins: Any) -> None:
    """More units than lanes, so that the sum over units has several rows."""
    rng = np.random.default_rng(4)
    pair = twins(MAKE["clip"], draw(rng, [(2048 * 131 + 77,)], "float32", 0, 1))
    host, device = pair.step(draw(rng, [(2048 * 131 + 77,)], "float32"))
    pair.check()
    assert host.grad_norm == device.grad_norm


def test_norm_of_huge_float64_gradients_is_finite(twins: Any) -> None:
    pair = twins(MAKE["clip"], [np.ones(5000)])
    host, device = pair.step([np.full(5000, 1e200)])
    pair.check()
    assert host.grad_norm == device.grad_norm
    assert device.grad_norm == pytest.approx(1e200 * 5000**0.5, rel=1e-12)


def test_many_rows_then_few_then_many(twins: Any) -> None:
    """Rows go to device memory, by value, and to device memory again, with the same bytes."""

    def make(arrays: list[Any]) -> Any:
        return optimkit.SGD([{"params": [x], "lr": 1e-3 * (k + 1)} for k, x in enumerate(arrays)], lr=1.0)

    pair = twins(make, [np.ones(3)] * 400)
    for chosen in (range(400), range(399, 400), range(400)):
        grads = [np.ones(3) if place in chosen else None for place in range(400)]
        import cupy

        pair.host.step([[g] for g in grads])
        pair.device.step([[None if g is None else cupy.asarray(g)] for g in grads])
    pair.host_grads = pair.device_grads = []
    pair.check()


class Named(optimkit.Optimizer):
    """Slots with names that a C++ comment, or a compiler, could trip over; truths that are uniform."""

    lr: optimkit.Scalar = 0.1

    def slots(self) -> dict[str, Any]:
        names = ("int", "a\\", "b\nc", "p_w", "entry", "é")
        return dict.fromkeys(names, optimkit.zeros) | {"u\\": optimkit.zeros.per("parameter")}

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        new = {name: value + g for name, value in vars(s).items() if not name.startswith("_")}
        big = optimkit.norm(g) > 2.0
        new["u\\"] = xp.where(big, 1.0, 2.0) + getattr(s, "u\\")
        chosen = xp.where((xp.isnan(w) | big) & (g > 0.0), 2.0 * g, g)
        return h.lr * (chosen + new["a\\"] + new["int"]), new


def test_names_of_slots_and_uniform_truths(twins: Any) -> None:
    rng = np.random.default_rng(5)
    pair = twins(lambda p: Named(p), [np.ones(33, np.float32), np.ones(2, np.float32)])
    for _ in range(3):
        pair.step([rng.standard_normal(33).astype(np.float32), rng.standard_normal(2).astype(np.float32)])
        pair.check()


class Decaying(optimkit.Optimizer):
    """A slot of the optimizer that follows the rate, which groups have of their own."""

    lr: optimkit.Scalar = 0.1

    def slots(self) -> dict[str, Any]:
        return {"d": optimkit.full(1.0).per("optimizer")}

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        return s.d * g, {"d": s.d * (1 - h.lr)}


@pytest.mark.parametrize("devices", [1, 2])
def test_a_slot_of_the_optimizer_takes_the_numbers_of_the_first_parameter(cupy: Any, devices: int) -> None:
    """Also where parameters form two buckets, or lie on two devices, and where the first has no gradient."""
    if devices > cupy.cuda.runtime.getDeviceCount():
        pytest.skip("needs two CUDA devices")
    dtypes = ["float32", "float64" if devices == 1 else "float32"]
    host = [np.ones(2, dtype) for dtype in dtypes]
    there = []
    for number, w in enumerate(host):
        with cupy.cuda.Device(number % devices):
            there.append(cupy.asarray(w))

    def build(arrays: list[Any]) -> Any:
        return Decaying([{"params": [arrays[0]], "lr": 0.25}, {"params": [arrays[1]], "lr": 0.5}])

    a, b = build(host), build(there)
    for absent in (None, 0, 1, None):
        grads, device_grads = [], []
        for number, dtype in enumerate(dtypes):
            gone = number == absent
            with cupy.cuda.Device(number % devices):
                grads.append([None if gone else np.ones(2, dtype)])
                device_grads.append([None if gone else cupy.ones(2, dtype)])
        a.step(grads)
        b.step(device_grads)
        assert float(a.state.shared["d"]) == float(b.state.shared["d"])
        assert [w.tobytes() for w in host] == [w.get().tobytes() for w in there]
    assert float(a.state.shared["d"]) == 0.75 * 0.5 * 0.75 * 0.75
    b.state.shared["d"][...] = 8.0
    a.state.shared["d"][...] = 8.0
    a.step([[np.ones(2, dtype)] for dtype in dtypes])
    b.step(device_grads)
    assert [w.tobytes() for w in host] == [w.get().tobytes() for w in there]


def test_what_was_launched_is_counted_when_a_later_launch_fails(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [cupy.ones(2, cupy.float32), cupy.ones(2, cupy.float64)]
    grads = [cupy.ones_like(w) for w in weights]
    opt = optimkit.SGD(weights, lr=1.0)
    opt.step(grads)
    runners = [bucket.runner for bucket in opt._run.steps.buckets]
    real = runners[0].tell_write

    def fail(*args: Any) -> None:
        raise RuntimeError("no launch")

    monkeypatch.setattr(runners[0], "tell_write", fail)
    with pytest.raises(RuntimeError, match="no launch"):
        opt.step(grads)
    monkeypatch.setattr(runners[0], "tell_write", real)
    for w, name in zip(weights, opt.names, strict=True):
        assert float(w[0]) == 1.0 - opt.state[name].t


def test_totals_of_more_parameters_than_lanes_in_flight(twins: Any) -> None:
    """128 lanes with 16 loads each are 2,048 parameters; those without a gradient, and the last few, add up as on the host."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 3, 2300)
    clip = {"transforms": [transforms.ClipByGlobalNorm(0.1)], "nonfinite": "skip"}
    pair = twins(lambda p: optimkit.Adam(p, **clip), [np.ones(n) for n in sizes])
    for step in range(2):
        grads = [rng.normal(size=n) if rng.random() < 0.9 or step == 0 else None for n in sizes]
        found, expected = pair.step(grads)
        assert found.grad_norm == expected.grad_norm
    for host, device in zip(pair.host_arrays, pair.device_arrays, strict=True):
        assert host.tobytes() == device.get().tobytes()


def test_rows_of_their_own(twins: Any) -> None:
    """Groups, and counts of updates, give each parameter another row of numbers; what follows from a total is kept by row."""

    def make(arrays: Any) -> Any:
        groups = [{"params": [x], "lr": 1e-2 * (k + 1)} for k, x in enumerate(arrays)]
        return optimkit.AdamW(groups, transforms=[transforms.ClipByGlobalNorm(0.5), transforms.ClipByGlobalNorm(0.2)])

    rng = np.random.default_rng(1)
    pair = twins(make, [np.ones(n, np.float32) for n in (5, 3000, 1, 70)])
    import cupy

    for step in range(6):
        shapes = [x.shape for x in pair.host_arrays]
        grads = [rng.normal(size=n).astype(np.float32) if (step + k) % 3 else None for k, n in enumerate(shapes)]
        pair.host.step([[g] for g in grads])
        pair.device.step([[None if g is None else cupy.asarray(g)] for g in grads])
    for host, device in zip(pair.host_arrays, pair.device_arrays, strict=True):
        assert host.tobytes() == device.get().tobytes()
