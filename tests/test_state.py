"""State: live views, copies by name, and what does not fit (faults 30 to 32)."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import optimkit
from optimkit import SGD, Adam, Optimizer, Scalar, norm, total, transforms, zeros
from optimkit.driver.run import Run

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")


def ones(*shape):
    return np.ones(shape, np.float32)


class Drift(Optimizer):
    """State of every extent: an element's, a parameter's, the optimizer's."""

    lr: Scalar = 0.1

    def slots(self):
        return {"m": zeros, "n": zeros.per("parameter"), "d": zeros.per("optimizer")}

    def update(self, w, g, s, h, xp):
        m, n, d = 0.5 * s.m + g, 0.5 * s.n + norm(g), 0.5 * s.d + total(g)
        return h.lr * m / (1 + n + d * d), {"m": m, "n": n, "d": d}


# ---- live views


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("library", ["numpy", pytest.param("torch", marks=needs_torch)])
def test_views_of_the_state_are_live(library, layout):
    w = {"C": ones(2, 3), "F": np.asfortranarray(ones(2, 3)), "strided": ones(4, 3)[::2]}[layout]
    g = np.arange(6, dtype=np.float32).reshape(2, 3)
    if library == "torch":
        w, g = torch.from_numpy(w), torch.from_numpy(g)
    opt = SGD({"w": w}, lr=1.0, momentum=0.5)
    view = opt.state["w"]
    slot = view["b"]
    assert (view.t, slot.shape, type(slot)) == (0, (2, 3), type(w))
    opt.step({"w": g})
    assert view.t == 1
    assert slot.tolist() == g.tolist(), "the view that was taken before the step shows what the step wrote"
    slot[...] = 0
    slot[1, 2] = 8
    opt.step({"w": 0 * g})
    assert w.tolist() == [[1, 0, -1], [-2, -3, -8]], "the step reads what was written through the view"


def test_views_of_the_state_name_what_there_is():
    opt = Drift({"w": ones(2), "v": ones(3)})
    assert (list(opt.state), list(opt.state["w"]), len(opt.state)) == (["w", "v"], ["m", "n"], 2)
    opt.step({"w": ones(2)})
    assert opt.state.shared["d"] == 2.0
    assert opt.state["w"]["n"] == pytest.approx(np.sqrt(2))
    with pytest.raises(KeyError, match=r"there is no slot 'x'; there are m, n"):
        _ = opt.state["w"]["x"]
    with pytest.raises(KeyError, match=r"there is no parameter 'x'; there are w, v"):
        _ = opt.state["x"]
    assert repr(opt.state["w"]) == "<state of 'w': t=1, slots m, n>"


# ---- rows 30 to 32


def test_row_30_state_dicts_are_copies_both_ways():
    params = {"w": ones(3), "s": np.array(1.0)}
    opt = Adam(params, lr=0.1)
    grads = {"w": ones(3), "s": np.array(1.0)}
    opt.step(grads)
    saved = opt.state_dict()
    before = copy.deepcopy(saved)
    opt.step(grads)
    opt.lr = 0.5
    np.testing.assert_equal(saved, before)
    fresh = Adam(copy.deepcopy(params), lr=0.1)
    fresh.load_state_dict(saved)
    live = fresh.state["w"]["m"].copy()
    saved["state"]["w"]["slots"]["m"][...] = 99
    saved["groups"][0]["numbers"]["betas"][0] = 0.5
    np.testing.assert_array_equal(fresh.state["w"]["m"], live)
    assert fresh.betas == (0.9, 0.999)


def test_row_31_the_dtype_is_kept_and_never_cast():
    wide, narrow = Adam({"w": np.ones(3)}), Adam({"w": ones(3)})
    wide.step({"w": np.ones(3)})
    narrow.step({"w": ones(3)})
    assert wide.state_dict()["state"]["w"]["slots"]["m"].dtype == np.float64
    for target, source, message in [
        (narrow, wide, r"'w': slot 'm' is float64, here float32; nothing is cast silently"),
        (wide, narrow, r"'w': slot 'v' is float32, here float64"),
    ]:
        before = target.state["w"]["m"].copy()
        with pytest.raises(ValueError, match=message):
            target.load_state_dict(source.state_dict())
        np.testing.assert_array_equal(target.state["w"]["m"], before)


