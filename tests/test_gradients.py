"""Gradients of a step: none is kept, each is looked at, shared memory gives the result of copies (faults 12 to 15, 24)."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
import weakref

import numpy as np
import pytest

import optimkit
from optimkit import Adam, AdamW, Param, arrays
from optimkit.driver.gradients import overlaps
from optimkit.driver.gradients.byte_ranges import ByteRanges
from optimkit.driver.gradients.fingerprints import Fingerprints
from optimkit.transforms import ClipByGlobalNorm

ENGINES = ["numba", "eager"]
SHAPES = {"a": (7, 5), "b": (5,), "c": (), "d": (0, 3), "e": (2, 1, 3)}


@pytest.fixture
def uncollected():
    """What dies, dies by its count of references."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def weights(dtype="float32", shapes=SHAPES):
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def gradients(seed, dtype="float32", shapes=SHAPES):
    rng = np.random.default_rng(100 + seed)
    return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def strided(x):
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 1] = x
    return wide[..., 1]


LAYOUTS = {
    "as it is": lambda x: x,
    "fortran": lambda x: np.array(x, order="F"),
    "strided": strided,
    "backwards": lambda x: np.array(np.flip(x))[(..., *(slice(None, None, -1) for _ in x.shape))],
    "float64": lambda x: np.asarray(x, "float64"),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "subclass": lambda x: x.view(type("Sub", (np.ndarray,), {})),
}


def assert_same(one, two):
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


# ---- nothing is kept


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_gradient_outlives_its_step(uncollected, engine, layout):
    params = weights()
    opt = AdamW(params, transforms=[ClipByGlobalNorm(1.0)], engine=engine)
    for seed in range(4):
        grads = {name: LAYOUTS[layout](g) for name, g in gradients(seed).items()}
        alive = {name: weakref.ref(g) for name, g in grads.items()}
        result = opt.step(grads)
        del grads
        assert result.applied
        assert [name for name, g in alive.items() if g() is not None] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_no_gradient_outlives_a_step_that_fails_or_is_skipped(uncollected, engine):
    opt = Adam(weights(), nonfinite="skip", engine=engine)
    for bad in (None, "shape", "nan", "shape", "nan"):
        grads = gradients(0)
        grads["a"][0, 0] = np.nan if bad == "nan" else 1.0
        if bad == "shape":
            grads["e"] = np.zeros(7, np.float32)
        alive = [weakref.ref(g) for g in grads.values()]
        if bad == "shape":
            with pytest.raises(ValueError, match=r"gradient of 'e' has shape \(7,\), its weight \(2, 1, 3\)"):
                opt.step(grads)
        else:
            assert opt.step(grads).applied == (bad is None)
        del grads
        assert [g() for g in alive if g() is not None] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_no_tensor_outlives_its_step(uncollected, engine):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    params = {name: torch.from_numpy(w) for name, w in weights().items()}
    opt = Adam(params, engine=engine)
    expected = weights()
    twin = Adam(expected, engine=engine)
    for seed in range(4):
        grads = {name: torch.from_numpy(g) for name, g in gradients(seed).items()}
        alive = [weakref.ref(g) for g in grads.values()]
        opt.step(grads)
        twin.step(gradients(seed))
        del grads
        assert [g() for g in alive if g() is not None] == []
    assert_same({name: w.numpy() for name, w in params.items()}, expected)


def test_a_copy_of_a_gradient_that_overlaps_its_weight_is_not_kept(uncollected):
    w = {"a": np.ones(1 << 16, np.float32)}
    opt = Adam(w)
    opt.step({"a": w["a"][::-1]})
    tracemalloc.start()
    try:
        opt.step({"a": w["a"][::-1]})
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < 1 << 16 < w["a"].nbytes <= most


def test_the_callers_own_grad_stays_the_callers(uncollected):
    p = Param(np.ones(3, np.float32))
    p.grad = g = np.ones(3, np.float32)
    opt = Adam([p])
    opt.step()
    assert p.grad is g
    alive = weakref.ref(g)
    p.grad = None
    del g
    assert alive() is None
    assert not opt.step().applied


