"""Random operations on optimizers of every kind: compiled kernels and the eager engine to the bit, and a plain model in NumPy.

    OPTIMKIT_OPERATIONS=20000 python -m pytest tests/test_random_against_a_model.py
"""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest

import optimkit
from optimkit import NonFiniteGradientError, lr_scheduler
from optimkit.testing import BACKENDS
from optimkit.transforms import ClipByGlobalNorm

OPERATIONS = int(os.environ.get("OPTIMKIT_OPERATIONS", "1000"))
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


# ---- the model: each formula once, in float64, one parameter at a time


def sgd(p, g, lr):
    p.slots["b"] = 0.9 * p.slot("b") + g
    return lr * p.slots["b"]


def adam(p, g, lr):
    p.slots["m"], p.slots["v"] = 0.9 * p.slot("m") + (1 - 0.9) * g, 0.999 * p.slot("v") + (1 - 0.999) * g * g
    return lr * (p.slots["m"] / (1 - 0.9**p.t)) / (np.sqrt(p.slots["v"] / (1 - 0.999**p.t)) + 1e-8)


def adamw(p, g, lr):
    return adam(p, g, lr) + lr * 0.1 * p.w


def adagrad(p, g, lr):
    p.slots["v"] = p.slot("v") + g * g
    return lr * g / (np.sqrt(p.slots["v"]) + 1e-10)


def rmsprop(p, g, lr):
    p.slots["v"] = 0.99 * p.slot("v") + (1 - 0.99) * g * g
    return lr * g / (np.sqrt(p.slots["v"]) + 1e-8)


KINDS = {
    "SGD": (sgd, lambda params, **own: optimkit.SGD(params, momentum=0.9, **own)),
    "Adam": (adam, optimkit.Adam),
    "AdamW": (adamw, lambda params, **own: optimkit.AdamW(params, weight_decay=0.1, **own)),
    "Adagrad": (adagrad, optimkit.Adagrad),
    "RMSProp": (rmsprop, optimkit.RMSProp),
}


class Parameter:
    def __init__(self, w, base):
        self.w, self.base, self.t, self.frozen, self.slots = w.astype(float), base, 0, False, {}

    def slot(self, name):
        return self.slots.get(name, np.zeros_like(self.w))


class Model:
    """What an optimizer is meant to do."""

    def __init__(self, kind, clip, nonfinite):
        self.rule, self.clip, self.nonfinite, self.params, self.factor = KINDS[kind][0], clip, nonfinite, {}, 1.0

    def step(self, grads):
        found = {name: g.astype(float) for name, g in grads.items() if not self.params[name].frozen}
        norm = np.sqrt(sum((g**2).sum() for g in found.values()))
        if self.nonfinite != "allow" and not np.isfinite(norm):
            return False
        scale = min(1.0, self.clip / norm) if self.clip and norm > 0 and np.isfinite(norm) else 1.0
        for name, g in found.items():
            p = self.params[name]
            p.t += 1
            p.w = p.w - self.rule(p, g * scale, p.base * self.factor)
        return bool(found)


# ---- the optimizers beside it