@needs_torch
def test_row_31_state_of_tensors_stays_with_its_tensor():
    tensor = torch.ones(2, 3)
    opt = Adam({"w": tensor}, lr=0.1)
    opt.step({"w": torch.ones(2, 3)})
    saved = opt.state_dict()
    assert isinstance(saved["state"]["w"]["slots"]["m"], torch.Tensor)
    w = ones(2, 3)
    other = Adam({"w": w}, lr=0.1)
    other.load_state_dict(saved)
    assert isinstance(other.state["w"]["m"], np.ndarray)
    other.step({"w": ones(2, 3)})
    assert other.state["w"].t == 2


def small(**kwargs):
    opt = Adam({"a": ones(2), "b": ones(3)}, lr=0.1, **kwargs)
    opt.step({"a": ones(2), "b": ones(3)})
    return opt


def test_row_32_one_error_lists_every_difference_and_changes_nothing():
    saved = small().state_dict()
    params = {"a": ones(4), "c": ones(1)}
    opt = Adam(params, lr=0.5, amsgrad=True, transforms=[transforms.ClipByValue(1.0)])
    opt.step({"a": ones(4), "c": ones(1)})
    before = pickle.dumps(opt.state_dict())
    with pytest.raises(ValueError, match=r"does not fit this Adam; nothing was changed:") as caught:
        opt.load_state_dict(saved)
    lines = str(caught.value).split("\n")[1:]
    assert lines == [
        "  - parameter 'c' is missing in it",
        "  - parameter 'b' is unknown here",
        "  - 'a': slot 'v_max' is missing in it",
        "  - 'a': slot 'm' has shape (2,), here (4,)",
        "  - 'a': slot 'v' has shape (2,), here (4,)",
        "  - Adam: it was saved with amsgrad = False, here amsgrad = True",
        "  - it has the links [], here are ['ClipByValue']",
    ]
    assert pickle.dumps(opt.state_dict()) == before
    with pytest.raises(ValueError, match=r"- it was saved by Adam\n.*'a': slot 'b' is missing|- it was saved by Adam"):
        SGD({"a": ones(2), "b": ones(3)}, lr=0.1).load_state_dict(saved)


def set_at(saved, path, value):
    for key in path[:-1]:
        saved = saved[key]
    saved[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 9, "its format is 9, this version reads 1"),
        (["count"], -1, "its count is -1, not a whole number from 0"),
        (["count"], "3", "its 'count' is a str, not a int"),
        (["groups"], {}, "its 'groups' is a dict, not a list"),
        (["groups", 0], 3, "its 'groups' are no list of dicts with params, numbers, structure"),
        (["groups", 0, "params"], ["a"], r"its groups hold \['a'\], its state \['a', 'b'\]"),
        (["groups", 0, "numbers", "lr"], float("nan"), "Adam: lr = nan must be a number"),
        (["groups", 0, "numbers", "rate"], 0.1, "Adam has no number 'rate'"),
        (["groups", 0, "structure", "amsgrad"], True, "it was saved with amsgrad = True, here amsgrad = False"),
        (["state", "a"], [], "the state of 'a' has no t, frozen and slots"),
        (["state", "a", "t"], -3, "the state of 'a' has t = -3"),
        (["state", "a", "t"], 1.5, "the state of 'a' has t = 1.5"),
        (["state", "a", "slots", "m"], [1.0, 2.0], "'a': slot 'm' is a list, not an array"),
        (["state", "a", "slots", "x"], ones(2), "'a': slot 'x' is unknown here"),
        (["shared"], {"d": 1.0}, r"its shared slots are \['d'\], here are \[\]"),
    ],
)
def test_row_32_damaged_state_dicts(path, value, message):
    opt = small()
    saved = opt.state_dict()
    set_at(saved, path, value)
    before = pickle.dumps(opt.state_dict())
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(saved)
    assert pickle.dumps(opt.state_dict()) == before


def test_row_32_what_is_no_state_dict():
    for saved, message in [(None, "it is a NoneType"), ([], "it is a list"), ({}, "it lacks 'format'"), (3, "it is a int")]:
        with pytest.raises(ValueError, match=message):
            small().load_state_dict(saved)


def test_groups_that_were_split_are_split_again():
    first = small()
    first.set(where="b", lr=0.5)
    first.freeze("a")
    second = small()
    second.load_state_dict(first.state_dict())
    assert second.lr == [0.1, 0.5]
    for opt in (first, second):
        opt.step({"a": ones(2), "b": ones(3)})
    assert (second.state["a"].t, second.state["b"].t) == (1, 2)
    assert second["b"].data.tolist() == first["b"].data.tolist() == pytest.approx([1 - 0.1 - 0.5] * 3)
    with pytest.raises(ValueError, match=r"its group of a, b is more than one group here"):
        first.load_state_dict(small().state_dict())