# ---- each is looked at


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_may_be_other_arrays_of_any_layout_in_every_step(engine, dtype):
    one, two = weights(dtype), weights(dtype)
    opt, plain = (AdamW(w, transforms=[ClipByGlobalNorm(1.0)], engine=engine) for w in (one, two))
    kept = gradients(9, dtype)
    for seed, layout in enumerate([*LAYOUTS, "as it is", "as it is", "fortran", "as it is"]):
        grads = gradients(seed, dtype)
        opt.step({name: LAYOUTS[layout](g) for name, g in grads.items()})
        plain.step(grads)
        for each in (opt, plain):
            each.step(kept)
        assert_same(one, two)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_lies_where_a_gradient_lay_is_checked(engine):
    """Freed memory is given out again: the address alone says nothing."""
    w = {"a": np.ones((3, 2), np.float32)}
    opt, memory = Adam(w, engine=engine), np.ones(24, np.uint8)
    for _ in range(2):
        opt.step({"a": np.ndarray((3, 2), "float32", memory)})
    before = w["a"].copy()
    for dtype, message in [("int32", "is int32"), (">f4", "another byte order"), ("float16", "float16")]:
        with pytest.raises(TypeError, match=message):
            opt.step({"a": np.ndarray((3, 2), dtype, memory)})
    for shape in [(2, 3), (6,), (3, 1), (3, 2, 1)]:
        with pytest.raises(ValueError, match="nothing is broadcast"):
            opt.step({"a": np.ndarray(shape, "float32", memory)})
    with pytest.raises(ValueError, match="not aligned"):
        opt.step({"a": np.ndarray((3, 2), "float32", np.ones(25, np.uint8), 1)})
    np.testing.assert_array_equal(w["a"], before)
    other = {"a": np.ones((3, 2), np.float32)}
    plain = Adam(other, engine=engine)
    memory.view("float32")[:] = np.arange(6)
    transposed = np.ndarray((3, 2), "float32", memory, strides=(4, 12))
    opt.step({"a": transposed})
    for g in (np.ndarray((3, 2), "float32", np.ones(24, np.uint8)),) * 2:
        plain.step({"a": g})
    plain.step({"a": transposed.copy()})
    assert_same(w, other)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_that_was_resized_in_place_is_checked(engine):
    opt, g = Adam([np.ones((3, 2))], engine=engine), np.ones((3, 2))
    opt.step([g])
    opt.step([g])
    g.resize((2, 3))
    with pytest.raises(ValueError, match=r"has shape \(2, 3\), its weight \(3, 2\)"):
        opt.step([g])
    torch = pytest.importorskip("torch", reason="torch is not installed")
    opt, t = Adam([torch.ones(3, 2)], engine=engine), torch.ones(3, 2)
    opt.step([t])
    opt.step([t])
    t.t_()
    with pytest.raises(ValueError, match=r"has shape \(2, 3\), its weight \(3, 2\)"):
        opt.step([t])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_failed_leaves_no_trace(engine):
    """What moved before the bad gradient was found is looked at again."""
    one, two = weights(), weights()
    opt, plain = Adam(one, engine=engine), Adam(two, engine=engine)
    first, second = gradients(0), gradients(1)
    for _ in range(2):
        opt.step(first)
        plain.step(first)
    with pytest.raises(ValueError, match="gradient of 'e'"):
        opt.step({**second, "e": np.zeros(4, np.float32)})
    for grads in (first, second, first):
        opt.step(grads)
        plain.step({name: g.copy() for name, g in grads.items()})
        assert_same(one, two)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupt_while_gradients_are_handed_over_spoils_nothing(engine, monkeypatch):
    one, two = weights(), weights()
    opt, plain = Adam(one, engine=engine), Adam(two, engine=engine)
    for grads in (gradients(0), gradients(1)):
        opt.step(grads)
        plain.step(grads)
    bucket = opt._run.steps.buckets[0]

    def interrupt(*args):
        raise KeyboardInterrupt

    for method in ("arrays_changed", "prepare", *(["gradients_moved"] if engine == "numba" else [])):
        with monkeypatch.context() as patch:
            patch.setattr(bucket.runner, method, interrupt)
            others = {name: np.array(g, order="F") for name, g in gradients(2).items()}
            with pytest.raises(KeyboardInterrupt):
                opt.step(gradients(2) if method == "gradients_moved" else others)
        assert_same(one, two)
        grads = gradients(3)
        opt.step(grads)
        plain.step(grads)
        assert_same(one, two)
        assert [member.gradient for member in bucket.members if member.gradient is not None] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_come_and_go(engine):
    one, two = weights(), weights()
    opt, plain = Adam(one, engine=engine), Adam(two, engine=engine)
    grads = gradients(0)
    for names in ("abcde", "b", "", "abcde", "ce", "ae", "abcde"):
        applied = opt.step({name: grads[name] for name in names}).applied
        assert applied == bool(names)
        plain.step({name: grads[name].copy() if name in names else None for name in grads})
        assert_same(one, two)
    assert {name: opt.state[name].t for name in grads} == {"a": 4, "b": 4, "c": 4, "d": 3, "e": 5}


