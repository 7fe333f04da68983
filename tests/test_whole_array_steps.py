"""Hooks that get whole arrays stand inside of the transaction: whatever happens in one, nothing is half written."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from whole_rules import ENGINES, Keeps, Recalls, Whole, whole

import optimkit
from optimkit import SGD, Adam
from optimkit.transforms import ClipByGlobalNorm, ClipByValue


@pytest.mark.parametrize("engine", ENGINES)
def test_slots_are_written_with_the_rest(engine):
    w, fail = np.zeros(2), []

    def f(w, g, s, h, xp):
        if fail:
            raise fail[0]
        return g

    opt = SGD({"w": w}, lr=1.0, momentum=0.5, transforms=[Recalls(), whole(f)], nonfinite="skip", engine=engine)
    opt.step({"w": np.ones(2)})
    opt.step({"w": np.ones(2)})
    kept = {name: x.copy() for name, x in opt.state["w"].items()} | {"w": w.copy()}
    assert w.tolist() == [-3.5, -3.5]
    assert kept["Recalls.last"].tolist() == [1.5, 1.5]
    fail.append(ZeroDivisionError("in f"))
    with pytest.raises(ZeroDivisionError, match="in f"):
        opt.step({"w": np.ones(2)})
    fail.clear()
    assert not opt.step({"w": np.array([np.nan, 1.0])}).applied
    for name, x in kept.items():
        np.testing.assert_array_equal(w if name == "w" else opt.state["w"][name], x)
    assert opt.state["w"].t == 2
    opt.step({"w": np.ones(2)})
    assert w.tolist() == [-3.5 - 1.75 - 1.5] * 2


def test_an_interrupt_stops_a_hook_and_the_next_step_goes_on():
    """Nothing is written by then; what comes before and after waits, as in any step."""
    seen = []

    def f(w, g, s, h, xp):
        seen.append("begun")
        if len(seen) == 1:
            signal.raise_signal(signal.SIGINT)
        seen.append("ended")
        return g

    w = np.zeros(2)
    opt = SGD({"w": w}, lr=1.0, transforms=[ClipByGlobalNorm(10.0), whole(f)])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        opt.step({"w": np.ones(2)})
    assert seen == ["begun"]
    assert (w.tolist(), opt.state["w"].t, opt.count) == ([0, 0], 0, 0)
    assert signal.getsignal(signal.SIGINT) is before
    opt.step({"w": np.ones(2)})
    assert (w.tolist(), opt.state["w"].t, opt.count) == ([-1, -1], 1, 1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("links", [[], [ClipByGlobalNorm(1.0)], [ClipByValue(1.0)]], ids=["alone", "norm", "value"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_hook_is_called_in_a_step_that_is_left_out(engine, links, dtype):
    """An SVD of NaN raises, or does not return; with `nonfinite="allow"` a hook sees them."""
    calls = []

    def f(w, g, s, h, xp):
        calls.append(g)
        return g

    params = {"a": np.zeros((2, 2), dtype), "b": np.zeros(3, "float64")}
    grads = {"a": np.full((2, 2), np.nan, dtype), "b": np.ones(3)}
    for nonfinite in ("skip", "raise", "allow"):
        opt = Adam(params, nonfinite=nonfinite, transforms=[*links, whole(f), Recalls()], engine=engine)
        calls.clear()
        if nonfinite == "raise":
            with pytest.raises(optimkit.NonFiniteGradientError, match="the gradient of 'a' has NaN or Inf"):
                opt.step(grads)
        else:
            result = opt.step(grads, zero_grad=True)
            assert result.applied == (nonfinite == "allow")
            assert (grads["b"] == 0).all()
            grads = {"a": np.full((2, 2), np.nan, dtype), "b": np.ones(3)}
        assert len(calls) == (2 if nonfinite == "allow" else 0)
        if nonfinite != "allow":
            assert not params["a"].any()


@pytest.mark.parametrize("change", ["set", "add", "remove", "replace", "reset", "freeze", "load"])
def test_a_hook_can_not_change_what_is_stepped(change):
    w = np.zeros(2)

    def f(w_, g, s, h, xp):
        saved = opt.state_dict()
        {
            "set": lambda: opt.set(where="b", lr=0.5),
            "add": lambda: opt.add({"c": np.zeros(2)}),
            "remove": lambda: opt.remove("b"),
            "replace": lambda: opt.replace("w", np.zeros(2)),
            "reset": lambda: opt.reset(),
            "freeze": lambda: opt.freeze("b"),
            "load": lambda: opt.load_state_dict(saved),
        }[change]()
        return g

    opt = SGD({"w": w, "b": np.zeros(2)}, lr=1.0, transforms=[Whole(f=f, where="w")])
    with pytest.raises(RuntimeError, match=r"SGD\.\w+\(\) was called in its own step, by a schedule, a hook or a signal"):
        opt.step({"w": np.ones(2), "b": np.ones(2)})
    assert (w.tolist(), opt.state["w"].t, opt.count) == ([0, 0], 0, 0)


def test_what_a_hook_does_to_its_arrays_stays_there():
    """torch has no arrays that can't be written: a hook gets copies. In the functional form NumPy's are protected too."""
    rule = SGD(lr=1.0, transforms=[whole(lambda w, g, s, h, xp: np.add(w, 1, out=w))])
    params = {"w": np.zeros(2)}
    with pytest.raises(ValueError, match="read-only"):
        rule.apply(params, {"w": np.ones(2)}, rule.init(params))
    kept = SGD(lr=0.0, transforms=[Keeps()])
    new, _ = kept.apply(params, {"w": np.ones(2)}, kept.init(params))
    assert not np.shares_memory(new["w"], params["w"])
    torch = pytest.importorskip("torch", reason="torch is not installed")
    w, g = torch.ones(2), torch.ones(2)
    SGD([w], lr=1.0, transforms=[whole(lambda w, g, s, h, xp: g.mul_(2).add_(w.zero_()))]).step([g])
    assert (w.tolist(), g.tolist()) == ([-1, -1], [1, 1])
