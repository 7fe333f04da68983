"""The functional form: new values instead of writing, the same numbers as in place, in JAX and inside its jit."""

from __future__ import annotations

import numpy as np
import pytest
from optimizers import CASES, make

import optimkit
from optimkit import schedules
from optimkit.testing import BACKENDS, TOLERANCES
from optimkit.testing.compare import difference
from optimkit.transforms import ClipByGlobalNorm, WeightDecay

SHAPES = {"a strided one": (3, 2), "b": (5,), "c": ()}


def draw(rng, dtype="float32"):
    return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def jax():
    reason = BACKENDS["jax-functional"].available()
    if reason:
        pytest.skip(reason)
    import jax

    return jax


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_numpy_arrays_get_the_bits_of_the_step_in_place(name, dtype):
    rng = np.random.default_rng(0)
    params = draw(rng, dtype)
    ours = {key: w.copy() for key, w in params.items()}
    opt, rule = make(name, params, engine="eager"), make(name)
    state = rule.init(ours)
    for t in range(3):
        grads = draw(rng, dtype)
        if t == 1:
            grads["b"] = None
        opt.step(grads)
        kept = {key: w.copy() for key, w in ours.items()}
        new, new_state = rule.apply(ours, grads, state)
        assert all(np.array_equal(ours[key], kept[key]) for key in ours)  # nothing was written
        assert state["count"] == t
        ours, state = new, new_state
        for key, w in params.items():
            assert not difference(ours[key], w), (key, t, difference(ours[key], w))
            assert state["t"][key] == opt.state[key].t
            for slot, value in opt.state[key].items():
                assert not difference(np.asarray(state["slots"][key][slot]), value), (key, slot, t)
    assert {key: float(x) for key, x in state["shared"].items()} == {key: float(x) for key, x in opt.state.shared.items()}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", ["adamw", "clip by global norm", "rmsprop centered momentum", "distance"])
def test_inside_of_a_jit_the_numbers_are_the_same_within_tolerance(name, wide):
    """One compiled function for all steps: the count is an argument of it, not a constant."""
    library = jax()
    dtype = "float64" if wide else "float32"
    rng = np.random.default_rng(1)
    params = draw(rng, dtype)
    rule, traced = make(name), []

    def step(params, grads, state):
        traced.append(1)
        return rule.apply(params, grads, state)

    with library.enable_x64(wide):
        ours = {key: library.numpy.asarray(w) for key, w in params.items()}
        state = rule.init(ours)
        opt = make(name, params, engine="eager")
        jitted = library.jit(step)
        for _ in range(4):
            grads = draw(rng, dtype)
            opt.step(grads)
            ours, state = jitted(ours, {key: library.numpy.asarray(g) for key, g in grads.items()}, state)
            for key, w in params.items():
                found = difference(np.asarray(ours[key]), w, TOLERANCES[dtype], scale=1.0)
                assert not found, (key, found)
    assert len(traced) <= 2  # the first state has Python counts, later ones arrays
    assert int(state["t"]["b"]) == int(state["count"]) == 4


def test_the_gradient_of_a_jitted_loss_trains_a_model():
    library = jax()
    jnp = library.numpy
    rng = np.random.default_rng(2)
    x, true = rng.normal(size=(64, 3)).astype(np.float32), np.array([1.0, -2.0, 0.5], np.float32)
    rule = optimkit.Adam(lr=0.1)

    @library.jit
    def step(params, state):
        loss, grads = library.value_and_grad(lambda p: jnp.mean((x @ p["w"] + p["b"] - x @ true) ** 2))(params)
        return *rule.apply(params, grads, state), loss

    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    state = rule.init(params)
    for _ in range(200):
        params, state, loss = step(params, state)
    assert float(loss) < 1e-4


def test_jax_arrays_in_place_are_refused_with_the_way_out():  # fault 10
    library = jax()
    with pytest.raises(TypeError, match=r"immutable; use the functional form: state = rule\.init\(params\)"):
        optimkit.Adam(library.numpy.zeros(3))


