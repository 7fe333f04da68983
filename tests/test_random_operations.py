"""Random operations on twins: one optimizer on compiled kernels, the other on the eager engine. Same bits, same errors."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import optimkit
from optimkit import SGD, Adam, AdamW, NonFiniteGradientError, RMSProp
from optimkit.engines.cpu import runner
from optimkit.testing import BACKENDS, LAYOUTS
from optimkit.transforms import ClipByGlobalNorm, ClipByValue

EAGER = BACKENDS["numpy-eager"]
RULES = [(SGD, {"lr": 0.1, "momentum": 0.9}), (Adam, {"lr": 0.05}), (AdamW, {"lr": 0.05})]
RULES += [(RMSProp, {"lr": 0.05, "centered": True, "momentum": 0.5})]
LINKS = [[], [ClipByGlobalNorm(0.5)], [ClipByValue(0.5), ClipByGlobalNorm(1.0)]]
ERRORS = ValueError, TypeError, NonFiniteGradientError
OTHER = {"float32": "float64", "float64": "float32"}


class Twins:
    """The same parameters on a backend, and on NumPy with the eager engine; and an optimizer of each."""

    def __init__(self, backend, seed):
        self.backends, self.rng = (backend, EAGER), np.random.default_rng(seed)
        self.params, self.gradients, self.frozen, self.log = ({}, {}), {}, set(), []
        for number in range(self.rng.integers(2, 7)):
            shape = tuple(self.rng.integers(1 - self.one_in(20), 8, self.rng.integers(0, 4)))
            dtype = str(self.rng.choice(["float32", "float32", "float64"]))
            for params, x in zip(self.params, self.draw(shape, dtype), strict=True):
                params[f"p{number}"] = x
        kind, settings = RULES[self.rng.integers(len(RULES))]
        settings = settings | {"transforms": LINKS[self.rng.integers(len(LINKS))]}
        settings |= {"nonfinite": str(self.rng.choice(["allow", "raise", "skip"]))}
        if self.one_in(5):
            settings["lr"] = lambda count: 0.1 / (1 + count)
        engines = backend.engine, EAGER.engine
        self.optimizers = [kind(each, engine=engine, **settings) for each, engine in zip(self.params, engines, strict=True)]

    def one_in(self, n):
        return self.rng.random() < 1 / n

    def draw(self, shape, dtype, nan=False):
        """The same values on both backends, in the same layout."""
        values, layout = self.rng.normal(size=shape), str(self.rng.choice(LAYOUTS)) if self.one_in(3) else LAYOUTS[0]
        if nan and values.size:
            values.reshape(-1)[0] = np.nan
        return [backend.make(values, dtype, layout) for backend in self.backends]

    def both(self, what, call):
        """The same with both, `call(optimizer, 0 or 1)`; what one raises the other raises."""
        self.log.append(what)
        found = []
        for number, opt in enumerate(self.optimizers):
            try:
                found.append(call(opt, number))
            except ERRORS as error:
                found.append(type(error))
        raised = [each if isinstance(each, type) else None for each in found]
        assert raised[0] is raised[1], (raised, self.log)
        return found

    def name(self):
        return str(self.rng.choice(list(self.params[0])))

    # ---- operations

    def step(self):
        names = list(self.params[0])
        if self.one_in(3):  # halves in turn
            names = names[: len(names) // 2] if len(self.log) % 2 else names[len(names) // 2 :]
        elif self.one_in(2):
            names = [name for name in names if not self.one_in(3)]
        known = self.gradients if self.one_in(2) else {}
        zero, sealed = self.one_in(3), self.one_in(15)
        pairs = {name: known[name] if name in known else self.draw_gradient(name) for name in names}
        self.gradients.update(pairs)
        arrays = [x for pair in pairs.values() for x in pair if sealed and isinstance(pair[0], np.ndarray)]
        if names and self.one_in(15):  # the weight is its own gradient
            pairs[names[0]] = [params[names[0]] for params in self.params]
        if names and self.one_in(15):
            pairs[names[-1]] = [backend.make(np.zeros((9, 1)), "float32") for backend in self.backends]
        for x in arrays:
            x.flags.writeable = False
        a, b = self.both(
            f"step {names}, zero_grad={zero}, read-only={bool(arrays)}",
            lambda opt, number: opt.step({name: pair[number] for name, pair in pairs.items()}, zero_grad=zero),
        )
        for x in arrays:
            x.flags.writeable = True
        if not isinstance(a, type) and self.one_in(2):
            np.testing.assert_equal((a.applied, a.grad_norm), (b.applied, b.grad_norm), str(self.log))
        self.same(pairs, "gradient")

    def draw_gradient(self, name):
        w = self.params[1][name]
        return self.draw(w.shape, OTHER[w.dtype.name] if self.one_in(8) else w.dtype.name, nan=self.one_in(30))

    def set_rate(self):
        value = float(self.rng.choice([0.01, 0.3]))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*was replaced by a number")
            self.both(f"lr = {value}", lambda opt, number: setattr(opt, "lr", value))

    def rebind(self):
        name = self.name()
        x = self.params[1][name]
        for params, new in zip(self.params, self.draw(x.shape, x.dtype.name), strict=True):
            params[name] = new
        self.log.append(f"rebind {name}")

    def freeze(self):
        name = self.name()
        verb = "unfreeze" if name in self.frozen else "freeze"
        self.frozen ^= {name}
        self.both(f"{verb} {name}", lambda opt, number: getattr(opt, verb)(name))

    def reload(self):
        self.both("load", lambda opt, number: opt.load_state_dict(opt.state_dict()))

    def reset(self):
        name = self.name()
        self.both(f"reset {name}", lambda opt, number: opt.reset(name))

    def write(self):
        name, value = self.name(), self.rng.normal()
        self.both(f"write {name}", lambda opt, number: self.params[number][name].fill(value))

    def grow(self):
        name, pair = f"q{len(self.log)}", self.draw((3, 2), "float32")
        self.both(f"add {name}", lambda opt, number: opt.add({name: pair[number]}))
        for params, x in zip(self.params, pair, strict=True):
            params[name] = x

    def shrink(self):
        if len(self.params[0]) < 2:
            return
        name = self.name()
        self.both(f"remove {name}", lambda opt, number: opt.remove(name))
        self.frozen.discard(name)
        for params in self.params:
            del params[name]

    # ---- what is compared

    def same(self, pairs, what):
        for name, (x, y) in pairs.items():
            np.testing.assert_array_equal(self.backends[0].to_numpy(x), y, f"{what} {name}: {self.log}")

    def same_weights(self):
        self.same({name: (x, self.params[1][name]) for name, x in self.params[0].items()}, "weight")

    def same_state(self):
        ours, theirs = (opt.state for opt in self.optimizers)
        for name in theirs:
            assert ours[name].t == theirs[name].t, (name, self.log)
            self.same({slot: (ours[name][slot], theirs[name][slot]) for slot in theirs[name]}, f"state of {name}:")


OTHERS = ["set_rate", "rebind", "freeze", "reload", "reset", "write", "grow", "shrink"]


@pytest.mark.parametrize(("name", "threads"), [("numpy-llvm", 1), ("numpy-llvm", 2), ("cupy-cuda", 1)])
def test_random_operations_on_twins(name, threads, monkeypatch):
    backend = BACKENDS[name]
    if backend.available():
        pytest.skip(f"{name}: {backend.available()}")
    if threads > 1:
        monkeypatch.setattr(runner, "SMALL", 50)
    optimkit.set_num_threads(threads)
    steps, seeds = 0, 25 if name == "numpy-llvm" else 12  # CUDA kernels take longer to compile
    for seed in range(seeds):
        twins = Twins(backend, [seed, threads])
        for _ in range(25):
            if twins.one_in(4):
                getattr(twins, str(twins.rng.choice(OTHERS)))()
            else:
                twins.step()
            twins.same_weights()
        twins.same_state()
        steps += twins.optimizers[0].count
    assert steps > 10 * seeds
