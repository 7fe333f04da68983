"""Tracing: an update rule is called once with values that write down what is done to them.

`Traced` stands for an array or a number, `Namespace` for the array API namespace `xp`.
`Namespace` is also the base of the namespaces that compute (the oracle's, the functional
form's), so that `xp.clip` or `xp.square` mean the same everywhere.

>>> from optimkit.fusion.graph import Graph, Level
>>> graph = Graph()
>>> g = Traced(graph, graph.leaf("g", Level.ELEMENT))
>>> (2 * g + 1).node.op
'add'
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Sequence
from typing import Any, NoReturn

from optimkit.fusion.graph import BOOLEAN, COMPLEX, Graph, KindError, Level, Node, WholeFunction
from optimkit.fusion.operations import DERIVED, OPERATIONS

WHOLE = ". A class with `elementwise = False` gets whole arrays, and may call anything"  # a hint at the end of errors


class TraceError(TypeError):
    """A rule does what can't be traced; the message says what to write instead."""


class UnknownOperation(AttributeError, TraceError):
    """A rule calls a function of xp that is no operation."""


class Namespace:
    """The functions of the array API standard that a rule may call.

    A subclass says what an operation (`_apply`) and a reduction (`_reduce`) do with its values.
    """

    pi, e, inf, nan = math.pi, math.e, math.inf, math.nan

    def _apply(self, op: str, *args: Any) -> Any:
        raise TypeError(f"{type(self).__name__} does not say what {op} does")

    def _reduce(self, op: str, x: Any) -> Any:
        raise TypeError(f"{type(self).__name__} does not say what {op} does")

    def _is_complex(self, x: Any) -> bool:
        return "complex" in str(getattr(x, "dtype", ""))

    def __getattr__(self, name: str) -> Any:
        if name not in OPERATIONS or name == "count_power":
            known = ", ".join(sorted({*OPERATIONS, *DERIVED} - {"count_power", "power"}))
            raise UnknownOperation(f"xp.{name} is not an operation of an update rule; there are: {known}{WHOLE}")
        operation = OPERATIONS[name]

        def call(*args: Any) -> Any:
            if len(args) != operation.arity:
                raise TypeError(f"xp.{name} takes {operation.arity} arguments, not {len(args)}")
            return self._apply(name, *args)

        return call

    def pow(self, x: Any, y: Any) -> Any:
        return x**y

    def square(self, x: Any) -> Any:
        return x * x

    def reciprocal(self, x: Any) -> Any:
        return 1.0 / x

    def positive(self, x: Any) -> Any:
        return x

    def clip(self, x: Any, min: Any = None, max: Any = None) -> Any:
        """minimum(maximum(x, min), max); either bound may be None."""
        x = x if min is None else self._apply("maximum", x, min)
        return x if max is None else self._apply("minimum", x, max)

    def abs2(self, x: Any) -> Any:
        """|x|^2: x*x where x is real."""
        if not self._is_complex(x):
            return x * x
        real, imag = self._apply("real", x), self._apply("imag", x)
        return real * real + imag * imag

    def sum(self, x: Any) -> Any:
        return self._reduce("sum", x)

    def mean(self, x: Any) -> Any:
        return self._reduce("mean", x)

    def max(self, x: Any) -> Any:
        return self._reduce("max", x)

    def min(self, x: Any) -> Any:
        return self._reduce("min", x)