def test_a_frozen_parameter_stays_and_its_gradient_is_zeroed():
    w, g = weights(), gradients(0)
    opt = Adam(w)
    opt.step(g)
    opt.freeze("a")
    before = w["a"].copy()
    opt.step(g, zero_grad=True)
    np.testing.assert_array_equal(w["a"], before)
    assert not any(x.any() for x in g.values())
    opt.freeze()
    g = gradients(1)
    assert not opt.step(g, zero_grad=True).applied
    assert not any(x.any() for x in g.values())
    opt.unfreeze("a")
    opt.step(gradients(2))
    assert (opt.state["a"].t, opt.state["b"].t) == (2, 2)


def test_a_step_in_a_step_is_refused():
    w = weights()
    opt = Adam(w, lr=lambda t: opt.step(gradients(1)) and 0.1)
    with pytest.raises(RuntimeError, match=r"Adam.step\(\) was called in its own step"):
        opt.step(gradients(0))
    assert_same(w, weights())
    assert opt.count == 0
    opt.lr = 0.1
    assert opt.step(gradients(0)).applied


@pytest.mark.parametrize("engine", ENGINES)
def test_buckets_made_anew_go_on_counting_and_have_the_gradients(engine):
    clip = ClipByGlobalNorm(1e-3, where="*")
    one, two = weights(), weights()
    opt, plain = (Adam(w, lr=0.1, transforms=[clip], engine=engine) for w in (one, two))
    grads = gradients(0)
    for where in ("*", "*", "a", "b", "*"):
        clip.where = where  # structure: which kernel a parameter has
        opt.step(grads)
        plain.step({name: g.copy() for name, g in grads.items()})
    assert opt.state["a"].t == plain.state["a"].t == 5
    assert_same(one, two)


# ---- containers


