"""What a step costs on a device: launches, bytes, uploads, allocations, and no waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit import transforms
from optimkit.counting import counters

CLIP = {"transforms": [transforms.ClipByGlobalNorm(0.5)]}


def groups_of(arrays: list[Any], count: int) -> list[list[Any]]:
    return [arrays[k::count] for k in range(count)]


def ragged(cupy: Any, make: Any, **options: Any) -> tuple[Any, list[Any]]:
    """1,000 arrays in 20 groups, with different step counts, after some steps; and their gradients."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 3000, 1000)
    weights = [cupy.zeros(int(n), cupy.float32) for n in sizes]
    grads = [cupy.full(int(n), 0.5, cupy.float32) for n in sizes]
    opt = make([{"params": group, "lr": 1e-3 * (k + 1)} for k, group in enumerate(groups_of(weights, 20))], **options)
    for _ in range(2):
        opt.step(groups_of([g if rng.random() < 0.6 else None for g in grads], 20))
    for _ in range(2):
        opt.step(groups_of(grads, 20))
    assert len({opt.state[name].t for name in opt.names}) > 1
    opt.step(groups_of(grads, 20))  # reading the counts did not change anything
    return opt, grads


@pytest.mark.parametrize(
    ("options", "launches"),
    [({}, 1), ({"nonfinite": "skip"}, 2), (CLIP, 2), ({**CLIP, "nonfinite": "skip"}, 2), ({"penalty": optimkit.L2(1e-3)}, 1)],
    ids=["plain", "skip", "clip", "clip and skip", "penalty"],
)
def test_launches_of_a_thousand_parameters(cupy: Any, options: dict[str, Any], launches: int) -> None:
    opt, grads = ragged(cupy, optimkit.Adam, **options)
    before = counters.launches
    opt.step(groups_of(grads, 20), zero_grad=True)
    assert counters.launches - before == launches


def test_the_device_sees_what_is_counted(cupy: Any, traffic: Any) -> None:
    """The same as above, counted by the driver, beside an ElementwiseKernel per parameter and CuPy expressions."""
    opt, grads = ragged(cupy, optimkit.Adam, nonfinite="skip", **CLIP)
    with traffic() as count:
        opt.step(groups_of(grads, 20), zero_grad=True)
    body = "m = g; v = g * g; w = w - lr * g"
    kernel = cupy.ElementwiseKernel("float32 g, float32 lr", "float32 w, float32 m, float32 v", body, "adam")
    states = [(cupy.zeros_like(g), cupy.zeros_like(g), cupy.zeros_like(g)) for g in grads]
    with traffic() as per_parameter:
        for g, (w, m, v) in zip(grads, states, strict=True):
            kernel(g, 1e-3, w, m, v)
    with traffic() as expressions:
        for g, (w, m, v) in zip(grads[:10], states[:10], strict=True):
            m *= 0.9
            m += 0.1 * g
            v *= 0.999
            v += 0.001 * g * g
            w -= 1e-3 * m / (cupy.sqrt(v) + 1e-8)
    print(
        f"launches for 1,000 parameters: optimkit {count['launches']}, an ElementwiseKernel per parameter "
        f"{per_parameter['launches']}, CuPy expressions {100 * expressions['launches']}"
    )
    assert count["launches"] == 2
    assert per_parameter["launches"] == 1000
    assert expressions["launches"] > 100