class Traced:
    """A value of a rule while it is traced: records operations in the graph."""

    __slots__ = ("graph", "node")

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = name in OPERATIONS or name in DERIVED
        hint = f"write xp.{name}(...)" if known else f"it is one element at a time, without shape, dtype or axes{WHOLE}"
        raise AttributeError(f"a value of a rule has no .{name}: {hint}")

    def _wrap(self, value: Any) -> Node:
        return as_node(self.graph, value)

    def _apply(self, op: str, *args: Any) -> Traced:
        return Traced(self.graph, self.graph.apply(op, *(self._wrap(arg) for arg in args)))

    def __add__(self, other: Any) -> Traced:
        return self._apply("add", self, other)

    def __radd__(self, other: Any) -> Traced:
        return self._apply("add", other, self)

    def __sub__(self, other: Any) -> Traced:
        return self._apply("subtract", self, other)

    def __rsub__(self, other: Any) -> Traced:
        return self._apply("subtract", other, self)

    def __mul__(self, other: Any) -> Traced:
        return self._apply("multiply", self, other)

    def __rmul__(self, other: Any) -> Traced:
        return self._apply("multiply", other, self)

    def __truediv__(self, other: Any) -> Traced:
        return self._apply("divide", self, other)

    def __rtruediv__(self, other: Any) -> Traced:
        return self._apply("divide", other, self)

    def __pow__(self, other: Any) -> Traced:
        return Traced(self.graph, _power(self.graph, self.node, self._wrap(other)))

    def __rpow__(self, other: Any) -> Traced:
        return Traced(self.graph, _power(self.graph, self._wrap(other), self.node))

    def __neg__(self) -> Traced:
        return self._apply("negative", self)

    def __pos__(self) -> Traced:
        return self

    def __abs__(self) -> Traced:
        return self._apply("abs", self)

    def __eq__(self, other: Any) -> Traced:  # type: ignore[override]
        return self._apply("equal", self, other)

    def __ne__(self, other: Any) -> Traced:  # type: ignore[override]
        return self._apply("not_equal", self, other)

    def __lt__(self, other: Any) -> Traced:
        return self._apply("less", self, other)

    def __le__(self, other: Any) -> Traced:
        return self._apply("less_equal", self, other)

    def __gt__(self, other: Any) -> Traced:
        return self._apply("greater", self, other)

    def __ge__(self, other: Any) -> Traced:
        return self._apply("greater_equal", self, other)

    def __and__(self, other: Any) -> Traced:
        return self._apply("logical_and", self, other)

    def __rand__(self, other: Any) -> Traced:
        return self._apply("logical_and", other, self)

    def __or__(self, other: Any) -> Traced:
        return self._apply("logical_or", self, other)

    def __ror__(self, other: Any) -> Traced:
        return self._apply("logical_or", other, self)

    def __invert__(self) -> Traced:
        return self._apply("logical_not", self)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> NoReturn:
        raise TraceError(
            "an update rule can't branch on a value (if, and, or, not, min(), max()): it is traced once, for all "
            "values. Write xp.where(condition, a, b), xp.minimum or xp.maximum; branch on structure fields (self.flag)"
        )

    def __float__(self) -> NoReturn:
        raise TraceError(
            "an update rule can't turn a value into a Python number (float(), int(), math.sqrt()): it is traced once, "
            "for all values. Write xp.sqrt(x) and the like, which work on numbers too"
        )

    __int__ = __index__ = __complex__ = __float__

    def __iter__(self) -> NoReturn:
        raise TraceError(
            f"an update rule sees one array as a whole: no loops over it, no indexing; write array operations{WHOLE}"
        )

    def __getitem__(self, key: Any) -> NoReturn:
        self.__iter__()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """NumPy asks before it computes: a NumPy scalar on the left of an operator is a number like any other."""
        name = ufunc.__name__
        scalars = [x for x in inputs if not isinstance(x, Traced)]
        if method == "__call__" and not options and len(inputs) == 2 and scalars and name in OPERATIONS:
            if name == "power":
                return Traced(self.graph, _power(self.graph, *map(self._wrap, inputs)))
            return self._apply(name, *inputs)
        raise TraceError(
            f"an update rule calls the functions of xp, not those of numpy: write xp.{name}(x), not np.{name}(x){WHOLE}"
        )

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TraceError(f"an update rule calls the functions of xp, not those of numpy, such as xp.sqrt(x){WHOLE}")

    def __repr__(self) -> str:
        return f"<{self.node.level.name.lower()} value of a traced rule: {self.node.op}>"


def as_node(graph: Graph, value: Any) -> Node:
    """The node of a traced value, or a constant."""
    if isinstance(value, Traced):
        if value.graph is not graph:
            raise TraceError("a value of another rule, or of an earlier call, was used: an update must be a pure function")
        return value.node
    if isinstance(value, bool):
        return graph.constant(value)
    if isinstance(value, int | float):  # np.float64 is a float, but is not written like one
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise TraceError(f"an update rule met a whole number of {len(str(abs(value)))} digits, which no float can be")
        return graph.constant(int(value) if isinstance(value, int) else float(value))
    if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return graph.constant(value.item())
    raise TraceError(
        f"an update rule met a {type(value).__name__}: it may use its arguments, Python numbers and the functions of xp. "
        "Arrays belong into slots (`constant`, where they are only read), numbers that change into fields annotated Scalar"
    )


