"""The driver of all optimizers: parameters in, steps out.

A step walks: containers and gradients are checked (only what was replaced), host values are
computed, the reading stages run, totals are taken over all buckets, and the last stages write.
What parameters there are is the matter of `membership`, their numbers of `hyperparameters`; text and
functional form are that of `forms`.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from optimkit import arrays
from optimkit.driver import build
from optimkit.driver.bucket import Bucket
from optimkit.driver.commit import deferred_interrupts
from optimkit.driver.device import DeviceSteps
from optimkit.driver.entries import Group
from optimkit.driver.forms import Forms
from optimkit.driver.gradients import Gradients
from optimkit.driver.norms import gradient_norm, name_nonfinite, sum_parameters
from optimkit.driver.overlaps import zero
from optimkit.driver.result import NonFiniteGradientError, StepResult
from optimkit.driver.sources import Sources
from optimkit.engines.choose import check_engine, compiled_looks
from optimkit.rule import Penalty, Transform

POLICIES = ("allow", "raise", "skip")


class Optimizer(Forms, base=True):
    """What all optimizers share: parameters, steps, numbers and state.

    A new optimizer declares its numbers as annotated fields, its state in `slots`, its update in
    `update`; `optimkit.rule` shows one in ten lines.

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
    engine : {None, "eager", "numba", "cuda"}
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

    def __post_init__(self) -> None:
        if type(self).update is Optimizer.update:
            raise TypeError(f"{type(self).__name__} must define update(self, w, g, s, h, xp)")
        params = self.__dict__.pop("params")
        self.__dict__["transforms"] = _check_options(self)
        presets = self.links()
        links = (*presets, *self.transforms, *([self.penalty] if self.penalty is not None else []))
        values = {name: self.__dict__[name] for name in (*self._numbers, *self._own_structure())}
        first = Group(values)
        self.__dict__.update(_links=links, _groups=[first], _entries=[], _roots=[], _count=0, _shared={})
        self.__dict__.update(_buckets=None, _versions=0, _lock=threading.RLock(), _gradients=None, _sources=None)
        self.__dict__.update(_ever=False, _stepping=False, _captured=[])
        self.validate(first.rule(type(self)))
        if params is not None:
            self.bind(params)

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
        with self._lock:
            self._require_entries()
            if self._stepping:
                kind = type(self).__name__
                raise RuntimeError(f"{kind}.step() was called in its own step, by a schedule or a signal handler")
            try:
                self.__dict__["_stepping"] = True
                self._adopt_changed()
                values, frozen = self._gradients.collect(grads)
                buckets = [bucket for bucket in self._lend(values, zero_grad) if bucket.n_active]
                if buckets:
                    return self._run(buckets, [*values, *frozen], zero_grad)
                if zero_grad:
                    self._zero(frozen, False)
                self._count_step()
                return StepResult(False, 0.0)
            finally:
                for bucket in self._buckets or ():
                    bucket.take_back()
                self.__dict__["_stepping"] = False

    def _count_step(self) -> None:
        self.__dict__["_count"] += 1

    def _run(self, buckets: list[Bucket], values: list[Any], zero_grad: bool) -> StepResult:
        """`values` are the gradients to be zeroed, by place, those of frozen parameters after them."""
        on_host = [bucket for bucket in buckets if not bucket.on_device]
        for bucket in buckets:
            bucket.fill_rows(self._number)
        for bucket in on_host:
            bucket.runner.prepare(bucket.tables)
        with deferred_interrupts():
            if len(on_host) < len(buckets):
                return self._run_on_device(on_host, [bucket for bucket in buckets if bucket.on_device], values, zero_grad)
            self._reduce(buckets)
            norm = gradient_norm(buckets)
            applied = self.nonfinite == "allow" or norm is None or bool(np.isfinite(norm))
            if not applied and self.nonfinite == "raise":
                raise NonFiniteGradientError(name_nonfinite(buckets))
            self._count_step()
            if self._shared:  # their values are those of the first parameter: its bucket comes last
                buckets = sorted(buckets, key=lambda bucket: bucket.first_place, reverse=True)
            for bucket in buckets if applied else ():
                bucket.commit(zero_grad, self._shared)
            if zero_grad:
                self._zero(values, applied)
            return StepResult(applied, norm)

    def _run_on_device(self, on_host: list[Bucket], buckets: list[Bucket], values: list[Any], zero_grad: bool) -> StepResult:
        """A step of which all or a part runs on devices: the kernels themselves see whether it is applied."""
        device: DeviceSteps = buckets[0].device
        self._reduce(on_host)
        device.reduce(buckets)
        if self.nonfinite == "raise" and not np.isfinite(device.fetch_norm(buckets)):
            device.fetch_sums(buckets)
            raise NonFiniteGradientError(name_nonfinite(buckets))
        if device.capturing:
            self._captured.append(device)  # the graph goes on using its tables
        else:
            self._count_step()
        for bucket in on_host:
            bucket.commit(zero_grad, self._shared)
        device.commit(buckets, zero_grad)
        if zero_grad:
            self._zero(values, True)
        return device.result(buckets)

    def _reduce(self, buckets: list[Bucket]) -> None:
        """Run the reading stages, round by round; totals are taken over all buckets."""
        for bucket in buckets:
            bucket.start_uniforms(self._shared)
        for number in sorted({key for bucket in buckets for key in bucket.plan.uniform_rounds if key}):
            totals: dict[Hashable, np.ndarray] = {}
            for bucket in buckets:
                for place, stage in enumerate(bucket.plan.reading):
                    if stage.round == number:
                        bucket.reduce(place)
                for node in bucket.plan.uniform_rounds.get(number, ()):
                    if node.op == "total":
                        parts = totals.setdefault(node.key, np.zeros(len(self._entries)))
                        parts[bucket.places] = bucket.contribution(node.args[0])
            found = {key: sum_parameters(parts) for key, parts in totals.items()}
            for bucket in buckets:
                bucket.finish_round(number, found)

    def _ready(self) -> list[Bucket]:
        """The buckets, built anew where structure changed."""
        if self._buckets is None:
            buckets = self._build_buckets(self.engine)
            build.shared_slots(buckets, self._shared)
            if self.capturable and not all(bucket.on_device for bucket in buckets):
                raise ValueError(
                    "capturable = True is for CuPy arrays on the cuda engine; these parameters are on the host, or forced "
                    "to 'eager'"
                )
            if any(bucket.on_device for bucket in buckets):
                DeviceSteps(buckets, self._entries, self._shared, self.nonfinite == "skip", self.capturable)
            if self._captured:
                warnings.warn(
                    "a CUDA graph of this optimizer goes on with the arrays, counts and structure that it was captured "
                    "with: capture again",
                    RuntimeWarning,
                    stacklevel=5,
                )
            self.__dict__["_buckets"] = buckets
        return self._buckets  # type: ignore[no-any-return]

    def _build_buckets(self, engine: str | None) -> list[Bucket]:
        check, device_count = self.nonfinite != "allow", self.nonfinite == "skip" or self.capturable
        return build.build_buckets(type(self), self._entries, self._links, self.maximize, check, engine, device_count)

    def _adopt_changed(self) -> None:
        """Adopt weights that stand in their containers now."""
        if self._gradients is None:
            self.__dict__["_gradients"] = Gradients(self._entries, self._roots, self._ever)
            self.__dict__["_sources"] = Sources(self._entries, self._roots)
        changed = {id(entry) for entry in self._sources.changed()}
        places = [place for place, entry in enumerate(self._entries) if id(entry) in changed] if changed else []
        for place in places:
            entry = self._entries[place]
            if entry.take_data():
                self._relayout(entry)
            for bucket in self._buckets or ():
                bucket.adopt(place)
        if self._gradients is None:
            self._adopt_changed()
        for place in places:
            self._gradients.replaced_weight(place)

    def _lend(self, values: list[Any], zero_grad: bool) -> list[Bucket]:
        """Check the gradients, all of them before any is taken, and hand to the engines what they have not seen."""
        gradients = self._gradients
        versions = sum(link.__dict__.get("_version", 0) for link in self._links)
        if versions != self._versions:
            self._store_counts()
            self.__dict__.update(_buckets=None, _versions=versions)
        views = gradients.check(values, zero_grad, self._buckets is None)
        buckets = self._ready()
        if not gradients.settled:
            shifts = gradients.looks.now - gradients.looks.before
            for bucket in buckets:
                bucket.lend(views, shifts, gradients.apart)
            gradients.settle()
            if gradients.looks.compiled is None:
                gradients.make = compiled_looks((bucket.entries[0].param.library, bucket.runner) for bucket in buckets)
        for bucket in buckets:
            if not bucket.runner.keeps_addresses:
                bucket.lend_all(values)
        return buckets

    def _zero(self, values: list[Any], applied: bool) -> None:
        """Zero gradients outside of a pass: those that it could not, and all of them after a skipped step."""
        places: Iterable[int] = range(len(values))
        if applied:
            places = (*self._gradients.apart, *range(len(self._entries), len(values)))
        zero(arrays.view(values[place]) for place in places if values[place] is not None)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Fill the gradients in `.grad` with zeros, or set them to None.

        A NaN in a gradient becomes 0 too. Gradients passed to `step(grads)` are not kept and can't
        be zeroed here: use `step(grads, zero_grad=True)`.
        """
        self._zero_own(set_to_none)

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
        with self._lock:
            buckets = [bucket for bucket in self._ready() if bucket.n_active]
            for bucket in buckets:
                bucket.fill_rows(self._number)
            if buckets:
                buckets[0].device.upload(buckets)

    def get_lr(self) -> Any:
        """The learning rate, as `opt.lr` reads it."""
        return self.lr

    def set_lr(self, lr: Any) -> None:
        """Set the learning rate of all groups, as `opt.lr = lr` does."""
        self.lr = lr

    def __repr__(self) -> str:
        text = super().__repr__()[:-1]
        count = len(self._entries)
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
    return tuple(links)
