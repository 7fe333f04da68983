"""The shapes that are measured: one large array, a real network, many small arrays, a tiny network.

>>> len(FULL["resnet"].shapes), FULL["resnet"].elements
(161, 25557032)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Shapes:
    """A list of parameter shapes with a name."""

    title: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def elements(self) -> int:
        return sum(map(prod, self.shapes))


def resnet50(width: int = 64, classes: int = 1000) -> Iterator[tuple[int, ...]]:
    """The parameters of ResNet-50 in their order: convolutions, batch norms (scale and shift), the classifier.

    He et al., "Deep Residual Learning for Image Recognition", 2015, table 1.
    """

    def convolution(out: int, inside: int, kernel: int) -> Iterator[tuple[int, ...]]:
        yield from ((out, inside, kernel, kernel), (out,), (out,))

    yield from convolution(width, 3, 7)
    inside = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        middle = width << stage
        for block in range(blocks):
            yield from convolution(middle, inside, 1)
            yield from convolution(middle, middle, 3)
            yield from convolution(4 * middle, middle, 1)
            if block == 0:
                yield from convolution(4 * middle, inside, 1)
            inside = 4 * middle
    yield from ((classes, inside), (classes,))


def small(count: int) -> tuple[tuple[int, ...], ...]:
    """Weights of 64 x 64 and biases of 64, in turn."""
    return ((64, 64), (64,)) * (count // 2)


MLP = ((784, 128), (128,), (128, 10), (10,))

FULL = {
    "large": Shapes("1 x 20M", ((20_000_000,),)),
    "resnet": Shapes("ResNet-50, 161 tensors, 25.6M", tuple(resnet50())),
    "small": Shapes("1,000 small tensors, 2.1M", small(1000)),
    "mlp": Shapes("MLP, 4 tensors, 0.1M", MLP),
}
QUICK = {
    "large": Shapes("1 x 50k", ((50_000,),)),
    "resnet": Shapes("ResNet-50 of width 2, 161 tensors, 26k", tuple(resnet50(2, 10))),
    "small": Shapes("20 small tensors, 42k", small(20)),
    "mlp": Shapes("MLP, 4 tensors, 6k", ((64, 80), (80,), (80, 10), (10,))),
}
