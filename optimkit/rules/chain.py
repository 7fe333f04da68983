"""The chain: an optimizer with its links, as one function of one parameter.

The order, documented once: cast, maximize, the gradient hooks as listed, penalties
last, `update`, the step hooks, `w - d`, the weight hooks. The same `run` is traced into a
graph and called by hand with concrete values; there is no second text of the order.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from optimkit.containers.param import Param, matches
from optimkit.fusion.graph import KindError
from optimkit.fusion.trace import TraceError
from optimkit.rules.functions import active
from optimkit.rules.links import Penalty, Transform
from optimkit.rules.rule import Rule
from optimkit.rules.slots import Slot
from optimkit.rules.whole import Numbers, Slots, WholeCall, split

SlotKey = tuple[int, str]  # (index of the rule in the chain, name of the slot); the optimizer has index 0
Finder = Callable[[int, Rule], Numbers]


class Conventions(NamedTuple):
    """The options of an optimizer that are part of its formula."""

    maximize: bool = False


PLAIN = Conventions()


class Chain(NamedTuple):
    """An optimizer's rule and the links that apply to a parameter, with their index in the list."""

    optimizer: Rule
    links: tuple[tuple[int, Transform], ...] = ()
    conventions: Conventions = PLAIN

    @classmethod
    def of(
        cls,
        rule: Rule,
        links: Sequence[Transform] = (),
        conventions: Conventions = PLAIN,
        param: Param | None = None,
        name: str = "",
        names: Container[str] = (),
    ) -> Chain:
        """The chain of one parameter: the links whose `where` selects it, of all `names`. Without a parameter: all links."""
        numbered = enumerate(links, 1)
        chosen = tuple((index, link) for index, link in numbered if param is None or matches(link.where, param, name, names))
        return cls(rule, chosen, conventions)

    @property
    def rules(self) -> tuple[tuple[int, Rule], ...]:
        return ((0, self.optimizer), *self.links)

    @property
    def elementwise(self) -> bool:
        """Whether all of it is computed element by element, in kernels."""
        return all(rule.elementwise for _, rule in self.rules)

    def key(self) -> Hashable:
        return self.conventions, tuple((index, rule._structure_key()) for index, rule in self.rules)

    def slots(self) -> dict[SlotKey, Slot]:
        """All slots of the chain, checked."""
        found: dict[SlotKey, Slot] = {}
        for index, rule in self.rules:
            declared = rule._ask_slots()
            if not isinstance(declared, Mapping):
                raise TypeError(f"{type(rule).__name__}.slots() = {declared!r} must be a dict, such as {{'m': zeros}}")
            for name, slot in declared.items():
                if not isinstance(name, str) or name.startswith("_"):
                    what = f"{type(rule).__name__}.slots() has {name!r}"
                    raise TypeError(f"{what}: the name of a slot is a str without a _ in front")
                if not isinstance(slot, Slot):
                    raise TypeError(
                        f"{type(rule).__name__}.slots()[{name!r}] = {slot!r} must be a slot: zeros, zeros_real, "
                        "full(value), copy_of_weight or constant(value)"
                    )
                if slot.extent != "element" and not rule.elementwise:
                    raise TypeError(
                        f"{type(rule).__name__}.slots()[{name!r}] is per {slot.extent}; a rule with elementwise = False has "
                        "slots of the weight's shape alone"
                    )
                found[index, name] = slot
        return found

    def slot_label(self, key: SlotKey) -> str:
        """The name of a slot in `opt.state` and in files: the optimizer's plain, a link's with its class."""
        index, name = key
        if index == 0:
            return name
        kinds = [type(link).__name__ for _, link in self.links]
        place = [number for number, _ in self.links].index(index)
        kind = kinds[place]
        ordinal = kinds[:place].count(kind)
        return f"{kind}{ordinal + 1 if ordinal else ''}.{name}"


def run(chain: Chain, w: Any, g: Any, slots: Mapping[SlotKey, Any], numbers: Finder, xp: Any) -> tuple[Any, dict[SlotKey, Any]]:
    """One step of one parameter: the new weight and the new slots.

    `numbers(index, rule)` gives the `h` of a rule. Values may be traced or concrete.
    """
    token = active.set(xp)
    try:
        declared = chain.slots()
        new: dict[SlotKey, Any] = {}
        seen = {
            index: (rule._structure_only(), Slots(rule, _own(slots, index)), numbers(index, rule))
            for index, rule in chain.rules
        }

        def call(index: int, method: str, *args: Any) -> Any:
            rule, s, h = seen[index]
            xp.owner = index
            try:
                if rule.elementwise:
                    returned = getattr(rule, method)(*args, s, h, xp)
                else:
                    returned = WholeCall(index, method, rule, _written(declared, index), s, h).apply(xp, args, s, h)
            except (TraceError, KindError) as error:
                error.args = (f"{type(rule).__name__}.{method}: {error}",)
                raise
            result, changed = split(rule, method, returned)
            for name, value in changed.items():
                if problem := _not_to_return(declared, new, (index, name)):
                    raise TypeError(f"{type(rule).__name__}.{method} returns the slot {name!r} {problem}")
                new[index, name] = value
            return result

        if chain.conventions.maximize:
            g = -g
        for last in (False, True):
            for index, link in chain.links:
                if isinstance(link, Penalty) == last and "gradient" in link._hooks():
                    g = call(index, "gradient", w, g)
        d = call(0, "update", w, g)
        for index, link in chain.links:
            if "step" in link._hooks():
                d = call(index, "step", w, d)
        moved = w - d
        for index, link in chain.links:
            if "weight" in link._hooks():
                moved = call(index, "weight", w, moved)
        _check_complete(chain, declared, new)
        return moved, new
    finally:
        active.reset(token)


def _own(slots: Mapping[SlotKey, Any], index: int) -> dict[str, Any]:
    return {name: value for (owner, name), value in slots.items() if owner == index}


def _written(declared: Mapping[SlotKey, Slot], index: int) -> tuple[str, ...]:
    """The slots of a rule that it has to return."""
    return tuple(name for (owner, name), slot in declared.items() if owner == index and not slot.is_constant)


def _not_to_return(declared: Mapping[SlotKey, Slot], new: Mapping[SlotKey, Any], key: SlotKey) -> str:
    """What is wrong with a slot that was returned; empty if nothing is."""
    if key in new:
        return "twice"
    if key not in declared:
        return "but slots() does not declare it"
    return "but it is constant: it is read and never written" if declared[key].is_constant else ""


def _check_complete(chain: Chain, declared: Mapping[SlotKey, Slot], new: Mapping[SlotKey, Any]) -> None:
    names = dict(chain.rules)
    for (index, name), slot in declared.items():
        if (index, name) not in new and not slot.is_constant:
            rule = names[index]
            method = "update" if index == 0 else "its hooks"
            raise TypeError(
                f"{type(rule).__name__}: the slot {name!r} is declared by slots(), but {method} does not return it; "
                f'return (value, {{..., "{name}": new value}})'
            )
