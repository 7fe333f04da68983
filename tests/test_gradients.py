"""Gradients of a step: each is looked at, replaced ones too, and those in nested containers find their parameters (faults 12 to
15, 24, with `test_gradient_lifetimes` and `test_shared_memory`)."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from gradient_cases import ENGINES, LAYOUTS, assert_same, gradients, weights

import optimkit
from optimkit import SGD, Adam, AdamW, Param
from optimkit.driver.gradients.byte_ranges import ByteRanges
from optimkit.driver.gradients.fingerprints import Fingerprints
from optimkit.transforms import ClipByGlobalNorm

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

    def interrupt(*args):
        raise KeyboardInterrupt

    for method in ("arrays_changed", "prepare", *(["gradients_moved", "presence_changed"] if engine == "llvm" else [])):
        bucket = opt._run.steps.buckets[0]
        with monkeypatch.context() as patch:
            patch.setattr(bucket.runner, method, interrupt)
            others = {name: np.array(g, order="F") for name, g in gradients(2).items()}
            if method == "presence_changed":  # and one that is new, so that the step is not warm
                others.pop("b")
            with pytest.raises(KeyboardInterrupt):
                opt.step(others)
        assert_same(one, two)
        grads = gradients(3)
        opt.step(grads)
        plain.step(grads)
        assert_same(one, two)
        for each in (bucket, *opt._run.steps.buckets):
            assert [member.gradient for member in each.members if member.gradient is not None] == []


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
    with pytest.warns(RuntimeWarning, match="the schedule .* of lr was replaced by a number"):
        opt.lr = 0.1  # which calls no schedule
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


def test_a_scalar_is_the_gradient_of_a_weight_without_axes():
    for engine in ENGINES:
        one, two = (weights(shapes={"a": (), "b": ()}) for _ in range(2))
        opt, plain = Adam(one, engine=engine), Adam(two, engine=engine)
        for seed in range(4):
            grads = gradients(seed, shapes={"a": (), "b": ()})
            opt.step({name: g[()] for name, g in grads.items()})
            plain.step(grads)
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


# ---- the compiled look


def test_compiled_looks_are_used_and_agree_with_pythons():
    looks = pytest.importorskip("optimkit.engines.cpu.step", reason="llvmlite is not installed")
    assert looks.works()
    rng = np.random.default_rng(0)
    kinds = itertools.product(LAYOUTS.values(), ((3, 2), (2, 3), (6,), (), (0, 2)), ("float32", "float64", "int32", ">f4"))
    pool = [make(np.asarray(rng.normal(size=shape), dtype)) for make, shape, dtype in kinds]
    pool += [np.float32(1), np.ones(3, np.float32)[1:], None, None, None, "no", 3.0, [1.0], np.zeros((3, 2), np.float32)]
    opt = Adam({str(i): np.ones(1, np.float32) for i in range(len(pool))})
    plain, compiled = (Fingerprints(ByteRanges(opt._run.entries)) for _ in range(2))
    compiled.compile(looks.CompiledStep)
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


def test_without_compiled_steps_a_step_is_the_same(monkeypatch):
    monkeypatch.setattr("optimkit.driver.steps.build.compiled_step", lambda pairs: None)
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


def test_torch_tensors_that_are_not_aligned_are_refused():
    """Also where one like it was aligned in the step before, and only the address is another one."""
    torch = pytest.importorskip("torch")

    def tensor(offset):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.from_numpy(np.full(64, 63, np.uint8)[offset : offset + 16].view(np.float32))

    w = torch.zeros(4)
    opt = SGD({"w": w}, lr=1.0)
    for offset in (0, 4, 8):
        opt.step({"w": tensor(offset)})
    before = w.clone()
    with pytest.raises(ValueError, match=r"gradient of 'w' is not aligned.* 1 bytes after .*x\.clone\(\)"):
        opt.step({"w": tensor(1)})
    assert torch.equal(w, before)
    with pytest.raises(ValueError, match=r"'w' is not aligned"):
        SGD({"w": tensor(2)}, lr=1.0)
