"""A copy of an optimizer goes on with the bits of the original, also where its weights lie in another memory order."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from optimkit import SGD, Adam
from optimkit.transforms import ClipByGlobalNorm

LAYOUTS = {
    "reversed": lambda x: x[::-1, ::-1, ::-1],
    "one axis reversed": lambda x: x[:, ::-1],
    "Fortran": lambda x: x.T,
    "permuted": lambda x: x.transpose(1, 2, 0),
    "every second": lambda x: x[::-2, :, ::2],
    "plain": lambda x: x,
}
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x)), "copy": copy.copy}


@pytest.fixture
def backend(optimkit_backend):
    if optimkit_backend.functional or optimkit_backend.library not in ("numpy", "cupy"):
        pytest.skip("arrays that lie in any order and are copied in another")
    return optimkit_backend


def train(backend, layout, how, seed):
    rng = np.random.default_rng(seed)
    w = LAYOUTS[layout](backend.make(rng.normal(size=(9, 14, 11)), "float64"))
    opt = Adam({"w": w}, lr=0.1, transforms=[ClipByGlobalNorm(0.5)], engine=backend.engine)
    grads = [backend.make(rng.normal(size=w.shape), "float64") for _ in range(6)]
    for g in grads[:3]:
        opt.step({"w": g})
    opt = COPIES[how](opt) if how else opt
    for g in grads[3:]:
        opt.step({"w": g})
    opt = COPIES[how](opt) if how else opt  # a copy of a copy
    opt.step({"w": grads[0]})
    return [backend.to_numpy(x).tobytes() for x in (opt["w"].data, *opt.state["w"].values())]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_go_on_with_the_same_bits(backend, layout, how):
    for seed in range(10):
        assert train(backend, layout, how, seed) == train(backend, layout, "", seed)


@pytest.mark.parametrize("engine", ["llvm", "eager"])
def test_without_sums_the_copy_is_read_as_it_lies(engine):
    """Bits of single elements depend on no order, and a copy that is dense is quicker."""
    opt = SGD({"w": np.ones((40, 30, 20))[::-1, ::-1]}, lr=0.1, momentum=0.9, engine=engine)
    opt.step({"w": np.ones((40, 30, 20))})
    again = copy.deepcopy(opt)
    again.step({"w": np.ones((40, 30, 20))})
    assert again._run.entry("w").order.is_plain
    assert not opt._run.entry("w").order.is_plain
    again["w"].data = np.ones((40, 30, 20))[::-1]
    again.step({"w": np.ones((40, 30, 20))})
    assert again._run.entry("w").kept is None
