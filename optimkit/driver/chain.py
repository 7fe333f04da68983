"""The chain: an optimizer with its links, as one function of one parameter.

The order, documented once: cast, conjugate, maximize, the gradient hooks as listed, penalties
last, `update`, the step hooks, `w - d`, the weight hooks. The same `run` is traced into a
graph and called by hand with concrete values; there is no second text of the order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from optimkit.fusion.graph import BOOLEAN, Graph, KindError, Level, Node, walk
from optimkit.fusion.stages import GRADIENT, Program
from optimkit.fusion.trace import Traced, TraceError, TracingNamespace, as_node
from optimkit.numbers import Follow
from optimkit.rule import Penalty, Rule, Slot, Transform, _active

SlotKey = tuple[int, str]  # (index of the rule in the chain, name of the slot); the optimizer has index 0
Finder = Callable[[int, Rule], Any]

counters = {"traces": 0}


@dataclass(frozen=True)
class Chain:
    """An optimizer's rule and the links that apply to a parameter, with their index in the list."""

    optimizer: Rule
    links: tuple[tuple[int, Transform], ...] = ()
    maximize: bool = False

    @property
    def rules(self) -> tuple[tuple[int, Rule], ...]:
        return ((0, self.optimizer), *self.links)

    def key(self) -> Hashable:
        return self.maximize, tuple((index, rule._structure_key()) for index, rule in self.rules)

    def slots(self) -> dict[SlotKey, Slot]:
        """All slots of the chain, checked."""
        found: dict[SlotKey, Slot] = {}
        for index, rule in self.rules:
            declared = rule.slots()
            if not isinstance(declared, Mapping):
                raise TypeError(f"{type(rule).__name__}.slots() = {declared!r} must be a dict, such as {{'m': zeros}}")
            for name, slot in declared.items():
                if not isinstance(slot, Slot):
                    raise TypeError(
                        f"{type(rule).__name__}.slots()[{name!r}] = {slot!r} must be a slot: zeros, zeros_real, "
                        "full(value) or copy_of_weight"
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


class Slots:
    """`s` of a rule: its slots as attributes."""

    def __init__(self, rule: Rule, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)
        self.__dict__["_rule"] = type(rule).__name__

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(key for key in self.__dict__ if key != "_rule") or "none"
        raise AttributeError(f"{self._rule}: s.{name} is no slot; slots() declares {known}")


class Numbers:
    """`h` of a rule: its numbers, `h.t`, and for links the optimizer's `h.lr`."""

    def __init__(self, rule: Rule, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)
        self.__dict__["_rule"] = rule

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(key for key in self.__dict__ if key != "_rule")
        kind = "structure: write self." + name if name in self._rule._structure else "no number"
        raise AttributeError(f"{type(self._rule).__name__}: h.{name} is {kind}; h has {known}")


def run(chain: Chain, w: Any, g: Any, slots: Mapping[SlotKey, Any], numbers: Finder, xp: Any) -> tuple[Any, dict[SlotKey, Any]]:
    """One step of one parameter: the new weight and the new slots.

    `numbers(index, rule)` gives the `h` of a rule. Values may be traced or concrete.
    """
    token = _active.set(xp)
    try:
        new: dict[SlotKey, Any] = {}
        seen = {
            index: (rule._structure_only(), Slots(rule, _own(slots, index)), numbers(index, rule))
            for index, rule in chain.rules
        }

        def call(index: int, method: str, *args: Any) -> Any:
            rule, s, h = seen[index]
            xp.owner = index
            try:
                returned = getattr(rule, method)(*args, s, h, xp)
            except (TraceError, KindError) as error:
                error.args = (f"{type(rule).__name__}.{method}: {error}",)
                raise
            result, changed = _split(rule, method, returned)
            for name, value in changed.items():
                if (index, name) not in slots or (index, name) in new:
                    problem = "twice" if (index, name) in new else "but slots() does not declare it"
                    raise TypeError(f"{type(rule).__name__}.{method} returns the slot {name!r} {problem}")
                new[index, name] = value
            return result

        if chain.maximize:
            g = -g
        for last in (False, True):
            for index, link in chain.links:
                if isinstance(link, Penalty) == last and _overrides(link, "gradient"):
                    g = call(index, "gradient", w, g)
        d = call(0, "update", w, g)
        for index, link in chain.links:
            if _overrides(link, "step"):
                d = call(index, "step", w, d)
        moved = w - d
        for index, link in chain.links:
            if _overrides(link, "weight"):
                moved = call(index, "weight", w, moved)
        _check_complete(chain, slots, new)
        return moved, new
    finally:
        _active.reset(token)


def _own(slots: Mapping[SlotKey, Any], index: int) -> dict[str, Any]:
    return {name: value for (owner, name), value in slots.items() if owner == index}


def _overrides(link: Transform, hook: str) -> bool:
    return getattr(type(link), hook) is not getattr(Transform, hook)


def _split(rule: Rule, method: str, result: Any) -> tuple[Any, Mapping[str, Any]]:
    """`value` or `(value, slots)`, as a hook may return it."""
    if isinstance(result, tuple):
        if len(result) == 2 and isinstance(result[1], Mapping):
            return result[0], result[1]
        raise TypeError(f"{type(rule).__name__}.{method} must return a value, or (value, {{slot: new value}}); got {result!r}")
    if result is None:
        raise TypeError(f"{type(rule).__name__}.{method} returns None; it must return a value, or (value, {{slot: new value}})")
    return result, {}


def _check_complete(chain: Chain, slots: Mapping[SlotKey, Any], new: Mapping[SlotKey, Any]) -> None:
    names = dict(chain.rules)
    for index, name in slots:
        if (index, name) not in new:
            rule = names[index]
            method = "update" if index == 0 else "its hooks"
            raise TypeError(
                f"{type(rule).__name__}: the slot {name!r} is declared by slots(), but {method} does not return it; "
                f'return (value, {{..., "{name}": new value}})'
            )


def trace(
    chain: Chain, complex_weight: bool = False, wide: bool = False, check: bool = False, device_count: bool = False
) -> Program:
    """Trace a chain into a program.

    Parameters
    ----------
    wide : bool
        Norms are computed for float64 arrays, whose squares may overflow float64.
    check : bool
        The driver wants the norm of all gradients, to see whether they are finite.
    device_count : bool
        h.t lives on the device, where a skip is decided: what depends on it is uniform, not host.
    """
    counters["traces"] += 1
    graph = Graph()
    count_level = Level.UNIFORM if device_count else Level.HOST
    kind = "complex" if complex_weight else "real"
    xp = TracingNamespace(graph, wide)

    def leaf(op: str, level: Level, key: Hashable = None, kind: str = "real", whole: bool = False) -> Traced:
        return Traced(graph, graph.leaf(op, level, key, kind, whole))

    def numbers(index: int, rule: Rule) -> Numbers:
        own = {name: _traced_number(graph, index, rule, name) for name in rule._numbers}
        if index and "lr" in chain.optimizer._numbers:
            own = {"lr": _traced_number(graph, 0, chain.optimizer, "lr")} | own
        return Numbers(rule, {**own, "t": leaf("count", count_level, whole=True)})

    slots, shapes = {}, chain.slots()
    for (index, name), slot in shapes.items():
        level = Level.ELEMENT if slot.extent == "element" else Level.UNIFORM
        own_kind = "real" if slot.is_real or level is Level.UNIFORM else kind
        slots[index, name] = leaf("slot", level, (index, name, slot.extent), own_kind)
    w, g = leaf("w", Level.ELEMENT, kind=kind), leaf(str(GRADIENT), Level.ELEMENT, kind=kind)
    new_w, new_slots = run(chain, w, g, slots, numbers, xp)
    outputs: dict[Hashable, Node] = {"w": as_node(graph, new_w)}
    for (index, name), value in new_slots.items():
        node, slot = as_node(graph, value), shapes[index, name]
        what = f"{type(dict(chain.rules)[index]).__name__}: the new value of slot {name!r}"
        if node.kind == BOOLEAN:
            raise TypeError(f"{what} is a comparison; write xp.where(condition, 1.0, 0.0)")
        if slot.extent != "element" and node.level is Level.ELEMENT:
            declared = f"it is declared per {slot.extent}; reduce it, or declare it so"
            raise TypeError(f"{what} has one value per element, but {declared}")
        if slot.extent == "optimizer" and not _same_for_all(node):
            raise TypeError(f"{what} differs between parameters, but it is declared per optimizer; take total(...) of it")
        outputs["slot", index, name, slot.extent] = node
    if outputs["w"].kind == BOOLEAN:
        raise TypeError(f"{type(chain.optimizer).__name__}: the step is a comparison; write xp.where(condition, 1.0, 0.0)")
    xp.owner = "driver"
    measured = {id(node) for node in walk(outputs.values()) if node.op == "sum_of_squares"}
    gradient_norm = as_node(graph, xp.norm(-g if chain.maximize else g, total=True))
    if not check and not {id(node) for node in walk([gradient_norm]) if node.op == "sum_of_squares"} <= measured:
        return Program(type(chain.optimizer).__name__, outputs)
    return Program(type(chain.optimizer).__name__, outputs, gradient_norm)


def _traced_number(graph: Graph, index: int, rule: Rule, name: str) -> Any:
    declared, value = rule._numbers[name], rule.__dict__[name]
    if value is None:
        return None
    if isinstance(value, Follow):
        index, name = 0, value.name

    def number(position: int | None) -> Traced:
        return Traced(graph, graph.leaf("number", Level.HOST, (index, name, position)))

    return tuple(number(i) for i in range(len(declared.ranges))) if declared.many else number(None)


def _same_for_all(node: Node) -> bool:
    """Whether a uniform value is the same for all parameters: made of totals, optimizer slots and numbers."""
    if node.op in ("total", "count") or (node.op == "slot" and node.key[-1] == "optimizer"):  # type: ignore[index]
        return True
    if node.op == "size" or node.level is Level.ELEMENT or node.op == "slot":
        return False
    if node.level is Level.HOST:
        return True
    return bool(node.args) and all(_same_for_all(arg) for arg in node.args)