def _power(graph: Graph, base: Node, exponent: Node) -> Node:
    """Squares are products, roots are roots, b**t is binary powering; the rest is `power`."""
    if exponent.op == "constant" and exponent.kind != BOOLEAN and base.kind != BOOLEAN:
        value = exponent.key
        if value == 2:
            return graph.apply("multiply", base, base)
        if value == 1:
            return base
        if value == 0.5:
            return graph.apply("sqrt", base)
        if value == -1:
            return graph.apply("divide", graph.constant(1.0), base)
    if exponent.whole and exponent.op != "constant" and base.level is not Level.ELEMENT:
        return graph.apply("count_power", base, exponent)
    return graph.apply("power", base, exponent)


class TracingNamespace(Namespace):
    """`xp` while a rule is traced."""

    def __init__(self, graph: Graph, wide: bool = False) -> None:
        self._graph, self._wide = graph, wide
        self._labels: dict[Hashable, int] = {}
        self.owner: Hashable = None  # the link whose hook is being traced; labels its totals

    def _apply(self, op: str, *args: Any) -> Traced:
        nodes = [as_node(self._graph, arg) for arg in args]
        if op == "power":
            return Traced(self._graph, _power(self._graph, *nodes))
        if op in ("real", "conj") and nodes[0].kind != COMPLEX:
            return Traced(self._graph, nodes[0])
        return Traced(self._graph, self._graph.apply(op, *nodes))

    def _is_complex(self, x: Any) -> bool:
        return as_node(self._graph, x).kind == COMPLEX

    def _reduce(self, op: str, x: Any) -> Traced:
        graph, node = self._graph, as_node(self._graph, x)
        if op == "mean":
            size = graph.leaf("size", Level.UNIFORM, whole=True)
            return Traced(graph, graph.apply("divide", graph.reduce("sum", node), size))
        return Traced(graph, graph.reduce(op, node))

    def whole(self, function: WholeFunction, given: Sequence[Any], numbers: Sequence[Any]) -> list[Traced]:
        """A call of a function of whole arrays: what comes out."""
        graph = self._graph
        args = [as_node(graph, x) for x in (*given, *numbers)]
        if any(arg.kind == BOOLEAN for arg in args):
            raise KindError("a comparison is handed to a hook of whole arrays; write xp.where(condition, 1.0, 0.0)")
        return [Traced(graph, node) for node in graph.call(function, args)]

    def norm(self, x: Traced, total: bool = False) -> Traced:
        """The 2-norm of a parameter, or over all parameters."""
        return self.norms(x, total)[0]

    def norms(self, x: Traced, total: bool = False) -> tuple[Traced, Traced]:
        """The norm, and its root, which is right where the norm is beyond float64."""
        graph = self._graph

        def squares(scale: int) -> Traced:
            found = Traced(graph, graph.reduce("sum_of_squares", as_node(graph, x), scale))
            return self.total(found) if total else found

        if not self._wide:
            found = self._apply("sqrt", squares(0))
            return found, self._apply("sqrt", found)
        return norm_of_squares(self, squares(0), squares(-SCALE), squares(SCALE))

    def total(self, x: Traced) -> Traced:
        """The sum over all elements of all parameters that have a gradient in this step."""
        graph, node = self._graph, as_node(self._graph, x)
        if node.level is Level.ELEMENT:
            node = graph.reduce("sum", node)
        elif node.level is Level.HOST:
            raise KindError("total of a number: it sums an array, or a value of each parameter, over all parameters")
        ordinal = self._labels.get(self.owner, 0)
        self._labels[self.owner] = ordinal + 1
        return Traced(graph, graph.total(node, (self.owner, ordinal)))


SCALE = 600


def norm_of_squares(xp: Namespace, middle: Any, down: Any, up: Any) -> tuple[Any, Any]:
    """The root of a sum of squares in float64 that neither overflows nor underflows, and the root of that.

    `down` and `up` are the sums of the squares of x * 2**-600 and x * 2**600. Where `middle`
    overflowed, `down` is exact enough; where it is so small that squares were lost, `up` is. One beyond float64 is 1.8e308.
    """
    low, over = xp.sqrt(down), middle == math.inf
    large = xp.where(down == math.inf, math.inf, xp.minimum(low * 2.0**SCALE, sys.float_info.max))
    norm = xp.where(over, large, xp.where(middle < 2.0**-900, xp.sqrt(up) * 2.0**-SCALE, xp.sqrt(middle)))
    return norm, xp.where(over, xp.sqrt(low) * 2.0 ** (SCALE // 2), xp.sqrt(norm))