def test_gradients_mirror_nested_parameters_and_groups():
    names = ("x", "y", "z")
    one, two = ([np.ones(3), np.ones((2, 2)), np.ones(())] for _ in range(2))
    g = dict(zip(names, [np.full(3, 2.0), np.full((2, 2), -1.0), np.asarray(0.5)], strict=True))
    plain = Adam(dict(zip(names, one, strict=True)))
    plain.step(g)
    trees = [
        ({"p": {"x": two[0], "y": two[1]}, "q": [two[2]]}, {"p": {"x": g["x"], "y": g["y"]}, "q": [g["z"]]}),
        ([two[0], (two[1], {"z": two[2]})], (g["x"], [g["y"], {"z": g["z"]}])),
        ([{"params": {"x": two[0]}}, {"params": [two[1], two[2]], "lr": 1e-3}], [{"x": g["x"]}, [g["y"], g["z"]]]),
        ([{"params": {"x": two[0]}}, {"params": {"y": two[1], "z": two[2]}}], dict(g)),
        ([{"params": [two[0]]}, {"params": two[1:]}], [{"params": [g["x"]]}, [g["y"], g["z"]]]),
        ({"x": two[0], "y": two[1], "z": two[2]}, {"z": g["z"], "x": g["x"], "y": Param(np.ones((2, 2)), g["y"])}),
    ]
    for params, grads in trees:
        for w in two:
            w[...] = 1.0
        Adam(params).step(grads)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_branch_without_gradients_is_skipped():
    params = {"p": {"x": np.ones(2), "y": np.ones(2)}, "q": [np.ones(2), np.ones(2)]}
    opt = Adam(params, lr=0.1)
    opt.step({"p": None, "q": [np.ones(2), None]})
    opt.step({"q": (None, np.ones(2))})
    opt.step({"p": {"y": np.ones(2)}})
    moved = {name: opt.state[name].t for name in opt.names}
    assert moved == {"p.x": 0, "p.y": 1, "q.0": 1, "q.1": 1}
    with pytest.raises(KeyError, match="r"):
        opt.step({"p": {"r": np.ones(2)}})
    with pytest.raises(ValueError, match="3 gradients"):
        opt.step({"q": [None, None, None]})
    with pytest.raises(TypeError, match=r"gradient.*p\.x.*str"):
        opt.step({"p": {"x": "no"}})


# ---- shared memory


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("warm", [False, True])
def test_a_gradient_that_shares_memory_with_a_weight_is_as_a_copy(engine, warm):
    cases = {
        "the weight": lambda w: {"a": w["a"], "b": w["b"]},
        "its reverse": lambda w: {"a": w["a"][::-1], "b": w["b"][::-1]},
        "another weight": lambda w: {"a": w["b"], "b": w["a"]},
        "a part": lambda w: {"a": np.broadcast_to(w["a"][3:4], 64), "b": np.ones(64, np.float32)},
    }
    for make in cases.values():
        one, two = (weights(shapes={"a": (64,), "b": (64,)}) for _ in range(2))
        opt, plain = Adam(one, lr=0.1, engine=engine), Adam(two, lr=0.1, engine=engine)
        for seed in range(3 if warm else 0):  # so that the array that shares memory is one that only moved
            for each in (opt, plain):
                each.step(gradients(seed, shapes={"a": (64,), "b": (64,)}))
        for _ in range(3):
            opt.step(make(one))
            plain.step({name: g.copy() for name, g in make(two).items()})
            assert_same(one, two)
        for each in (opt, plain):
            each.step(gradients(0, shapes={"a": (64,), "b": (64,)}))
        assert_same(one, two)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("warm", [False, True])
def test_gradients_that_share_memory_are_all_read_before_they_are_zeroed(engine, warm):
    one, two = (weights(shapes={"a": (64,), "b": (64,), "c": (64,)}) for _ in range(2))
    opt, plain = Adam(one, engine=engine), Adam(two, engine=engine)
    shapes = dict.fromkeys(one, (64,))
    for seed in range(3 if warm else 0):
        for each in (opt, plain):
            each.step(gradients(seed, shapes=shapes), zero_grad=True)
    for shift in (0, 16, 63, 64):
        buffer = np.random.default_rng(shift).normal(size=200).astype("float32")
        grads = {"a": buffer[:64], "b": buffer[shift : shift + 64], "c": np.ones(64, np.float32)}
        plain.step({name: g.copy() for name, g in grads.items()})
        opt.step(grads, zero_grad=True)
        assert_same(one, two)
        assert not any(g.any() for g in grads.values())
        assert buffer[shift + 64 :].all()
        assert opt._run.gradients.sharing == ({0, 1} if shift < 64 else set())


