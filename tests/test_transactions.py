"""A step is a transaction: with `nonfinite="raise"` or `"skip"` a bad gradient spoils nothing (faults 16, 17)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from optimizers import make

import optimkit
from optimkit import NonFiniteGradientError
from optimkit.transforms import ClipByGlobalNorm

ENGINES = ["llvm", "eager"]
BAD = [np.nan, np.inf, -np.inf]


def fresh(name, policy, engine, dtype="float32"):
    rng = np.random.default_rng(0)
    params = {key: rng.normal(size=shape).astype(dtype) for key, shape in {"a": (3, 2), "b": (5,), "c": ()}.items()}
    opt = make(name, params, nonfinite=policy, engine=engine)
    opt.step({key: np.asarray(rng.normal(size=w.shape), dtype) for key, w in params.items()})
    return params, opt


def look(params, opt):
    """Everything that a step may write, copied."""
    return copy.deepcopy(({key: w.copy() for key, w in params.items()}, opt.state_dict()["state"], opt.state_dict()["shared"]))


def flat(x):
    if isinstance(x, dict):
        return {key: flat(value) for key, value in x.items()}
    return x.tobytes() if isinstance(x, np.ndarray) else x


def same(one, two):
    return [flat(x) for x in one] == [flat(x) for x in two]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("name", ["sgd", "adam", "a tail", "trust", "distance"])
def test_a_bad_gradient_leaves_everything_untouched(name, policy, engine):
    params, opt = fresh(name, policy, engine)
    before = look(params, opt)
    grads = {key: np.full_like(w, 0.5) for key, w in params.items()}
    grads["b"][3] = np.inf
    if policy == "raise":
        with pytest.raises(NonFiniteGradientError, match=r"gradient of 'b' has NaN or Inf; nothing was written"):
            opt.step(grads)
    else:
        result = opt.step(grads)
        assert not result.applied
        assert not np.isfinite(result.grad_norm)
    assert same(before, look(params, opt))
    assert np.isinf(grads["b"][3])
    grads["b"][3] = 0.5
    assert opt.step(grads).applied
    assert not same(before, look(params, opt))
    assert [opt.state[key].t for key in params] == [2, 2, 2]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_skipped_step_is_as_if_it_had_not_been(engine, bad, dtype):
    """The run with a skipped step in it ends with the bits of the run without."""
    runs = []
    for bads in ([], [1], [1, 2]):
        params, opt = fresh("a tail", "skip", engine, dtype)
        rng = np.random.default_rng(5)
        for t in range(4):
            if t in bads:
                opt.step({"a": np.full((3, 2), bad, dtype), "c": np.zeros((), dtype)})
            opt.step({key: np.asarray(rng.normal(size=w.shape), dtype) for key, w in params.items()})
        runs.append(look(params, opt))
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


@pytest.mark.parametrize("engine", ENGINES)
def test_finite_gradients_whose_squares_overflow_are_applied(engine):  # fault 19
    w = np.zeros(2)
    opt = optimkit.SGD(w, lr=1.0, nonfinite="raise", engine=engine)
    assert opt.step(np.full(2, 1e200)).applied
    assert w.tolist() == [-1e200] * 2


@pytest.mark.parametrize("engine", ENGINES)
def test_the_policy_allow_lets_nan_through_and_one_parameter_does_not_poison_others(engine):
    params = {"a": np.ones(2), "b": np.ones(2)}
    opt = optimkit.SGD(params, lr=1.0, transforms=[ClipByGlobalNorm(1.0)], engine=engine)
    result = opt.step({"a": np.array([np.nan, 0.5]), "b": np.array([0.5, 0.25])})
    assert result.applied
    assert np.isnan(result.grad_norm)
    assert params["b"].tolist() == [0.5, 0.75]
    assert np.isnan(params["a"][0])
    assert params["a"][1] == 0.5


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_zeroed_after_a_skipped_step_too(engine):
    w = np.ones(3)
    opt = optimkit.Adam(w, nonfinite="skip", engine=engine)
    g = np.array([np.inf, 1.0, 2.0])
    assert not opt.step(g, zero_grad=True).applied
    assert g.tolist() == [0, 0, 0]
    assert w.tolist() == [1, 1, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_gradient_among_good_ones_is_found_before_anything_is_written(engine):
    """A wrong shape in the last of the gradients: the first parameters are not updated either."""
    params = {"a": np.ones(3), "b": np.ones(3)}
    opt = optimkit.Adam(params, engine=engine)
    opt.step({"a": np.ones(3), "b": np.ones(3)})
    before = look(params, opt)
    with pytest.raises(ValueError, match="gradient of 'b' has shape"):
        opt.step({"a": np.ones(3), "b": np.ones((3, 1))})
    assert same(before, look(params, opt))


def test_no_gradients_at_all_is_a_step_that_does_nothing():  # fault 21
    w = np.ones(2)
    opt = optimkit.Adam({"w": w}, nonfinite="raise", engine="eager")
    result = opt.step({})
    assert (result.applied, result.grad_norm) == (False, None)
    assert w.tolist() == [1, 1]
    assert opt.state["w"].t == 0


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match=r"Adam: nonfinite = 'ignore' must be one of 'allow', 'raise', 'skip'"):
        optimkit.Adam(np.ones(2), nonfinite="ignore")
