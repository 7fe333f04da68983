"""The graph: immutable, interned nodes. Two equal expressions are one node.

    graph = Graph()
    x = graph.leaf("g", ELEMENT)
    graph.apply("multiply", x, x) is graph.apply("multiply", x, x)      # True

Constants are keyed on type and bits, so that 1, 1.0 and True, or 0.0 and -0.0, stay apart.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from optimkit.fusion.operations import OPERATIONS


class Level(enum.IntEnum):
    """Where a value is known, and in which precision.

    HOST: numbers, computed in Python once a step, float64. UNIFORM: one value per parameter or
    per optimizer, known after a reduction, float64. ELEMENT: one value per element, in the
    compute dtype.
    """

    HOST = 0
    UNIFORM = 1
    ELEMENT = 2


REAL, COMPLEX, BOOLEAN = "real", "complex", "boolean"

# Reductions over the elements of one parameter (to a uniform value), always in float64.
REDUCTIONS = ("sum", "sum_of_squares", "max", "min")


@dataclass(frozen=True, eq=False, repr=False)
class Node:
    """One value: a leaf ("number", "constant", "w", "g", "slot", "input", "size"), an operation, a reduction, a call.

    `key` tells leaves apart, holds the value of a constant, the power of two by which `sum_of_squares` scales,
    and the label of a `total`. `whole` marks integer-valued numbers. An "input" is an array that is read and never
    written. A "call" is a function of whole arrays, its `key`, and each "result" is an array that comes out of it.
    """

    op: str
    args: tuple[Node, ...]
    key: Hashable
    level: Level
    kind: str = REAL
    whole: bool = False

    @property
    def is_leaf(self) -> bool:
        return not self.args


class WholeFunction(Protocol):
    """A function of whole arrays, told apart by its identity: the hook `method` of the rule `index` of a chain.

    It takes the name of a parameter, `count` arrays and any number of numbers, and returns arrays, one for each of `results`.
    """

    index: int
    method: str
    count: int
    results: tuple[str, ...]

    @property
    def label(self) -> str: ...

    def __call__(self, parameter: str, given: Sequence[Any], numbers: Sequence[Any]) -> list[Any]: ...


class KindError(TypeError):
    """An operation was given a kind of value that it has no meaning for."""


class Graph:
    """Makes nodes, each only once."""

    def __init__(self) -> None:
        self._nodes: dict[Hashable, Node] = {}

    def leaf(self, op: str, level: Level, key: Hashable = None, kind: str = REAL, whole: bool = False) -> Node:
        return self._intern(Node(op, (), key, level, kind, whole))

    def constant(self, value: bool | int | float) -> Node:
        kind = BOOLEAN if isinstance(value, bool) else REAL
        whole = kind == REAL and float(value).is_integer()
        identity = (type(value).__name__, struct.pack("<d", float(value)))
        return self._intern(Node("constant", (), value, Level.HOST, kind, whole), identity)

    def apply(self, op: str, *args: Node) -> Node:
        """An operation on nodes; its level is the highest of its arguments."""
        kind = _result_kind(op, args)
        whole = op in ("add", "subtract", "multiply") and all(arg.whole for arg in args)
        return self._intern(Node(op, args, None, max(arg.level for arg in args), kind, whole))

    def reduce(self, op: str, arg: Node, scale: int = 0) -> Node:
        """A reduction of one parameter's elements to one value."""
        if arg.level is not Level.ELEMENT:
            raise KindError(f"xp.{op} of a number: it reduces the elements of an array")
        if arg.kind == COMPLEX and op in ("max", "min"):
            raise KindError(f"xp.{op} has no meaning for complex values; take xp.abs first")
        kind = COMPLEX if arg.kind == COMPLEX and op == "sum" else REAL
        return self._intern(Node(op, (arg,), scale, Level.UNIFORM, kind))

    def total(self, arg: Node, label: Hashable) -> Node:
        """The sum of a uniform value over all parameters that take part in the step."""
        return self._intern(Node("total", (arg,), label, Level.UNIFORM, arg.kind))

    def call(self, function: WholeFunction, args: Iterable[Node]) -> list[Node]:
        """The arrays that come out of a function of whole arrays and numbers, which is called between two passes."""
        call = self._intern(Node("call", tuple(args), cast(Hashable, function), Level.ELEMENT))
        keys = [(function.index, function.method, name) for name in function.results]
        return [self._intern(Node("result", (call,), key, Level.ELEMENT)) for key in keys]

    def _intern(self, node: Node, identity: Hashable = None) -> Node:
        key = (node.op, tuple(id(arg) for arg in node.args), identity if identity is not None else node.key, node.kind)
        return self._nodes.setdefault(key, node)

    def __len__(self) -> int:
        return len(self._nodes)


def _result_kind(op: str, args: tuple[Node, ...]) -> str:
    operation = OPERATIONS[op]
    kinds = [arg.kind for arg in (args[1:] if op == "where" else args)]
    if op == "where" and args[0].kind != BOOLEAN:
        raise KindError("the first argument of xp.where must be a comparison, such as g > 0")
    if operation.domain == "boolean" and set(kinds) != {BOOLEAN}:
        raise KindError(f"xp.{op} takes comparisons, such as g > 0, not values")
    if operation.domain == "real" and COMPLEX in kinds:
        raise KindError(f"xp.{op} has no meaning for complex values; take xp.abs, xp.real or xp.imag first")
    if operation.domain != "boolean" and op not in ("where", "equal", "not_equal") and BOOLEAN in kinds:
        raise KindError(f"xp.{op} of a comparison: write xp.where(condition, 1.0, 0.0) where a number is meant")
    if operation.result != "same":
        return operation.result
    if len(set(kinds)) > 1 and BOOLEAN in kinds:
        raise KindError(f"xp.{op} mixes a comparison with values")
    return COMPLEX if COMPLEX in kinds else kinds[0]


def walk(roots: Iterable[Node]) -> Iterator[Node]:
    """All nodes below `roots`, each once, arguments before what uses them."""
    done: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            yield node
        else:
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args) if id(arg) not in done)