@pytest.mark.parametrize(
    ("make", "read", "written"),
    [
        (lambda p: optimkit.SGD(p, lr=1e-2), 8, 4),
        (lambda p: optimkit.SGD(p, lr=1e-2, momentum=0.9), 12, 8),
        (lambda p: optimkit.Adam(p), 16, 12),
        (lambda p: optimkit.Adam(p, **CLIP), 20, 12),
        (lambda p: optimkit.Adam(p, nonfinite="skip", **CLIP), 20, 12),
    ],
    ids=["sgd", "momentum", "adam", "adam and clip", "adam, clip and skip"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bytes_per_element(cupy: Any, traffic: Any, make: Any, read: int, written: int, dtype: str) -> None:
    """The minimum, and less than 3 % for tables."""
    n, scale = 300_000, np.dtype(dtype).itemsize / 4
    opt, grad = make(cupy.zeros(n, dtype)), cupy.ones(n, dtype)
    opt.step(grad)
    with traffic() as count:
        opt.step(grad)
    assert read * scale <= count["load_bytes"] / n < 1.03 * read * scale
    assert written * scale <= count["store_bytes"] / n < 1.03 * written * scale


@pytest.mark.parametrize("options", [{}, CLIP, {**CLIP, "nonfinite": "skip"}], ids=["plain", "clip", "skip"])
def test_a_warm_step_uploads_allocates_and_waits_for_nothing(cupy: Any, traffic: Any, options: dict[str, Any]) -> None:
    weights = {"a": cupy.zeros((300, 20), cupy.float32), "b": cupy.zeros(7, cupy.float32)}
    grads = {name: cupy.ones_like(w) for name, w in weights.items()}
    opt = optimkit.AdamW(weights, **options)
    for _ in range(3):
        opt.step(grads)
    uploads = counters.uploads
    with traffic() as count:
        for _ in range(4):
            result = opt.step(grads)
            opt.lr = 0.9 * opt.lr
    assert counters.uploads == uploads
    assert all(copies["count"] == 0 for copies in count["copies"].values())
    assert count["memory"]["allocs"] == 0
    assert count["syncs"] == {"stream": 0, "device": 0, "event": 0}
    with traffic() as count:
        assert result.applied
        assert (result.grad_norm is None) == (not options)
    waited = count["copies"]["DtoH"]["count"] + sum(count["syncs"].values())
    assert (waited > 0) == bool(options), "the result was not fetched when it was read"


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """One before CUDA 12.1, whose launches take 4 KB: tables lie in device memory, however short."""
    monkeypatch.setattr("optimkit.engines.cuda.job._takes_large_arguments", lambda: False)


@pytest.mark.parametrize(("count", "uploaded"), [(4, 0), (200, 0), (1200, 1)])
def test_replaced_gradients_travel_with_the_launch_or_are_one_upload(
    cupy: Any, traffic: Any, count: int, uploaded: int
) -> None:
    _replace_gradients(cupy, traffic, count, uploaded)


def test_replaced_gradients_are_one_upload(cupy: Any, traffic: Any, old_driver: None) -> None:
    _replace_gradients(cupy, traffic, 199, 1)


def _replace_gradients(cupy: Any, traffic: Any, number: int, uploaded: int) -> None:
    weights = [cupy.zeros(1 + n % 200, cupy.float32) for n in range(number)]
    opt = optimkit.Adam(weights)
    held = [cupy.ones_like(w) for w in weights]
    opt.step(held)
    for _ in range(3):
        grads = [cupy.ones_like(w) for w in weights]
        held += grads
        uploads = counters.uploads
        with traffic() as count:
            opt.step(grads)
        assert counters.uploads == uploads + uploaded
        assert count["copies"]["HtoD"]["count"] == uploaded
        assert sum(count["syncs"].values()) == 0


@pytest.mark.parametrize("options", [{}, {**CLIP, "nonfinite": "skip"}], ids=["plain", "clip and skip"])
def test_sets_of_gradients_seen_lately_are_uploaded_once(cupy: Any, old_driver: None, options: dict[str, Any]) -> None:
    """Buffers and halves that take turns: nothing moves, nothing is allocated, and the numbers are NumPy's."""
    sizes = (5, 300, 1, 4097)
    pairs = [[cupy.full(n, scale, cupy.float32) for n in sizes] for scale in (0.25, -0.5)]
    turns = [*pairs, [*pairs[0][:2], None, None], [None, None, *pairs[1][2:]]]
    hosts = [[None if g is None else g.get() for g in grads] for grads in turns]
    weights, like = ([xp.ones(n, xp.float32) for n in sizes] for xp in (cupy, np))
    ours, theirs = optimkit.Adam(weights, **options), optimkit.Adam(like, **options)
    uploads = counters.uploads
    for number in range(len(turns) * 5):
        if number == len(turns):
            assert counters.uploads == uploads + len(turns)
        ours.step(turns[number % len(turns)])
        theirs.step(hosts[number % len(turns)])
    assert counters.uploads == uploads + len(turns)
    for w, expected in zip(weights, like, strict=True):
        np.testing.assert_array_equal(w.get(), expected)
    for number in range(3):
        ours.step([cupy.full(n, 1.0 + number, cupy.float32) for n in sizes[:2]] + [None, None])
    assert counters.uploads > uploads + len(turns), "gradients elsewhere are another table"


def test_tables_of_weights_that_are_gone_are_used_again(cupy: Any) -> None:
    """Two weights are rebound between two steps, again and again: their table lies where one of before lay."""
    params = {"a": cupy.zeros(4, cupy.float32), "b": cupy.zeros(4, cupy.float32)}
    grads = {name: cupy.ones(4, cupy.float32) for name in params}
    opt = optimkit.SGD(params, lr=0.1)
    opt.step(grads)
    allocator = cupy.cuda.get_allocator()
    for _ in range(3):
        params.update({name: w.copy() for name, w in params.items()})
        sizes: list[int] = []
        with cupy.cuda.using_allocator(lambda size, sizes=sizes: (sizes.append(size), allocator(size))[1]):
            opt.step(grads)
        assert sizes == []


def test_results_that_are_held_keep_their_values(cupy: Any) -> None:
    w = cupy.zeros(4, cupy.float32)
    grads = [cupy.full(4, value, cupy.float32) for value in (1.0, 2.0, 3.0)]
    opt = optimkit.SGD(w, lr=0.0, **CLIP)
    held = [opt.step(g) for g in grads]
    sizes: list[int] = []
    allocator = cupy.cuda.get_allocator()
    with cupy.cuda.using_allocator(lambda size: (sizes.append(size), allocator(size))[1]):
        for _ in range(100):
            last = opt.step(grads[2])  # a result that nobody reads any more is a place for the next but one
        assert sizes == []
        more = [opt.step(grads[1]) for _ in range(40)]
        assert len(sizes) == 1
    assert [result.grad_norm for result in held] == [2.0, 4.0, 6.0]
    assert last.grad_norm == 6.0
    assert {result.grad_norm for result in more} == {4.0}


def test_nothing_is_compiled_while_the_rate_changes(cupy: Any) -> None:
    w, g = cupy.zeros(10, cupy.float32), cupy.ones(10, cupy.float32)
    opt = optimkit.RMSProp(w, lr=lambda step: 0.1 / (1 + step))
    opt.step(g)
    before = counters.compiles, counters.cache_hits
    for _ in range(3):
        opt.step(g)
    with pytest.warns(RuntimeWarning, match="was replaced by a number"):
        opt.lr = 0.5
    opt.step(g)
    assert (counters.compiles, counters.cache_hits) == before


def test_many_uploads_under_way_need_buffers_of_their_own(cupy: Any) -> None:
    from optimkit.engines.cuda.upload import MOST, Uploader

    uploader, stream = Uploader(), cupy.cuda.get_current_stream()
    targets = [cupy.zeros(10, cupy.int64) for _ in range(5)]
    for number, target in enumerate(targets):
        uploader.send(target.data.ptr, np.full(10, number), stream)
    assert [int(target[3]) for target in targets] == [0, 1, 2, 3, 4]
    (line,) = uploader._lines.values()
    asked: list[str] = []

    class Busy:
        """An event of a copy that has not passed."""

        def record(self, stream: Any) -> None:
            pass

        @property
        def done(self) -> bool:
            asked.append("done")
            return False

        def synchronize(self) -> None:
            asked.append("synchronize")

    assert len(line) == 1
    for number in range(MOST):
        for buffer in line:
            buffer.event = Busy()
        uploader.send(targets[0].data.ptr, np.full(10, number), stream)
        assert len(line) == min(number + 2, MOST)
    assert asked == ["done"] * (MOST - 1) + ["synchronize"], "one event is asked for an upload, not all"
    assert int(targets[0][3]) == MOST - 1


def test_binaries_are_whole(cupy: Any) -> None:
    """CuPy cuts the last byte off, as if it ended a string; what is loaded, and kept on disk, has it again."""
    import ctypes

    from cupy.cuda import nvrtc

    from optimkit.engines.cuda.compile import _whole

    text = optimkit.Adam.explain("float32", engine="cuda")
    text = text[text.index("// Adam, float32") :]
    program = nvrtc.createProgram(text, "a.cu", [], [])
    nvrtc.compileProgram(program, ["-arch=sm_90", "--std=c++17"])
    with open("/proc/self/maps") as file:
        library = ctypes.CDLL(next(line.split()[-1] for line in file if "libnvrtc.so" in line))
    size = ctypes.c_size_t()
    library.nvrtcGetCUBINSize(ctypes.c_void_p(program), ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(ctypes.c_void_p(program), buffer)
    cut = nvrtc.getCUBIN(program)
    assert len(cut) == size.value - 1, "CuPy gives all bytes now: take `_whole` away"
    assert _whole(cut) == buffer.raw
    assert _whole(buffer.raw) == buffer.raw
    assert _whole(b"// PTX") == b"// PTX"


def test_a_cupy_that_has_changed_is_told_of_and_got_round(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CuPy does not promise may go: then its own functions take the steps."""
    monkeypatch.setattr("optimkit.engines.cuda.compile.NEEDED", (("driver", "launchKernel"), ("driver", "launchAnyKernel")))
    w = cupy.ones(3)
    with pytest.warns(RuntimeWarning, match=r"CuPy .* has no cupy\.cuda\.driver\.launchAnyKernel.*install CuPy 14"):
        optimkit.SGD(w, lr=0.25).step(cupy.ones(3))
    assert (w.get() == 0.75).all()
    with pytest.raises(ValueError, match=r"engine = 'cuda': CuPy .* has no cupy\.cuda\.driver\.launchAnyKernel"):
        optimkit.SGD(w, lr=0.25, engine="cuda").step(cupy.ones(3))


def test_kernels_stay_inside_their_arrays(cupy: Any) -> None:
    """Without the pool, every access outside of an allocation is an error on the emulated device."""
    allocator = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(None)
    try:
        weights = [cupy.zeros(n, cupy.float32) for n in (1, 2, 3, 5, 127, 2049, 4095, 4097)]
        opt = optimkit.AdamW(weights, nonfinite="skip", **CLIP)
        for _ in range(2):
            assert opt.step([cupy.ones_like(w) for w in weights], zero_grad=True).applied
    finally:
        cupy.cuda.set_allocator(allocator)


def test_the_current_stream_is_used(cupy: Any, new_stream: Any) -> None:
    w, g = cupy.zeros(1000, cupy.float32), cupy.ones(1000, cupy.float32)
    opt = optimkit.SGD(w, lr=1.0)
    stream = new_stream()
    seen = []
    with stream:
        opt.step(g)
        runner = opt._run.steps.buckets[0].runner
        launch = runner.last
        runner.last = lambda to, *arguments: (seen.append(to), launch(to, *arguments))
        opt.step(g)
    stream.synchronize()
    assert seen == [stream.ptr]
    assert (w.get() == -2.0).all()