@pytest.mark.parametrize("kind", ["one array", "columns", "shifted", "the weights", "one weight"])
def test_many_gradients_in_each_others_memory_are_right_and_not_all_compared(kind, monkeypatch):
    tried = []
    exact = arrays.overlap
    monkeypatch.setattr(arrays, "overlap", lambda a, b: tried.append(1) or exact(a, b))
    n = 300
    one, two = ({str(i): np.full(200, i, np.float32) for i in range(n)} for _ in range(2))
    opt, plain = Adam(one), Adam(two)
    matrix, flat = np.empty((200, n), np.float32), np.empty(n + 199, np.float32)
    for _ in range(2):
        matrix[...] = np.random.default_rng(0).normal(size=matrix.shape)
        flat[...] = np.random.default_rng(1).normal(size=flat.shape)
        makers = {
            "one array": lambda i: flat[:200],
            "columns": lambda i: matrix[:, i],
            "shifted": lambda i: flat[i : i + 200],
            "the weights": lambda i: one[str((i + 1) % n)],
            "one weight": lambda i: one["7"],
        }
        grads = {str(i): makers[kind](i) for i in range(n)}
        plain.step({name: g.copy() for name, g in grads.items()})
        opt.step(grads, zero_grad=kind in ("columns", "shifted"))
        assert_same(one, two)
    assert not (matrix if kind == "columns" else flat if kind == "shifted" else np.zeros(1)).any()
    assert len(tried) <= 2 * (overlaps.PAIRS * 2 * n + 1)  # in each of two steps, of n weights and n gradients


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_that_can_not_be_zeroed_is_an_error_before_anything_is_written(engine):
    w, g = weights(), gradients(0)
    opt = Adam(w, engine=engine)
    g["b"].flags.writeable = False
    for warm in range(3):
        before = {name: x.copy() for name, x in w.items()}
        with pytest.raises(ValueError, match="gradient of 'b' is read-only and can't be zeroed"):
            opt.step(g, zero_grad=True)
        assert_same(w, before)
        assert opt.count == warm
        opt.step(g)
    g["b"] = g["b"].copy()
    g["c"] = np.float32(2.0)  # what a sum gives for a weight of shape ()
    opt.step(g)
    with pytest.raises(ValueError, match="gradient of 'c' is read-only"):
        opt.step(g, zero_grad=True)


def test_a_scalar_is_the_gradient_of_a_weight_without_axes():
    for engine in ENGINES:
        one, two = (weights(shapes={"a": (), "b": ()}) for _ in range(2))
        opt, plain = Adam(one, engine=engine), Adam(two, engine=engine)
        for seed in range(4):
            grads = gradients(seed, shapes={"a": (), "b": ()})
            opt.step({name: g[()] for name, g in grads.items()})
            plain.step(grads)
        assert_same(one, two)


# ---- the compiled look


def test_compiled_looks_are_used_and_agree_with_pythons():
    looks = pytest.importorskip("optimkit.engines.cpu.fingerprints", reason="numba is not installed")
    assert looks.works()
    rng = np.random.default_rng(0)
    kinds = itertools.product(LAYOUTS.values(), ((3, 2), (2, 3), (6,), (), (0, 2)), ("float32", "float64", "int32", ">f4"))
    pool = [make(np.asarray(rng.normal(size=shape), dtype)) for make, shape, dtype in kinds]
    pool += [np.float32(1), np.ones(3, np.float32)[1:], None, None, None, "no", 3.0, [1.0], np.zeros((3, 2), np.float32)]
    opt = Adam({str(i): np.ones(1, np.float32) for i in range(len(pool))})
    plain, compiled = (Fingerprints(ByteRanges(opt._run.entries)) for _ in range(2))
    compiled.compile(looks.CompiledFingerprints)
    fit = [x for x in pool if x is None or getattr(x, "dtype", None) in (np.float32, np.float64)]  # what a check lets through
    for _ in range(20):
        before = [fit[i] for i in rng.integers(len(fit), size=len(pool))]
        after = [x if rng.random() < 0.5 else pool[rng.integers(len(pool))] for x in before]
        found = []
        for each in (plain, compiled):
            for place, x in enumerate(before):
                each.keep(place, x, x.__array_interface__["data"][0] if isinstance(x, np.ndarray) else 0)
            each.settle()
            others = each.compare(after)
            rest = [place for place in range(len(pool)) if place not in others]
            found.append((others, each.now[rest].tolist(), each.moved))
        assert found[0] == found[1]


