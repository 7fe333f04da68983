"""What an optimizer offers besides steps: its formulas and kernels as text, and its functional form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optimkit.driver import build, functional
from optimkit.driver.membership import Membership
from optimkit.rule import Transform


class _Explain:
    """`Adam.explain("float32")` on the class, `opt.explain()` on an optimizer."""

    def __get__(self, optimizer: Any, cls: Any) -> Callable[..., str]:
        if optimizer is None:
            return cls._explain_class  # type: ignore[no-any-return]
        return optimizer._explain_self  # type: ignore[no-any-return]


class Forms(Membership, base=True):
    """An optimizer as text, and as two functions; `Optimizer` adds the step."""

    explain = _Explain()

    def _explain_self(self) -> str:
        """The stages and kernels of the optimizer's buckets, as text."""
        with self._lock:
            if not self._entries:
                return type(self)._explain_class("float32", rule=self._groups[0].rule(type(self)), links=self._links)
            texts = {}
            for bucket in self._build_buckets(self.engine):
                dtype, engine = bucket.entries[0].param.dtype, "cuda" if bucket.on_device else "numba"
                texts[id(bucket.plan), dtype, engine] = build.explain_plan(bucket.plan, dtype, engine)
            return "\n\n".join(texts.values())

    @classmethod
    def _explain_class(
        cls, dtype: str = "float32", engine: str = "numba", rule: Any = None, links: Sequence[Transform] | None = None
    ) -> str:
        """The stages and kernels of the rule for arrays of a dtype, as text."""
        if engine not in ("numba", "cuda"):
            raise ValueError(f"engine = {engine!r} must be 'numba' or 'cuda', the engines that make kernels")
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype = {dtype!r} must be 'float32' or 'float64'")
        if rule is None:
            optimizer = functional.default_rule(cls)
            rule, links = optimizer._groups[0].rule(cls), optimizer._links
        return build.explain_rule(cls, rule, links or (), dtype, False, False, engine)

    def init(self, params: Any) -> Any:
        """The state of the functional form, for immutable arrays and jitted functions.

        Parameters
        ----------
        params : arrays
            An array, or dicts, lists and tuples of them; float32 or float64, of any library.

        Returns
        -------
        dict
            A pytree: {"count": steps, "t": {name: updates}, "slots": {name: {slot: array}}, "shared": {slot: 0-d array}}.

        Raises
        ------
        TypeError
            If a parameter is no array, of a dtype that can't be trained, or in a group.
        ValueError
            If there are none, or `nonfinite` is not "allow": a function without effects can't refuse a step.
        """
        return functional.init(self, params)

    def apply(self, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        """One step in the functional form: (new params, new state); nothing is written.

        Parameters
        ----------
        params : arrays
            As given to `init`.
        grads : arrays
            They mirror the parameters; missing or None: that parameter is skipped.
        state : dict
            What `init` or the last `apply` returned.

        Returns
        -------
        tuple
            The new parameters, in the containers of `params`, and the new state.

        Raises
        ------
        TypeError, ValueError, KeyError
            If a gradient or the state does not fit.

        Notes
        -----
        NumPy arrays get the bits of a step in place. Inside of a jit the numbers are constants of the compiled
        function, and the counts are the library's: what depends on `h.t` is computed in its default precision, and
        a schedule must be a function that it can trace. Reductions go in C order, in float64 where there is one.

        Examples
        --------
        >>> import numpy as np, optimkit
        >>> rule = optimkit.SGD(lr=0.1)
        >>> params, state = rule.apply({"w": np.ones(2)}, {"w": np.ones(2)}, rule.init({"w": np.ones(2)}))
        >>> params["w"]
        array([0.9, 0.9])
        """
        return functional.apply(self, params, grads, state)
