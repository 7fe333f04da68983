"""What engines are told of an array: its placement, dense or strided, for weights, gradients, slots and inputs alike."""

from __future__ import annotations

import numpy as np
import pytest
from optimizers import Masked

import optimkit
from optimkit import arrays
from optimkit.arrays import DTYPES, Placement
from optimkit.engines.tables import Columns, Entry
from optimkit.fusion.stages import GRADIENT, WEIGHT
from optimkit.testing.backends import LAYOUTS, lay_out
from optimkit.transforms import ClipByGlobalNorm

ENGINES = ["llvm", "eager"]


def test_every_dtype_has_a_record():
    assert {name: (x.kind, x.itemsize, x.compute, x.parts, x.code) for name, x in DTYPES.items()} == {
        "float32": ("real", 4, "float32", 1, 0),
        "float64": ("real", 8, "float64", 1, 1),
    }
    for name, x in DTYPES.items():
        assert (np.dtype(name).itemsize, x.gradients) == (x.itemsize, ("float32", "float64"))
        assert x.itemsize == np.dtype(name).itemsize
    assert tuple(DTYPES) == arrays.SUPPORTED


def test_the_placement_of_an_array():
    x = np.zeros((4, 6), np.float32)
    assert Placement.of(x) == (x.ctypes.data, DTYPES["float32"], None)
    assert Placement.of(x[::2, ::-1]) == (x.ctypes.data + 20, DTYPES["float32"], ((2, 6), (48, -4)))
    assert Placement.of(x[1:2]).geometry is None, "what is dense is dense, whatever its strides say"
    assert Placement.of(x).lengths_and_strides(24) == ((24,), (4,))
    assert Placement(0, DTYPES["float64"], ((), ())).lengths_and_strides(1) == ((1,), (0,))


def test_words_have_names():
    columns = Columns("size", "row")
    assert (columns.size, columns.row, len(columns)) == (0, 1, 2)
    assert columns.text(str.upper, "word(entry, ROW) + ROWS") == "ROW = 1"
    with pytest.raises(AttributeError, match="no word is called flags; there are size, row"):
        _ = columns.flags
    entry = Entry(("size",), {WEIGHT: "w", GRADIENT: "g", "m": "s_m"}, (WEIGHT, "m"), 4)
    assert entry.names == ("size", "w_layout", "s_m_layout", "w_at", "g_at", "s_m_at")
    assert (entry.address, entry.layout) == ({WEIGHT: 3, GRADIENT: 4, "m": 5}, {WEIGHT: 1, "m": 2})
    assert entry.bit == {WEIGHT: 4, "m": 8}


def windowed(x):
    """A window of a larger array, as it will be of a slot in a step on a part of a weight."""
    wide = np.full(tuple(n + 3 for n in x.shape), np.nan, x.dtype)
    window = wide[tuple(slice(2, n + 2) for n in x.shape)]
    window[...] = x
    return window, wide


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ENGINES)
def test_slots_and_inputs_may_be_strided(engine, dtype):
    """The runner of a bucket made anew with windows in the place of its slots: the same bits, and nothing beside them."""
    rng = np.random.default_rng(0)
    shapes = {"a": (130, 41), "b": (5, 3), "c": (17,)}
    grads = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    results = []
    for strided in (False, True):
        params = {name: np.ones(shape, dtype) for name, shape in shapes.items()}
        opt = Masked(params, transforms=[ClipByGlobalNorm(1.0)], engine=engine)
        opt.step(grads)
        for name, slots in opt.state.items():
            slots["mask"][...] = np.random.default_rng(1).normal(size=shapes[name])
        (bucket,) = opt._run.steps.buckets
        kept = []
        if strided:
            for member in bucket.members:
                for key in [key for key in member.arrays if isinstance(key, tuple)]:
                    member.arrays[key], wide = windowed(member.arrays[key])
                    kept.append(wide)
            bucket.runner = bucket.engine.runner(bucket.plan, bucket.entries[0].dtype, bucket.members)
            host = opt._run.steps.host
            host.parts = [part._replace(runner=bucket.runner) for part in host.parts]
            bucket.active = np.zeros(len(bucket.members), bool)  # the new runner knows of no gradient
            opt._run.gradients = None  # nor of a weight
            opt._run.forget_warm()
        for _ in range(2):
            opt.step(grads)
        found = {(m.name, key): np.array(x) for m in bucket.members for key, x in m.arrays.items()}
        results.append(found)
        for wide in kept:
            assert np.isnan(wide[:2]).all()
            assert np.isnan(wide[-1:]).all()
    assert results[0].keys() == results[1].keys()
    for key, x in results[0].items():
        np.testing.assert_array_equal(results[1][key], x, err_msg=str(key))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_members_are_seen_in_one_shape(layout):
    w = lay_out(np, np.ones((4, 3, 2), np.float32), layout)
    opt = optimkit.Adam({"w": w})
    opt.step({"w": np.ones((4, 3, 2), np.float32)})
    (member,) = opt._run.steps.buckets[0].members
    assert {x.shape for x in member.arrays.values()} == {member.weight.shape}
    assert len(member.arrays) == 3, "the gradient was taken back"