def test_compiled_spans_meet_where_intervals_do():
    looks = pytest.importorskip("optimkit.engines.cpu.fingerprints", reason="numba is not installed")
    rng = np.random.default_rng(0)
    seen = set()
    for n in (1, 2, 3, 10, 40):
        opt = Adam({str(i): np.ones(1, np.float32) for i in range(n)})
        for _ in range(60):
            spans = ByteRanges(opt._run.entries)
            each = Fingerprints(spans)
            each.compile(looks.CompiledFingerprints)
            starts = rng.permutation(20 * n)[: 2 * n] * 8
            spans.weights[:, 0] = starts[:n] + (1 << 46)
            spans.weights[:, 1] = spans.weights[:, 0] + rng.integers(0, 18, n)
            grads = [np.ones(1, np.float32) for _ in range(n)]
            spans.gradients[:, 1] = rng.integers(0, 18, n)
            for place, g in enumerate(grads):
                each.keep(place, g)
                spans.gradients[place] += starts[n + place] + (1 << 46) - g.ctypes.data
            assert each.compare(grads) == []
            ranges = [*spans.weights.tolist(), *(spans.gradients + each.now[:, None]).tolist()]
            ranges = [(low, high) for low, high in ranges if low < high]
            meet = any(a[0] < b[1] and b[0] < a[1] for i, a in enumerate(ranges) for b in ranges[:i])
            assert each.meet(True) == each.meet(False) == meet
            seen.add(meet)
    assert seen == {True, False}


def test_without_numba_a_step_is_the_same(monkeypatch):
    monkeypatch.setattr("optimkit.driver.steps.build.compiled_comparison", lambda pairs: None)
    one, two = weights(), weights()
    opt = Adam(one)
    for seed in range(3):
        opt.step(gradients(seed))
    assert opt._run.gradients.fingerprints.compiled is None
    monkeypatch.undo()
    plain = Adam(two)
    for seed in range(3):
        plain.step(gradients(seed))
    assert plain._run.gradients.fingerprints.compiled is not None
    assert_same(one, two)
    assert optimkit.counters.gradients_checked > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_that_is_replaced_by_one_over_a_gradient_is_seen(engine):
    """The other parameter's gradient looks as before and lies where it lay; the new weight is written over it."""
    memory = np.zeros(24)
    g = memory[8:16]
    params = {"a": np.zeros(8), "b": np.zeros(8)}
    opt = optimkit.SGD(params, lr=1.0, engine=engine)
    for _ in range(2):
        g[...] = np.arange(8)
        opt.step({"a": np.ones(8), "b": g})
    before = params["b"].copy()
    params["a"] = memory[4:12]
    params["a"][...] = 3.0
    expected = before - g
    opt.step({"a": np.ones(8), "b": g})
    assert opt._run.gradients.sharing == {1}
    np.testing.assert_array_equal(params["b"], expected)
    np.testing.assert_array_equal(params["a"], 2.0)


def test_gradients_that_once_were_there_are_remembered_over_a_change_of_structure():
    """A step without any gradient is a step of nobody; only where there never was one, something was forgotten."""
    p = Param(np.zeros(2), np.ones(2), name="p")
    opt = optimkit.SGD([p], lr=1.0)
    opt.step()
    p.grad = None
    opt.add({"q": np.zeros(3)})
    assert not opt.step().applied
    opt.set(where="q", lr=0.5)
    assert not opt.step().applied
    with pytest.raises(TypeError, match=r"step\(\) found no gradients"):
        optimkit.SGD([Param(np.zeros(2))], lr=1.0).step()
