"""Dtypes: one record for each that optimkit computes with. Everything else asks the record.

A weight lies in memory in one dtype, and is computed with in another where they differ (half precision);
a complex number is a pair of reals. Engines are told here how they load and store each.

>>> DTYPES["float32"].itemsize, DTYPES["float32"].compute
(4, 'float32')
"""

from __future__ import annotations

from typing import NamedTuple


class DType(NamedTuple):
    """What is known of a dtype.

    Attributes
    ----------
    name : str
        As NumPy and the array API call it.
    kind : {"real", "complex"}
    itemsize : int
        Bytes of an element in memory.
    compute : str
        The real dtype of the arithmetic.
    state : str
        The dtype of slots with a value per element; `compute` of those that are real.
    parts : int
        Reals of the compute dtype that an element is made of.
    cpu : str
        The suffix of the functions that load and store it in CPU kernels: `load_float32`.
    cuda : str
        Its C++ type on a GPU; a cast takes it to the compute type and back.
    """

    name: str
    kind: str
    itemsize: int
    compute: str
    state: str
    parts: int
    cpu: str
    cuda: str

    @property
    def code(self) -> int:
        """The number by which kernels tell dtypes apart."""
        return list(DTYPES).index(self.name)

    @property
    def wide(self) -> bool:
        """Whether squares may leave the range of float64, in which they are summed."""
        return self.compute == "float64"

    def of_slot(self, is_real: bool) -> str:
        """The dtype of a slot with a value per element."""
        return self.compute if is_real else self.state

    @property
    def gradients(self) -> tuple[str, ...]:
        """The dtypes that a gradient may have: none with more parts than its weight."""
        return tuple(other.name for other in DTYPES.values() if other.parts <= self.parts)


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("float32", "real", 4, "float32", "float32", 1, cpu="float32", cuda="float"),
        DType("float64", "real", 8, "float64", "float64", 1, cpu="float64", cuda="double"),
    )
}
SUPPORTED = tuple(DTYPES)
