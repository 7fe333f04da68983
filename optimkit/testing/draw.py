"""Parameters and gradients for checks: every layout, odd sizes, sizes of values from 1e-13 to 1e2.

A `Spec` is one parameter of a check. Its name says what is particular about it, so that a failure
can be read: "strided, gradient fortran".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimkit.arrays import DTYPES

SPECIAL = (0.0, -0.0, 1e-40, -1e-40, 1e-30, 3e38, -3e38, 1.0, float("inf"), float("-inf"), float("nan"))


@dataclass(frozen=True)
class Spec:
    """One parameter of a check: its shape, the layouts of weight and gradient, and in which steps it has a gradient.

    `other_dtype`: its gradient is float64 for a float32 weight, and the reverse. `values`: "drawn", or "special" for zeros,
    subnormal and huge numbers, infinities and NaN.
    """

    name: str
    shape: tuple[int, ...]
    layout: str = "contiguous"
    gradient_layout: str = "contiguous"
    missing: tuple[int, ...] = ()
    other_dtype: bool = False
    values: str = "drawn"

    def __str__(self) -> str:
        layouts = self.layout if self.layout == self.gradient_layout else f"{self.layout}, gradient {self.gradient_layout}"
        return f"parameter {self.name!r} (shape {self.shape}, {layouts})"


def specs(layouts: Sequence[str]) -> list[Spec]:
    """The parameters of a check: every layout with every layout of the gradient, sizes around those of
    the engines' units, 0-d and empty arrays, a parameter without a gradient in the second step."""
    return list(_specs(layouts))


def _specs(layouts: Sequence[str]) -> Iterator[Spec]:
    for layout in layouts:
        for other in layouts:
            name = layout if layout == other else f"{layout}, gradient {other}"
            yield Spec(name, (3, 5), layout, other)
        if layout != "contiguous":
            yield Spec(f"{layout} of three axes", (4, 3, 7), layout, layout)
            yield Spec(f"{layout} vector", (37,), layout, "contiguous")
    yield Spec("0-d", ())
    yield Spec("empty", (0,))
    yield Spec("empty matrix", (3, 0))
    yield Spec("one element", (1,))
    yield Spec("one column", (129, 1), layouts[-1], layouts[0])
    yield Spec("more than a unit", (2049,))
    yield Spec("more than a chunk", (16387,), layouts[-1])
    yield Spec("without a gradient in step 2", (5,), missing=(2,))
    yield Spec("with a gradient of the other dtype", (5,), other_dtype=True)


def few_specs() -> list[Spec]:
    """A few, for the functional form, where each parameter is compiled by itself."""
    late = Spec("without a gradient in step 2", (2049,), missing=(2,))
    return [late, Spec("0-d, with a gradient of the other dtype", (), other_dtype=True), Spec("empty", (0, 3))]


def special_specs() -> list[Spec]:
    """Zeros of both signs, subnormal and huge numbers, infinities and NaN: each as weight with each as gradient."""
    return [Spec("special values", (len(SPECIAL), len(SPECIAL)), values="special")]


def draw(rng: np.random.Generator, spec: Spec, what: str, dtype: str) -> Any:
    """Values of a spec: "weight" of size 1 or "gradient" of sizes from 1e-13 to 1e2."""
    if spec.values == "special":
        table = np.broadcast_to(np.array(SPECIAL, np.float32), spec.shape)
        return (table.T if what == "weight" else table).astype(dtype)
    record = DTYPES[dtype]
    reals = rng.normal(size=(*spec.shape, record.parts))
    if what == "gradient":
        reals = reals * 10.0 ** rng.uniform(-13, 2, size=reals.shape) * (rng.random(reals.shape) > 0.1)
    return reals.astype(record.compute).view(record.state).reshape(spec.shape).astype(dtype)
