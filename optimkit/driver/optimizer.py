"""The face of all optimizers: what is set when one is built, and what is asked of it.

What it trains and where it stands is in its `Run`; `take_step` is the step. Which parameters there are is the matter of
`Membership`, their numbers that of `Hyperparameters`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from optimkit.driver.entries.group import Group
from optimkit.driver.explain import Explain
from optimkit.driver.members.changes import zero_own_gradients
from optimkit.driver.membership import Membership
from optimkit.driver.run import Run, Settings
from optimkit.driver.step import take_step
from optimkit.driver.steps.result import StepResult
from optimkit.driver.values import step_number
from optimkit.engines.choose import check_engine
from optimkit.rules.chain import Conventions
from optimkit.rules.links import Penalty, Transform, check_hooks

POLICIES = ("allow", "raise", "skip")


class Optimizer(Membership, base=True):
    """What all optimizers share: parameters, steps, numbers and state.

    A new optimizer declares its numbers as annotated fields, its state in `slots`, its update in
    `update`; `optimkit.rules.rule` shows one in ten lines.

    Parameters
    ----------
    params : parameters, optional
        An array, `Param`, dicts, lists and tuples of them, nested; an object with
        `.named_parameters()`, `.parameters()` or `.params()`; a list of groups, dicts with
        "params" and values of their own. Without it, `bind` comes later.
    penalty : Penalty, optional
        `L1`, `L2`, `ElasticNet`, or one's own. Added to the gradient after all transforms.
    transforms : sequence of Transform, optional
        Links of the chain, in order; see `optimkit.transforms`.
    maximize : bool, default False
        Ascend: the gradient is negated before everything else.
    nonfinite : {"allow", "raise", "skip"}, default "allow"
        What happens when a gradient has NaN or Inf: nothing special, `NonFiniteGradientError`, or no
        step (`result.applied` is False). With "raise" and "skip" nothing is written.
    engine : {None, "eager", "llvm", "cuda"}
        None chooses by the arrays.
    capturable : bool, default False
        Steps may be captured in a CUDA graph: update counts and numbers live on the device. The first step,
        and a step after an array was replaced, must run outside of the capture. For CuPy arrays only.
    """

    params: Any = None
    penalty: Penalty | None = dataclasses.field(default=None, kw_only=True)
    transforms: Sequence[Transform] = dataclasses.field(default=(), kw_only=True)
    maximize: bool = dataclasses.field(default=False, kw_only=True)
    nonfinite: Literal["allow", "raise", "skip"] = dataclasses.field(default="allow", kw_only=True)
    engine: str | None = dataclasses.field(default=None, kw_only=True)
    capturable: bool = dataclasses.field(default=False, kw_only=True)

    _driver_fields: ClassVar[tuple[str, ...]] = (
        "params", "penalty", "transforms", "maximize", "nonfinite", "engine", "capturable"
    )  # fmt: skip

    explain = Explain()

    def __post_init__(self) -> None:
        if type(self).update is Optimizer.update:
            raise TypeError(f"{type(self).__name__} must define update(self, w, g, s, h, xp)")
        params = self.__dict__.pop("params")
        self.__dict__["transforms"] = _check_options(self)
        penalties = [self.penalty] if self.penalty is not None else []
        links = (*self.links(), *self.transforms, *penalties)
        first = Group({name: self.__dict__[name] for name in (*self._numbers, *self._own_structure())})
        settings = Settings(Conventions(self.maximize), self.nonfinite, self.engine, self.capturable)
        self.__dict__["_run"] = Run(type(self), settings, links, [first], first)
        self.validate(first.rule(type(self)))
        if params is not None:
            self.bind(params)

    def _hooks(self) -> tuple[str, ...]:
        return ("update",)

    def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
        """The rule itself: (step, {slot: new value}), the step to be subtracted from `w`.

        Parameters
        ----------
        w, g : array
            The weight and the gradient of one parameter, after the gradient hooks.
        s : namespace
            The slots: `s.m`.
        h : namespace
            The numbers: `h.lr`; and `h.t`, the count of updates of this parameter, from 1.
        xp : namespace
            The array API's elementwise functions, `sum`, `mean`, `max` and `min`.
        """
        raise TypeError(f"{type(self).__name__} must define update(self, w, g, s, h, xp)")

    def step(self, grads: Any = None, *, zero_grad: bool = False) -> StepResult:
        """Update all parameters that have a gradient.

        Parameters
        ----------
        grads : gradients, optional
            They mirror the parameters: a dict by the same keys, a list as long, an array for an
            array. Missing or None: that parameter is skipped. Without it `.grad` is read. Gradients
            are read during the call and never written, unless `zero_grad` asks for it.
        zero_grad : bool
            Fill the gradients with zeros, in the same pass. Done after a skipped step too.

        Returns
        -------
        StepResult
            `applied`, and `grad_norm` where it was computed.

        Raises
        ------
        TypeError, ValueError, KeyError
            If a gradient does not fit its weight, or a container was changed. Nothing is written.
        NonFiniteGradientError
            With `nonfinite="raise"`. Nothing is written.
        """
        with self._run.lock:
            return take_step(self._run, grads, zero_grad)

    def warm_up(self) -> None:
        """Compile ahead of the first step all that steps of these parameters may need.

        Any set of gradients and any memory layout of theirs is covered; so are later steps, until structure changes. Nothing
        is written and nothing is counted. Without it the first two steps of a process compile what they need, or find it
        in the folder of kernels. The first compile is a line of the logger "optimkit", at level INFO.

        Raises
        ------
        RuntimeError
            If there are no parameters yet, or it is called in a step.
        KernelError
            If a kernel can't be compiled; it is a RuntimeError, and holds the kernel's text.

        Examples
        --------
        >>> import numpy as np, optimkit
        >>> opt = optimkit.Adam({"w": np.ones(3)}, lr=1e-3)
        >>> opt.warm_up()
        >>> opt.count
        0
        """
        run = self._run
        with run.touching(allocates=True):
            run.require_entries()
            run.refuse_in_step("warm_up()")
            run.compile_ahead()

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Fill the gradients in `.grad` with zeros, or set them to None.

        A NaN in a gradient becomes 0 too. Gradients passed to `step(grads)` are not kept and can't
        be zeroed here: use `step(grads, zero_grad=True)`.
        """
        zero_own_gradients(self._run, set_to_none)

    def upload_numbers(self) -> None:
        """Bring numbers that changed to the device, without a step: a CUDA graph that is replayed sees them.

        Needed with `capturable=True` and between replays only; every `step()` does it too. Schedules are taken at
        `count`, which replays do not advance.

        Raises
        ------
        ValueError
            If the optimizer was not built with `capturable=True`.
        """
        if not self.capturable:
            raise ValueError("upload_numbers() is for capturable = True; without it every step takes the numbers as they are")
        run = self._run
        with run.lock:
            run.orders.enter()
            steps = run.ready_steps()
            steps.fill_rows(partial(step_number, run))
            if steps.device is not None:
                steps.device.upload()
            run.orders.leave()

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
        from optimkit.driver.functional import api  # at first use: most never need it

        return api.init(self._run, params)

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
        from optimkit.driver.functional import api

        return api.apply(self._run, params, grads, state)

    def get_lr(self) -> Any:
        """The learning rate, as `opt.lr` reads it."""
        return self.lr

    def set_lr(self, lr: Any) -> None:
        """Set the learning rate of all groups, as `opt.lr = lr` does."""
        self.lr = lr

    def __repr__(self) -> str:
        text = super().__repr__()[:-1]
        count = len(self._run.entries)
        return f"{text}; {count} parameter{'s' * (count != 1)})"


