"""The run of an optimizer: what it trains, where it stands, and what is prepared for its next step.

`Optimizer` is the face that users see; it has one `Run`, and hands it to whatever works on it: membership, numbers,
steps, state. What is prepared is made anew after a change of structure (`forget`).
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from optimkit.containers.param import Param, Where
from optimkit.containers.tree import Tree, data_of
from optimkit.driver.entries.entry import Entry
from optimkit.driver.entries.group import Group
from optimkit.driver.entries.selection import check_links, select
from optimkit.driver.entries.slots import called
from optimkit.driver.gradients.collect import Gradients
from optimkit.driver.living import living
from optimkit.driver.members.watch import ContainerWatch
from optimkit.driver.orders import Orders
from optimkit.driver.steps.bucket import Bucket
from optimkit.driver.steps.build import Steps, build_buckets
from optimkit.driver.steps.common import Common
from optimkit.driver.steps.exchange import Exchange
from optimkit.driver.steps.underway import Underway
from optimkit.driver.steps.uniforms import SharedSlots
from optimkit.driver.steps.warm import WarmStep
from optimkit.engines.atomic import at_once
from optimkit.engines.protocol import Call
from optimkit.rules.chain import Chain, Conventions
from optimkit.rules.links import Transform
from optimkit.rules.rule import Rule


class Settings(NamedTuple):
    """The options of an optimizer that hold for its life."""

    conventions: Conventions
    nonfinite: str
    engine: str | None
    capturable: bool


@dataclass(eq=False, repr=False)
class Run:
    """What an optimizer trains, and where it stands.

    Attributes
    ----------
    kind : type
        The class of the optimizer.
    links : sequence of Transform
        Its links: those of a preset, transforms, penalty.
    groups, entries, roots
        Groups of values, parameters, and the containers that these stand in. `first` has the values that the optimizer was
        built with, for parameters that come without their own.
    shared : SharedSlots
        The slots that the optimizer has once, by key.
    counted : array
        How often `step` was called, (1,) int64: compiled code counts there too. `count` is its value.
    ever, passed : bool
        Whether there ever was a gradient, and whether the latest were passed to `step`.
    shown : bool
        The caller may have views of slots.
    stepping : Underway
        True while a step is under way.
    whole : bool
        What is prepared is prepared wholly. While a step prepares, it is not; so if that is interrupted.
    steps, gradients, watch
        What is prepared for the next step; None after a change of structure.
    warm : WarmStep, optional
        What takes a step where nothing is new; None where nothing can, `warm_tried` or it is not known yet.
    versions : int
        The versions of the links' structure that the steps were made for.
    asked : dict
        What schedules gave in this step, by id.
    owners : dict
        The schedulers that live, by the keys of their factors.
    captured : list
        What CUDA graphs of this optimizer go on using.
    orders : Orders
        What keeps the work on each device in order.
    """

    kind: type[Rule]
    settings: Settings
    links: Sequence[Transform]
    groups: list[Group]
    first: Group
    entries: list[Entry] = field(default_factory=list)
    roots: list[Tree] = field(default_factory=list)
    shared: SharedSlots = field(default_factory=SharedSlots)
    counted: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    ever: bool = False
    passed: bool = False
    shown: bool = False
    stepping: Underway = field(default_factory=Underway)
    whole: bool = True
    steps: Steps | None = None
    gradients: Gradients | None = None
    watch: ContainerWatch | None = None
    warm: WarmStep | None = None
    warm_tried: bool = False
    versions: int = 0
    asked: dict[int, Any] = field(default_factory=dict)
    owners: dict[int, weakref.WeakSet[Any]] = field(default_factory=dict)
    captured: list[Any] = field(default_factory=list)
    orders: Orders = field(init=False)
    lock: Any = field(default_factory=threading.RLock)
    _named: tuple[Any, dict[str, Entry]] = (None, {})

    def __post_init__(self) -> None:
        here = weakref.ref(self)
        self.orders = Orders(self, lambda: here().entries, self.captured)  # type: ignore[union-attr]
        living.add(self)

    @property
    def count(self) -> int:
        """How often `step` was called."""
        return int(self.counted[0])

    @count.setter
    def count(self, count: int) -> None:
        self.counted[0] = count

    # ---- looking up

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    @property
    def by_name(self) -> dict[str, Entry]:
        """The entries by name; made once for a list of entries, which each change replaces."""
        if self._named[0] is not self.entries:
            self._named = self.entries, {entry.name: entry for entry in self.entries}
        return self._named[1]

    def entry(self, name: str) -> Entry:
        """The parameter of a name, with its count as it is now."""
        if name not in self.by_name:
            raise KeyError(f"there is no parameter {name!r}; there are {', '.join(self.names) or 'none yet'}")
        self.store_count(self.by_name[name])
        return self.by_name[name]

    def select(self, where: Where) -> list[Entry]:
        """The parameters that `where` selects, with their counts; an error where there are none."""
        self.store_counts()
        return select(self.entries, where)

    def refuse_in_step(self, what: str) -> None:
        """Raise RuntimeError where a step is under way, whose counts would be lost."""
        if self.stepping:
            kind = self.kind.__name__
            raise RuntimeError(
                f"{kind}.{what} was called in its own step, by a schedule, a hook or a signal handler; call it between steps"
            )

    def require_entries(self) -> None:
        """Raise RuntimeError where there are no parameters."""
        if not self.entries:
            raise RuntimeError(f"{self.kind.__name__} has no parameters yet; call opt.bind(params)")

    @contextmanager
    def touching(self, allocates: bool = False) -> Iterator[None]:
        """Hold the lock, to read or write the state."""
        with self.lock:
            self.orders.enter(allocates, replays=True)
            try:
                yield
            finally:
                self.orders.leave()

    # ---- rules and numbers

    def chain(self, entry: Entry | None = None) -> Chain:
        """The chain of a parameter; without one, that of the first group with all links."""
        if entry is None:
            return self.chain_of(self.groups[0])
        return self.chain_of(entry.group, entry.param, entry.name, self.by_name)

    def shares(self, link: Transform) -> bool:
        """Whether another optimizer has a link too."""
        return any(other is not self and any(each is link for each in other.links) for other in list(living))

    def chain_of(self, group: Group, param: Param | None = None, name: str = "", names: Container[str] = ()) -> Chain:
        """The chain of a parameter, one of `names`, with the values of a group; all links where there is no parameter."""
        return Chain.of(group.rule(self.kind), self.links, self.settings.conventions, param, name, names)

    # ---- what is prepared

    def build_buckets(self) -> list[Bucket]:
        """The buckets of the parameters as they are now."""
        settings = self.settings
        check, device_count = settings.nonfinite != "allow", settings.nonfinite == "skip" or settings.capturable
        return build_buckets(self.entries, self.chain, check, settings.engine, device_count)

    def ready_steps(self) -> Steps:
        """The steps, made anew where structure changed."""
        if self.steps is None:
            settings = self.settings
            self.orders.enter(allocates=True)
            self.shared.ensure(self.chain().slots(), fresh=not self.count)
            policy, exchange, orders = settings.nonfinite, Exchange(len(self.entries)), self.orders.by_device
            common = Common(exchange, self.shared, policy, settings.capturable, orders)
            steps = Steps(self.build_buckets(), common)
            if self.captured:
                warnings.warn(
                    "a CUDA graph of this optimizer goes on with the arrays, counts and structure that it was captured "
                    "with: capture again",
                    RuntimeWarning,
                    stacklevel=5,
                )
            self.steps = steps
            self.forget_warm()
            if self.gradients is not None:
                self.gradients.settled = False  # these have seen none
                if steps.device is not None:  # what is new there compiles for long: all at once
                    self.warm, self.warm_tried = self._make_warm(self.gradients), True
        return self.steps

    def ready_gradients(self) -> tuple[Gradients, ContainerWatch]:
        """What looks at gradients and at the containers, made anew where structure changed."""
        if self.gradients is None or self.watch is None:
            slots = self.slots_shown()
            self.gradients = Gradients(self.entries, self.roots, list(slots.values()), self.ever, self.passed)
            self.watch = ContainerWatch(self.entries, self.roots, slots)
        return self.gradients, self.watch

    def ready_warm(self) -> WarmStep | None:
        """What takes warm steps, made after the first step."""
        if self.warm is None and not self.warm_tried and self.gradients is not None and self.gradients.settled:
            self.warm, self.warm_tried = self._make_warm(self.gradients), True
        return self.warm

    def compile_ahead(self) -> None:
        """Compile what steps of these parameters may need."""
        self.check_versions()
        gradients, _ = self.ready_gradients()
        for bucket in self.ready_steps().buckets:
            bucket.runner.compile_ahead()
        if not self.warm_tried:
            self.warm, self.warm_tried = self._make_warm(gradients), True

    def _make_warm(self, gradients: Gradients) -> WarmStep | None:
        make = self.steps.compiled_step() if self.steps is not None else None
        if self.steps is None or self.watch is None or make is None:
            return None
        buckets, compiled = self.steps.buckets, gradients.fingerprints.compile(make)
        checked = self.settings.nonfinite != "allow"
        result = self.steps.device.result_of_all if self.steps.device is not None else None
        return WarmStep.of(gradients, self.watch, buckets, compiled, self.shared, checked, self.counted, result)

    def forget_warm(self) -> None:
        """Steps are not warm any more."""
        self.warm, self.warm_tried = None, False

    def check_versions(self) -> None:
        """Make the buckets anew where the structure of a link was changed."""
        versions = sum(link.__dict__.get("_version", 0) for link in self.links)
        if versions != self.versions:
            check_links(self.links, self.entries)
            self.store_counts()
            self.orders.settle()
            self.steps, self.versions = None, versions
            self.forget_warm()

    def forget(self) -> None:
        """Structure changed: what is prepared is made anew at the next step."""
        self._change_structure(())

    def change(self, calls: Iterable[Call], structure: bool = True) -> None:
        """Make calls of compiled code that change something: all, or none. Where `structure` changes, all is made anew.

        A handler of a signal that steps meanwhile is refused, as in a step.
        """
        if structure:
            self.stepping.call(partial(self._change_structure, calls))
        else:
            at_once(calls)

    def _change_structure(self, calls: Iterable[Call]) -> None:
        self.store_counts()
        self.orders.settle()
        at_once([*calls, partial(self.__dict__.update, steps=None, **self._no_gradients())])

    def _no_gradients(self) -> dict[str, Any]:
        """What to set, at once, so that gradients and containers are looked at anew in the next step."""
        self.orders.forget()
        seen = {} if self.gradients is None else {"ever": self.gradients.ever, "passed": self.gradients.passed}
        return {"gradients": None, "watch": None, "warm": None, "warm_tried": False, **seen}

    def show_slots(self) -> None:
        """The caller has views of slots: a gradient, or a weight, can share memory with them from now on."""
        if not self.shown:
            if self.warm is not None:
                self.warm.hand_over()
            self.__dict__.update(shown=True, **self._no_gradients())

    def slots_shown(self) -> dict[str, Any]:
        """The slots that the caller may have views of, by what they are called in errors."""
        return called(self.entries, self.shared) if self.shown else {}

    def renew(self) -> None:
        """A step was interrupted as it prepared: nothing that was prepared is trusted, and all is made anew."""
        self.forget()
        for entry in self.entries:
            if entry.taken is not entry.param.data and data_of(entry.anchor) is entry.param.data:
                entry.take_data()  # adopted already, as the container has it
        self.whole = True

    def store_count(self, entry: Entry) -> None:
        if self.steps is not None:
            with self._reading_counts():
                self.steps.store_count(entry)

    def store_counts(self) -> None:
        """Write the update counts back to the entries."""
        if self.steps is not None:
            with self._reading_counts():
                self.steps.store_counts()

    def _reading_counts(self) -> AbstractContextManager[None]:
        return self.touching() if self.steps is not None and self.steps.device is not None else nullcontext()
