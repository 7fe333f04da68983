"""A gradient may be any array: one that lies in a weight, in a slot, in another gradient, or in itself. The step is that of
copies, zeroed afterwards, on every engine, warm or not. A weight may not lie in a slot.
"""

from __future__ import annotations

import numpy as np
import pytest

import optimkit
from optimkit.transforms import ClipByGlobalNorm

SIZES = {"a": 300, "b": 40_000, "c": 7}


class Case:
    def __init__(self, backend, dtype="float32", **options):
        self.backend, self.dtype = backend, dtype
        rng = np.random.default_rng(1)
        self.params = {name: backend.make(rng.normal(size=n), dtype) for name, n in SIZES.items()}
        self.opt = optimkit.Adam(self.params, lr=0.01, engine=backend.engine, **options)
        for seed in range(3):
            self.opt.step(self.plain(seed))

    def plain(self, seed):
        rng = np.random.default_rng(seed)
        return {name: self.backend.make(rng.normal(size=n), self.dtype) for name, n in SIZES.items()}

    def result(self):
        state = self.opt.state
        found = [*self.params.values(), *(state[name][slot] for name in SIZES for slot in ("m", "v"))]
        return [self.backend.to_numpy(x).tobytes() for x in found]


def broadcast(case, x, n):
    """`x` once, seen n times."""
    if case.backend.library == "torch":
        return x.expand(n)
    xp = np if case.backend.library == "numpy" else __import__("cupy")
    return xp.lib.stride_tricks.as_strided(x, (n,), (0,))


ALIASES = {
    "its own weight": lambda case: {"a": case.params["a"]},
    "its own weight, reversed": lambda case: {"b": flipped(case, case.params["b"])},
    "another weight": lambda case: {"a": case.params["b"][5:305]},
    "its own slot": lambda case: {"b": case.opt.state["b"]["m"]},
    "its own slot, reversed": lambda case: {"b": flipped(case, case.opt.state["b"]["v"])},
    "the slots of two, in turn": lambda case: {"a": case.opt.state["b"]["m"][:300], "b": case.opt.state["b"]["v"]},
    "a slot of a small one": lambda case: {"c": case.opt.state["a"]["m"][3:10], "a": case.opt.state["a"]["v"]},
    "itself": lambda case: {"b": broadcast(case, case.plain(5)["c"][:1], SIZES["b"])},
    "itself and another": lambda case: (lambda x: {"b": broadcast(case, x[:1], SIZES["b"]), "c": x})(case.plain(6)["c"]),
    "itself in a slot": lambda case: {"b": broadcast(case, case.opt.state["c"]["m"][2:3], SIZES["b"])},
    "one array for two": lambda case: (lambda x: {"a": x[:300], "b": x})(case.plain(7)["b"]),
}


def flipped(case, x):
    return x.flip(0) if case.backend.library == "torch" else x[::-1]  # torch copies


def copied(case, grads):
    return {name: case.backend.make(case.backend.to_numpy(g), case.dtype) for name, g in grads.items()}


@pytest.fixture
def backend(optimkit_backend):
    if optimkit_backend.functional or optimkit_backend.library not in ("numpy", "cupy", "torch"):
        pytest.skip("memory that arrays share")
    return optimkit_backend


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("alias", ALIASES)
def test_what_overlaps_is_taken_as_a_copy(backend, alias, zero, clipped):
    """Three steps with views against three with copies of them; what is zeroed afterwards is what the view shows."""
    options = {"transforms": [ClipByGlobalNorm(0.1)]} if clipped else {}
    views, copies = Case(backend, **options), Case(backend, **options)
    for number in range(3):
        for case in (views, copies):
            rest = case.plain(10 + number)
            grads = ALIASES[alias](case)
            given = {**rest, **(grads if case is views else copied(case, grads))}
            case.opt.step(given, zero_grad=zero)
            if zero and case is copies:
                for g in grads.values():
                    fill(g)
            if zero:
                assert not any(case.backend.to_numpy(g).any() for g in [*grads.values(), *given.values()])
        assert views.result() == copies.result()
        for case in (views, copies):  # steps in between without them
            case.opt.step(case.plain(20 + number), zero_grad=zero)
        assert views.result() == copies.result()


def fill(g):
    if type(g).__module__.startswith("torch"):
        (g[:1] if g.stride() == (0,) else g).zero_()
    else:
        g[...] = 0.0


@pytest.mark.parametrize("zero", [False, True])
def test_a_weight_replaced_by_one_beside_an_overlapping_gradient(backend, zero):
    """The new weight lies in the gradient of another, which was apart from all weights in the steps before."""
    results = []
    for shared in (True, False):
        case = Case(backend)
        buffer = case.backend.make(np.random.default_rng(3).normal(size=SIZES["b"]), "float32")
        for number in range(5):
            if number == 2:
                case.params["a"] = buffer[1000:1300] if shared else copied(case, {"a": buffer[1000:1300]})["a"]
            given = buffer if shared or number < 2 else copied(case, {"b": buffer})["b"]
            case.opt.step({**case.plain(number), "b": given}, zero_grad=zero and number == 4)
            if not shared and number >= 2:
                buffer[1000:1300] = case.params["a"]
            if not shared and zero and number == 4:
                case.params["a"][...] = 0.0
        results.append(case.result())
    assert results[0] == results[1]


def test_a_weight_that_lies_in_a_slot_is_refused(backend):
    case = Case(backend)
    case.params["a"] = case.opt.state["b"]["m"][:300]
    before = case.backend.to_numpy(case.params["b"]).tobytes()
    with pytest.raises(ValueError, match=r"parameter 'a' overlaps slot 'm' of parameter 'b' .* in memory; pass a copy"):
        case.opt.step(case.plain(0))
    assert case.backend.to_numpy(case.params["b"]).tobytes() == before
    with pytest.raises(ValueError, match=r"parameter 'd' overlaps slot 'm' of parameter 'b'"):
        case.opt.add({"d": case.opt.state["b"]["m"][:5]})


def test_looking_at_the_state_costs_one_look_at_the_arrays(backend):
    """Whoever logs a slot in each step has warm steps, but for the first."""
    case = Case(backend)
    grads = case.plain(0)
    for _ in range(2):
        case.opt.state["b"]["m"]
        case.opt.step(grads)
    before = optimkit.counters.gradients_checked, optimkit.counters.traces, optimkit.counters.compiles
    for name in SIZES:
        case.opt.state[name]["v"]
        case.opt.step(grads)
    assert (optimkit.counters.gradients_checked, optimkit.counters.traces, optimkit.counters.compiles) == before