def _check_options(self: Optimizer) -> tuple[Transform, ...]:
    """The transforms as a tuple, after all options were checked."""
    name = type(self).__name__
    check_engine(self.engine)
    if self.nonfinite not in POLICIES:
        raise ValueError(f"{name}: nonfinite = {self.nonfinite!r} must be one of {', '.join(map(repr, POLICIES))}")
    for option in ("maximize", "capturable"):
        if not isinstance(getattr(self, option), bool):
            raise TypeError(f"{name}: {option} = {getattr(self, option)!r} must be True or False")
    if self.capturable and self.nonfinite == "raise":
        raise ValueError(
            f"{name}: nonfinite = 'raise' waits for the device, which a captured step can't; use 'skip' with capturable = True"
        )
    if self.penalty is not None and not isinstance(self.penalty, Penalty):
        raise TypeError(f"{name}: penalty = {self.penalty!r} must be a Penalty, such as optimkit.L2(1e-4)")
    links = self.transforms if isinstance(self.transforms, list | tuple) else None
    if links is None or not all(isinstance(link, Transform) for link in links):
        raise TypeError(f"{name}: transforms = {self.transforms!r} must be a list of Transforms, such as [ClipByValue(1.0)]")
    for link in [*links, *([self.penalty] if self.penalty is not None else [])]:
        check_hooks(link)
    return tuple(links)
