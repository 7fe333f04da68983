"""What tests of gradients share: parameters of several shapes, their gradients, and layouts in which a gradient may come."""

from __future__ import annotations

import numpy as np

ENGINES = ["llvm", "eager"]
SHAPES = {"a": (7, 5), "b": (5,), "c": (), "d": (0, 3), "e": (2, 1, 3)}


def weights(dtype="float32", shapes=SHAPES):
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def gradients(seed, dtype="float32", shapes=SHAPES):
    rng = np.random.default_rng(100 + seed)
    return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def strided(x):
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 1] = x
    return wide[..., 1]


LAYOUTS = {
    "as it is": lambda x: x,
    "fortran": lambda x: np.array(x, order="F"),
    "strided": strided,
    "backwards": lambda x: np.array(np.flip(x))[(..., *(slice(None, None, -1) for _ in x.shape))],
    "float64": lambda x: np.asarray(x, "float64"),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "subclass": lambda x: x.view(type("Sub", (np.ndarray,), {})),
}


def assert_same(one, two):
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