def test_containers_come_back_in_their_shape():
    rule = optimkit.SGD(lr=1.0)
    params = {"layers": [(np.ones(2), np.ones(3)), {"w": np.ones(())}], "head": np.ones(1)}
    grads = {"layers": [(np.ones(2), None), {"w": np.ones(())}], "head": np.ones(1)}
    new, state = rule.apply(params, grads, rule.init(params))
    assert isinstance(new["layers"], list)
    assert isinstance(new["layers"][0], tuple)
    assert new["layers"][0][0].tolist() == [0, 0]
    assert new["layers"][0][1] is params["layers"][0][1]
    assert new["layers"][1]["w"].shape == ()
    assert state["t"] == {"layers.0.0": 1, "layers.0.1": 0, "layers.1.w": 1, "head": 1}
    bare, _ = rule.apply(np.ones(2), np.ones(2), rule.init(np.ones(2)))
    assert bare.tolist() == [0, 0]


def test_schedules_count_applied_states_and_where_selects():
    rule = optimkit.SGD(lr=schedules.exponential(1.0, 0.5), transforms=[WeightDecay(0.5, where="*.w")])
    params = {"x": {"w": np.ones(1), "b": np.ones(1)}}
    grads = {"x": {"w": np.zeros(1), "b": np.ones(1)}}
    state = rule.init(params)
    for _ in range(2):
        params, state = rule.apply(params, grads, state)
    assert params["x"]["b"].tolist() == [1 - 1 - 0.5]
    assert params["x"]["w"].tolist() == [0.5 * 0.75]


def test_a_scheduler_multiplies_the_rate():
    rule = optimkit.SGD(lr=1.0)
    scheduler = optimkit.lr_scheduler.ExponentialLR(rule, 0.5)
    scheduler.step()
    new, _ = rule.apply(np.ones(1), np.ones(1), rule.init(np.ones(1)))
    assert new.tolist() == [0.5]


def test_totals_are_over_the_parameters_that_have_a_gradient():
    rule = optimkit.SGD(lr=1.0, transforms=[ClipByGlobalNorm(4.0)])
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    state = rule.init(params)
    new, state = rule.apply(params, {"a": np.array([6.0]), "b": np.array([8.0])}, state)
    assert (new["a"][0], new["b"][0]) == (-6 * 0.4, -8 * 0.4)
    new, state = rule.apply(params, {"b": np.array([4.0])}, state)
    assert (new["a"][0], new["b"][0]) == (0.0, -4.0)


BAD = {
    "shape": (lambda rule, p, s: rule.apply(p, {"a": np.ones((2, 1))}, s), ValueError, r"gradient of 'a' has shape \(2, 1\)"),
    "dtype": (lambda rule, p, s: rule.apply(p, {"a": np.ones(2, int)}, s), TypeError, "gradient of 'a' is int64"),
    "unknown": (lambda rule, p, s: rule.apply(p, {"z": np.ones(2)}, s), KeyError, "'z'"),
    "weight": (lambda rule, p, s: rule.init({"a": np.ones(2, int)}), TypeError, "parameter 'a' is int64"),
    "state": (lambda rule, p, s: rule.apply({"other": np.ones(2)}, {}, s), ValueError, r"no 'other' .* rule\.init\(params\)"),
    "no array": (lambda rule, p, s: rule.init({"a": optimkit.Param(np.ones(2))}), TypeError, "functional form takes arrays"),
    "groups": (lambda rule, p, s: rule.init([{"params": p}]), TypeError, "no groups"),
    "policy": (lambda rule, p, s: optimkit.SGD(lr=1.0, nonfinite="skip").init(p), ValueError, "nonfinite = .skip. is not"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(what):
    call, kind, message = BAD[what]
    rule, params = optimkit.SGD(lr=1.0), {"a": np.ones(2)}
    with pytest.raises(kind, match=message):
        call(rule, params, rule.init(params))
