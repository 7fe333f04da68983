"""Slots: the state of a rule, declared by name and kind.

    {"m": zeros, "v": zeros_real, "best": full(math.inf).per("parameter")}
"""

from __future__ import annotations

from typing import NamedTuple

from optimkit.rules.numbers import as_float


class Slot(NamedTuple):
    """One piece of a rule's state.

    Parameters
    ----------
    kind : {"zeros", "full", "copy_of_weight", "constant"}
        What it starts as. A "constant" is an input: a rule reads it and never returns it, and no step writes it.
    value : float
        What a "full" or a "constant" slot starts as.
    extent : {"element", "parameter", "optimizer"}
        One value per element (in the compute dtype), per parameter or per optimizer (float64).
    is_real : bool
        Real also for complex weights.
    """

    kind: str
    value: float = 0.0
    extent: str = "element"
    is_real: bool = False

    def per(self, extent: str) -> Slot:
        """The same slot with another extent: `zeros.per("optimizer")`."""
        if extent not in ("element", "parameter", "optimizer"):
            raise ValueError(f"extent = {extent!r} must be 'element', 'parameter' or 'optimizer'")
        if extent != "element" and self.kind in ("copy_of_weight", "constant"):
            other = "zeros or full(...)" if self.kind == "copy_of_weight" else "a field annotated Scalar"
            raise ValueError(f"{self.kind} has one value per element; use {other} for other extents")
        return self._replace(extent=extent)

    @property
    def is_constant(self) -> bool:
        """Whether it is read and never written."""
        return self.kind == "constant"

    def real(self) -> Slot:
        """The same slot, real also for complex weights."""
        return self._replace(is_real=True)


zeros = Slot("zeros")
zeros_real = Slot("zeros").real()
copy_of_weight = Slot("copy_of_weight")


def full(value: float) -> Slot:
    """A slot that starts with `value` everywhere."""
    number = as_float(value)
    if number is None:
        raise ValueError(f"full({value!r}): a slot starts with a number")
    return Slot("full", number)


class ConstantSlot(Slot):
    """`constant`: an array of the weight's shape that the rule reads and no step writes: a mask, a preconditioner.

    It is declared as `zeros` is. The caller fills it, `opt.state["psi"]["mask"][...] = mask`; until then it is 1
    everywhere, or `value` with `constant(value)`. It is saved and loaded with the state, `opt.reset` leaves it alone.
    The kernel reads it in the same pass, and does not write it back.

    Examples
    --------
    >>> import numpy as np, optimkit
    >>> class MaskedDescent(optimkit.Optimizer):
    ...     lr: optimkit.NonNegative = 0.5
    ...     def slots(self):
    ...         return {"mask": optimkit.constant}
    ...     def update(self, w, g, s, h, xp):
    ...         return h.lr * s.mask * g
    >>> w = np.zeros(3)
    >>> opt = MaskedDescent(w)
    >>> opt.state["0"]["mask"][...] = [1.0, 0.0, 0.5]
    >>> result = opt.step(np.ones(3))
    >>> w
    array([-0.5 ,  0.  , -0.25])
    """

    def __call__(self, value: float = 1.0) -> Slot:
        """The same with another value to start with."""
        number = as_float(value)
        if number is None:
            raise ValueError(f"constant({value!r}): it starts with a number; fill it with opt.state[name][slot][...] = array")
        return self._replace(value=number)


constant = ConstantSlot("constant", 1.0)