class World:
    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        kind = str(rng.choice(list(KINDS)))
        clip, nonfinite = [None, 0.5][int(rng.integers(2))], str(rng.choice(["allow", "raise", "skip"]))
        self.log, self.made, self.model = [(kind, clip, nonfinite)], 0, Model(kind, clip, nonfinite)
        self.containers = {engine: {} for engine in ("llvm", "eager")}
        for _ in range(rng.integers(1, 5)):
            self.put(self.new_name(), 0.1)
        own = {"lr": 0.1, "nonfinite": nonfinite}
        self.optimizers, self.schedulers = {}, {}
        for engine, params in self.containers.items():
            links = [ClipByGlobalNorm(clip)] if clip else []
            self.optimizers[engine] = KINDS[kind][1](params, engine=engine, transforms=links, **own)
            self.schedulers[engine] = lr_scheduler.ExponentialLR(self.optimizers[engine], 0.9)

    def new_name(self):
        self.made += 1
        return f"p{self.made}"

    def draw(self, name=None, dtype=None):
        """An array in some layout."""
        rng = self.rng
        low = 0 if self.one_in(20) else 1
        shape = self.model.params[name].w.shape if name else tuple(rng.integers(low, 6, rng.integers(0, 4)))
        dtype = dtype or str(rng.choice(["float32", "float64"]))
        x = rng.normal(size=tuple(2 * n for n in shape)).astype(dtype)
        kind = rng.integers(4)
        if kind == 0 and shape:
            return x[tuple(slice(None, None, 2) for _ in shape)]
        x = np.array(x[tuple(slice(n) for n in shape)])
        if kind == 1 or not shape:
            return x
        return np.array(x.T, order="C").T if kind == 2 else x[tuple(slice(None, None, -1) for _ in shape)]

    def put(self, name, lr):
        w = self.draw()
        for params in self.containers.values():
            params[name] = lay_out_like(w)
        self.model.params[name] = Parameter(w, lr)

    def one_in(self, n):
        return self.rng.random() < 1 / n

    def name(self):
        return str(self.rng.choice(list(self.model.params)))

    def each(self, what, act):
        """The same with both optimizers; whether it was refused, and by what."""
        self.log.append(what)
        raised = []
        for engine, opt in self.optimizers.items():
            try:
                raised.append((None, act(opt, engine)))
            except (ValueError, TypeError, KeyError, NonFiniteGradientError) as error:
                raised.append((type(error), str(error)))
        assert raised[0][0] is raised[1][0], (raised, self.log)
        return raised[0][0]

    # operations

    def step(self):
        names = [name for name in self.model.params if not self.one_in(4)]
        dtypes = {name: self.containers["eager"][name].dtype.name for name in names}
        grads = {name: self.draw(name, dtypes[name]) for name in names}
        if names and self.one_in(15):
            x = grads[names[0]]
            if x.size and self.model.nonfinite != "allow":
                x[(0,) * x.ndim] = np.nan
        zero, before = self.one_in(3), {name: g.copy() for name, g in grads.items()}
        given = {engine: {name: lay_out_like(g) for name, g in grads.items()} for engine in self.optimizers}
        if names and self.one_in(12):  # a gradient that is a slot, or the weight
            alias = names[-1]
            for engine, opt in self.optimizers.items():
                slots = opt.state[alias]
                given[engine][alias] = slots[next(iter(slots))]
            before[alias] = np.array(given["eager"][alias])
            zero = False
        applied = self.model.nonfinite != "raise" or all(
            np.isfinite(g).all() for name, g in before.items() if not self.model.params[name].frozen
        )
        refused = self.each(f"step {names} zero={zero}", lambda opt, engine: opt.step(given[engine], zero_grad=zero))
        assert (refused is NonFiniteGradientError) == (not applied), self.log
        if applied:
            self.model.step(before)
        if zero and applied:
            assert not any(g.any() for own in given.values() for g in own.values()), self.log

    def refused_step(self):
        name = self.name()
        w = self.containers["eager"][name]
        bad = [np.zeros((7, 7, 7)), np.ones(w.shape, int), "x", np.ones(w.shape, complex)][int(self.rng.integers(4))]
        refused = self.each(f"bad gradient of {name}", lambda opt, engine: opt.step({name: bad}))
        assert refused or self.model.params[name].frozen, self.log  # that of a frozen one is nobody's
        assert self.each("unknown gradient", lambda opt, engine: opt.step({"nobody": np.ones(2)})), self.log

    def rates(self):
        value = float(self.rng.choice([0.01, 0.2]))
        kind = self.rng.integers(4)
        chosen = list(self.model.params) if kind != 1 else [self.name()]
        if kind == 0:
            self.each("lr", lambda opt, engine: setattr(opt, "lr", value))
        elif kind == 1:
            self.each(f"lr of {chosen}", lambda opt, engine: opt.set(where=chosen[0], lr=value))
        elif kind == 2:
            self.each("scale", lambda opt, engine: opt.scale_lr(0.5 + value))
        else:
            self.each("lr = lr", lambda opt, engine: setattr(opt, "lr", opt.lr))
        for name in chosen if kind != 3 else ():
            p = self.model.params[name]
            p.base = p.base * (0.5 + value) if kind == 2 else value / self.model.factor

    def schedule(self):
        self.log.append("scheduler")
        for scheduler in self.schedulers.values():
            scheduler.step()
        self.model.factor *= 0.9

    def freeze(self):
        name = self.name()
        p = self.model.params[name]
        verb = "unfreeze" if p.frozen else "freeze"
        self.each(f"{verb} {name}", lambda opt, engine: getattr(opt, verb)(name))
        p.frozen = not p.frozen

    def add(self):
        name, lr = self.new_name(), float(self.rng.choice([0.05, 0.3]))
        self.put(name, lr)
        self.each(f"add {name}", lambda opt, engine: opt.add({name: self.containers[engine][name]}, lr=lr))

    def remove(self):
        if len(self.model.params) > 1:
            name = self.name()
            self.each(f"remove {name}", lambda opt, engine: opt.remove(name))
            for params in self.containers.values():
                del params[name]
            del self.model.params[name]

    def rebind(self):
        name = self.name()
        w = self.draw(name, self.containers["eager"][name].dtype.name)
        self.log.append(f"rebind {name}")
        for params in self.containers.values():
            params[name] = lay_out_like(w)
        self.model.params[name].w = w.astype(float)

    def replace(self):
        name, how, w = self.name(), str(self.rng.choice(["keep", "reset"])), self.draw()
        p = self.model.params[name]
        fits = how == "reset" or w.shape == p.w.shape
        refused = self.each(f"replace {name} {how}", lambda opt, engine: opt.replace(name, lay_out_like(w), state=how))
        assert (refused is None) == fits, self.log
        if fits:
            p.w = w.astype(float)
            if how == "reset":
                p.t, p.slots = 0, {}
            p.slots = {slot: x.reshape(w.shape) for slot, x in p.slots.items()}

    def reset(self):
        name = self.name()
        self.each(f"reset {name}", lambda opt, engine: opt.reset(name))
        p = self.model.params[name]
        p.t, p.slots = 0, {}

    def write(self):
        name, value = self.name(), float(self.rng.normal())
        self.log.append(f"write {name}")
        for params in self.containers.values():
            params[name][...] = value
        self.model.params[name].w[...] = value

    def write_slot(self):
        name, value = self.name(), float(self.rng.random())
        slots = list(self.optimizers["eager"].state[name])
        slot = str(self.rng.choice(slots))
        self.each(f"write {slot} of {name}", lambda opt, engine: opt.state[name][slot].fill(value))
        self.model.params[name].slots[slot] = np.full_like(self.model.params[name].w, value)

    def reload(self):
        self.each("load", lambda opt, engine: opt.load_state_dict(opt.state_dict()))
        self.each("bad load", lambda opt, engine: opt.load_state_dict({**opt.state_dict(), "count": -1}))

    def copied(self):
        """Go on with copies."""
        how = [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))][int(self.rng.integers(2))]
        self.log.append("copy")
        for engine in self.optimizers:
            both = how((self.optimizers[engine], self.schedulers[engine], self.containers[engine]))
            self.optimizers[engine], self.schedulers[engine], self.containers[engine] = both

    def in_place(self):
        """A weight that is read-only for a while, or an integer, or of another shape."""
        name = self.name()
        if self.model.params[name].frozen:
            return
        grad = {name: self.draw(name, self.containers["eager"][name].dtype.name)}
        for params in self.containers.values():
            params[name].flags.writeable = False
        assert self.each(f"read-only {name}", lambda opt, engine: opt.step(grad)) is ValueError, self.log
        for params in self.containers.values():
            params[name].flags.writeable = True

    # what must hold

    def check(self):
        for name, p in self.model.params.items():
            ours, theirs = (self.containers[engine][name] for engine in ("llvm", "eager"))
            np.testing.assert_array_equal(ours, theirs, f"{name}: {self.log}")
            scale = TOLERANCE[ours.dtype.name]
            np.testing.assert_allclose(ours, p.w, rtol=scale, atol=scale, err_msg=f"{name}: {self.log}")
            states = [opt.state[name] for opt in self.optimizers.values()]
            assert [state.t for state in states] == [p.t, p.t], (name, self.log)
            for slot in states[0]:
                np.testing.assert_array_equal(states[0][slot], states[1][slot], f"{slot} of {name}: {self.log}")
                np.testing.assert_allclose(states[0][slot], p.slot(slot), rtol=scale, atol=scale, err_msg=f"{slot}: {self.log}")
                p.slots[slot] = np.array(states[0][slot], float)  # from here on: no rounding adds up
            p.w = np.array(ours, float)


def lay_out_like(x):
    """A copy of an array with the same strides."""
    low = np.zeros(x.size, x.dtype) if 0 in x.shape else None
    if low is not None:
        return x.copy()
    room = np.zeros(sum((n - 1) * abs(step) for n, step in zip(x.shape, x.strides, strict=True)) // x.itemsize + 1, x.dtype)
    start = sum((n - 1) * -step for n, step in zip(x.shape, x.strides, strict=True) if step < 0)
    found = np.ndarray(x.shape, x.dtype, room, start, x.strides)
    found[...] = x
    return found


OTHERS = ["rates", "schedule", "freeze", "add", "remove", "rebind", "replace", "reset", "write", "write_slot", "reload"]
OTHERS += ["copied", "in_place", "refused_step"]


@pytest.mark.skipif(bool(BACKENDS["numpy-llvm"].available()), reason="llvmlite is not installed")
def test_optimizers_do_what_a_plain_model_does():
    done, seed = 0, 0
    while done < OPERATIONS:
        world = World(seed)
        for _ in range(60):
            act = str(world.rng.choice(OTHERS)) if world.one_in(3) else "step"
            getattr(world, act)()
            world.check()
            done += 1
        seed += 1