def test_schedules_stay_and_saved_numbers_replace_numbers():
    saved = small(eps=1e-3).state_dict()
    opt = Adam({"a": ones(2), "b": ones(3)}, lr=lambda n: 1.0 / (n + 1))
    opt.load_state_dict(saved)
    assert (opt.lr, opt.eps) == (0.5, 1e-3)
    assert "lr" not in opt.state_dict()["groups"][0]["numbers"]


def test_a_weight_that_is_copied_into_a_slot_is_the_weight_at_the_first_step():
    class Anchored(Optimizer):
        lr: Scalar = 0.5

        def slots(self):
            return {"start": optimkit.copy_of_weight}

        def update(self, w, g, s, h, xp):
            return h.lr * (w - s.start) + g, {"start": s.start}

    w = np.arange(6.0).reshape(2, 3).T
    start = w.copy()
    opt = Anchored(w)
    opt.step(np.ones((3, 2)))
    np.testing.assert_array_equal(opt.state["0"]["start"], start)
    opt.step(np.zeros((3, 2)))
    np.testing.assert_array_equal(w, start - 1 + 0.5)


def test_saving_and_loading_ask_for_all_counts_at_once(monkeypatch):
    """With a question for each parameter they took seconds over some thousand."""
    from optimkit.driver.run import Run

    asked = []
    store = Run.store_counts
    monkeypatch.setattr(Run, "store_counts", lambda run: (asked.append(run), store(run)))
    found = []
    for n in (3, 60):
        opt = Adam([np.ones(2) for _ in range(n)])
        opt.step([np.ones(2) for _ in range(n)])
        asked.clear()
        opt.load_state_dict(opt.state_dict())
        found.append(len(asked))
    assert found[0] == found[1]


def _changed(saved, path, value):
    """A deep copy of a saved state with another value at a path."""
    changed = copy.deepcopy(saved)
    part = changed
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("count",), 1 << 70),
        (("count",), 2.0),
        (("state", "a", "t"), (1 << 63) - 2),
        (("state", "a", "t"), 1 << 70),
        (("state", "a", "t"), -1),
        (("state", "a", "t"), True),
        (("state", "a", "frozen"), np.zeros(3)),
        (("state", "a", "frozen"), "no"),
        (("state", "a", "slots"), None),
        (("state", "a", "slots", "m"), "m"),
        (("state", "a"), None),
        (("groups", 0, "numbers"), None),
        (("groups", 0, "structure"), [1]),
        (("groups", 0, "params"), None),
        (("groups", 0, "params"), [1, None]),
        (("groups", 0), 3),
        (("groups", 0, "numbers", "lr"), "fast"),
        (("groups", 0, "numbers", "betas"), 0.5),
        (("links", 0, "class"), 7),
        (("links", 0, "numbers"), None),
        (("shared",), {"x": "1"}),
        (("shared",), {"x": [1.0]}),
        (("shared",), [1.0]),
        (("state",), None),
    ],
    ids=str,
)
def test_a_malformed_state_is_one_error_and_changes_nothing(path, value):
    params = {"a": np.ones(3), "b": np.ones(2)}
    opt = optimkit.AdamW(params, lr=0.1, transforms=[transforms.ClipByGlobalNorm(1.0)])
    opt.step({name: w + 1 for name, w in params.items()})
    saved = opt.state_dict()
    with pytest.raises(ValueError, match="does not fit this AdamW; nothing was changed"):
        opt.load_state_dict(_changed(saved, path, value))
    now = opt.state_dict()
    assert str(now) == str(saved)


def test_saving_and_loading_do_for_each_parameter_what_is_its_own(monkeypatch):
    """What is asked of all names, or of all parameters, is asked once: 100,000 parameters are saved in a second."""
    asked = []
    names = Run.names.fget
    monkeypatch.setattr(Run, "names", property(lambda run: (asked.append(1), names(run))[1]))
    for where in (None, "p1*"):
        params = {f"p{i}": np.ones(2) for i in range(200)}
        opt = Adam(params, transforms=[transforms.ClipByGlobalNorm(1.0, where=where)])
        opt.step({name: np.ones(2) for name in params})
        saved = opt.state_dict()
        asked.clear()
        opt.load_state_dict(saved)
        opt.state_dict()
        dict(opt.state)
        opt.step({name: np.ones(2) for name in params})
        assert len(asked) <= 10
