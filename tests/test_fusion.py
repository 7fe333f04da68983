"""From rules to stages: every operation against NumPy on every engine, the graph, the levels, the stages, and misuse."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optimkit
from optimkit import Adam, Optimizer, Scalar, abs2, full, norm, total, total_norm, zeros
from optimkit.engines.cpu import text as cpu_text
from optimkit.engines.cuda import text as cuda_text
from optimkit.fusion.graph import BOOLEAN, Graph, KindError, Level, walk
from optimkit.fusion.levels import compile_host, constant_text
from optimkit.fusion.operations import DERIVED, OPERATIONS
from optimkit.fusion.trace import Namespace, Traced
from optimkit.testing.compare import difference
from optimkit.transforms import ClipByGlobalNorm

SMALL = 1e-3
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-40, -1e-40, 1e-30, 1e30, -3e38, 89.0]
SPECIAL += [math.inf, -math.inf, math.nan]
MODERATE = [0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, SMALL, -SMALL, 0.25, 7.0, -3.0]

# Each operation as a rule may write it, on the arrays a and b; NumPy's own functions are the reference.
ELEMENT = {
    "add": lambda xp, a, b: a + b,
    "subtract": lambda xp, a, b: a - b,
    "subtract__from_a_number": lambda xp, a, b: 2 - a,
    "multiply": lambda xp, a, b: a * b,
    "divide": lambda xp, a, b: a / b,
    "divide__a_number": lambda xp, a, b: 2 / a,
    "negative": lambda xp, a, b: -a,
    "positive": lambda xp, a, b: xp.positive(+a),
    "sqrt": lambda xp, a, b: xp.sqrt(a),
    "abs": lambda xp, a, b: abs(a) + xp.abs(b),
    "sign": lambda xp, a, b: xp.sign(a),
    "minimum": lambda xp, a, b: xp.minimum(a, b),
    "maximum": lambda xp, a, b: xp.maximum(a, b),
    "floor": lambda xp, a, b: xp.floor(a),
    "ceil": lambda xp, a, b: xp.ceil(a),
    "round": lambda xp, a, b: xp.round(a),
    "clip": lambda xp, a, b: xp.clip(a, -1.0, 2.0),
    "square": lambda xp, a, b: xp.square(a),
    "reciprocal": lambda xp, a, b: xp.reciprocal(a),
    "real": lambda xp, a, b: xp.real(a),
    "conj": lambda xp, a, b: xp.conj(a),
    "imag": lambda xp, a, b: xp.imag(xp.where(xp.isfinite(a), a, 0.0)),
    "power__2": lambda xp, a, b: a**2,
    "power__half": lambda xp, a, b: a**0.5,
    "power__inverse": lambda xp, a, b: a**-1,
    "where": lambda xp, a, b: xp.where(a > b, a, b),
    "equal": lambda xp, a, b: xp.where(a == b, 1.0, 0.0),
    "not_equal": lambda xp, a, b: xp.where(a != b, 1.0, 0.0),
    "less": lambda xp, a, b: xp.where(1.0 < a, 1.0, 0.0),  # noqa: SIM300
    "less_equal": lambda xp, a, b: xp.where(a <= b, 1.0, 0.0),
    "greater": lambda xp, a, b: xp.where(a > b, 1.0, 0.0),
    "greater_equal": lambda xp, a, b: xp.where(a >= b, 1.0, 0.0),
    "isfinite": lambda xp, a, b: xp.where(xp.isfinite(a), 1.0, 0.0),
    "isnan": lambda xp, a, b: xp.where(xp.isnan(a), 1.0, 0.0),
    "logical_and": lambda xp, a, b: xp.where((a > 0) & xp.logical_and(b > 0, b < 2), 1.0, 0.0),
    "logical_or": lambda xp, a, b: xp.where((a > 0) | xp.logical_or(b > 0, b < -1), 1.0, 0.0),
    "logical_not": lambda xp, a, b: xp.where(~(a > 0) & xp.logical_not(b > 0), 1.0, 0.0),
    "exp": lambda xp, a, b: xp.exp(a),
    "expm1": lambda xp, a, b: xp.expm1(a),
    "log": lambda xp, a, b: xp.log(a),
    "log1p": lambda xp, a, b: xp.log1p(a),
    "tanh": lambda xp, a, b: xp.tanh(a),
    "hypot": lambda xp, a, b: xp.hypot(a, b),
    "power": lambda xp, a, b: xp.pow(a, b),
    "power__of_a_number": lambda xp, a, b: 2.0**a,
}
ROUNDED = {"exp", "expm1", "log", "log1p", "tanh", "hypot", "power", "power__of_a_number"}
ULP = 4  # of libm against NumPy's own loops


class EveryOperation(Optimizer):
    """One slot for each operation, per element."""

    def slots(self):
        return dict.fromkeys(ELEMENT, zeros)

    def update(self, w, g, s, h, xp):
        return 0.0 * g, {name: call(xp, w, g) for name, call in ELEMENT.items()}


class EveryUniform(Optimizer):
    """One slot for each operation, per parameter: float64, where the reduction ends."""

    def slots(self):
        return {name: zeros.per("parameter") for name in ELEMENT}

    def update(self, w, g, s, h, xp):
        a, b = xp.sum(w), xp.sum(g)  # of one element
        return 0.0 * g, {name: call(xp, a, b) for name, call in ELEMENT.items()}


def test_no_operation_was_forgotten():
    written = {name.split("__")[0] for name in ELEMENT} | {"pow", "sum", "mean", "max", "min", "count_power"}
    assert {*OPERATIONS, *DERIVED} <= written
    for table in (cpu_text.TABLE, cuda_text.TABLE):
        assert set(OPERATIONS) - set(table) <= {"count_power"}
    assert {name for name in ROUNDED if "__" not in name} == {name for name, each in OPERATIONS.items() if not each.exact}


def close(got, expected):
    """Within a few units in the last place, or to the bit where NumPy has an infinity or NaN."""
    with np.errstate(all="ignore"):
        near = np.abs(got - expected) <= ULP * np.spacing(np.abs(expected))
    return near | (got == expected) | (np.isnan(got) & np.isnan(expected))


def reference(name, a, b):
    with np.errstate(all="ignore"):
        return np.asarray(ELEMENT[name](np, a, b), a.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_operation_equals_numpys(dtype, optimkit_backend):
    bits = optimkit_backend.exact and not optimkit_backend.flushes
    values = np.array(SPECIAL if bits else MODERATE, dtype)
    a, b = (np.ascontiguousarray(x) for x in np.meshgrid(values, values))
    slots = run(EveryOperation, optimkit_backend, {"x": a}, {"x": b}, dtype)["x"]
    for name in ELEMENT:
        got, expected = optimkit_backend.to_numpy(slots[name]), reference(name, a, b)
        if bits and name not in ROUNDED:
            assert not difference(got, expected), f"{name}: {difference(got, expected)}"
        elif bits:
            wrong = ~close(got, expected)
            assert not wrong.any(), f"{name}({a[wrong][0]}, {b[wrong][0]}): {got[wrong][0]}, NumPy has {expected[wrong][0]}"
        else:
            np.testing.assert_allclose(got, expected, rtol={"float32": 1e-5, "float64": 1e-12}[dtype], err_msg=name)


def test_every_operation_on_values_per_parameter(optimkit_backend):
    bits = optimkit_backend.exact
    values = SPECIAL if bits else MODERATE
    few = {"jax": 6}.get(optimkit_backend.library, 3 if optimkit_backend.functional else 1)  # each operation is a call there
    pairs = {f"{i} {k}": (x, y) for i, x in enumerate(values[::few]) for k, y in enumerate(values[1 :: few * few])}
    a, b = ({key: np.array([pair[side]]) for key, pair in pairs.items()} for side in (0, 1))
    found = run(EveryUniform, optimkit_backend, a, b, "float64")
    for key, slots in found.items():
        for name in ELEMENT:
            if name == "power" and pairs[key] == (-math.inf, 0.5):
                continue  # a root has NaN there, a power infinity
            got, expected = np.asarray(float(slots[name])), reference(name, a[key] + 0.0, b[key] + 0.0)[0]
            assert close(got, expected), f"{name}{pairs[key]}: {got}, NumPy has {expected}"


def run(cls, backend, weights, grads, dtype):
    """The slots after one step, by parameter."""
    params = {key: backend.make(x, dtype) for key, x in weights.items()}
    grads = {key: backend.make(x, dtype) for key, x in grads.items()}
    if backend.functional:
        rule = cls()
        return rule.apply(params, grads, rule.init(params))[1]["slots"]
    opt = cls(params, engine=backend.engine)
    opt.step(grads)
    return opt.state


# ---- the host level

NUMPY_NAMES = {"abs": np.abs, "round": np.round, "power": np.power, "where": np.where, "conj": lambda a: a, "real": lambda a: a}
NUMPY_NAMES |= {"imag": lambda a: 0.0, "count_power": np.power}


def kinds(operation):
    return [bool] * operation.arity if operation.domain == "boolean" else [float] * operation.arity


@pytest.mark.parametrize("name", OPERATIONS)
def test_host_operations_equal_numpys(name):
    operation = OPERATIONS[name]
    stock = [True, False] if operation.domain == "boolean" else [*SPECIAL, 1e300, 800.0]
    first = [True, False] if name == "where" else stock
    second = [0.0, 1.0, 2.0, 7.0, 100.0] if name == "count_power" else stock
    for a in first:
        for b in second if operation.arity > 1 else [None]:
            args = (a,) if operation.arity == 1 else (a, b) if operation.arity == 2 else (a, b, -3.5)
            got = operation.host(*args)
            with np.errstate(all="ignore"):
                expected = NUMPY_NAMES.get(name, getattr(np, name, None))(*(np.asarray(x) for x in args))
            assert isinstance(got, bool | np.bool_ if operation.result == "boolean" else float | int)
            if name == "count_power":  # multiplications, not pow: a rounding for each bit of the exponent
                assert got == pytest.approx(float(expected), rel=1e-14, nan_ok=True)
            else:
                assert close(np.float64(got), np.float64(expected)), f"{name}{args}: {got}, NumPy has {expected}"


@given(base=st.floats(0, 1), count=st.integers(0, 10**6))
def test_powers_of_the_count_are_binary(base, count):
    got = OPERATIONS["count_power"].host(base, count)
    assert got == pytest.approx(base**count, rel=1e-10, abs=1e-300)
    assert np.float32(1 - got) == pytest.approx(np.float32(1 - base**count), rel=6e-8)


def test_the_host_function_is_python_text_that_computes_the_graph():
    graph = Graph()
    lr, beta, t = (graph.leaf("number", Level.HOST, (0, "lr", None)), graph.leaf("number", Level.HOST, (0, "beta", None)), None)
    t = graph.leaf("count", Level.HOST, whole=True)
    x, b, n = (Traced(graph, node) for node in (lr, beta, t))
    power = 1 - b**n
    results = [x / power, -power * 0.5, Traced(graph, graph.apply("where", (n > 2).node, x.node, b.node))]
    host, numbers, text = compile_host(tuple(each.node for each in results))
    values = {(0, "lr", None): 0.1, (0, "beta", None): 0.75}
    for count in (1, 2, 3, 10):
        power = 1 - 0.75**count
        assert host([values[key] for key in numbers], count) == (0.1 / power, -power * 0.5, 0.1 if count > 2 else 0.75)
    assert text.startswith("def host(n, t):\n")
    assert text.count("count_power") == 1  # what is used twice is computed once


@given(value=st.floats(allow_nan=False))
def test_constants_read_back_to_the_same_bits(value):
    back = eval(constant_text(value))
    assert math.copysign(1, back) == math.copysign(1, value)
    assert back == value


# ---- the graph


def test_equal_expressions_are_one_node():
    graph = Graph()
    x, y = (Traced(graph, graph.leaf(name, Level.ELEMENT)) for name in "wg")
    before = (x * y + 1.0).node
    size = len(graph)
    assert (x * y + 1.0).node is before
    assert len(graph) == size
    assert (y * x + 1.0).node is not before  # nothing is reordered


def test_constants_are_keyed_on_type_and_bits():
    graph = Graph()
    nodes = [graph.constant(value) for value in (1, 1.0, True, 0.0, -0.0, 0, False)]
    assert len({id(node) for node in nodes}) == 7
    assert graph.constant(-0.0) is nodes[4]
    assert graph.constant(math.nan) is graph.constant(math.nan)
    with pytest.raises(AttributeError):
        nodes[0].key = 2


def test_levels_and_kinds_are_inferred():
    graph = Graph()
    g, n = Traced(graph, graph.leaf("g", Level.ELEMENT)), Traced(graph, graph.leaf("number", Level.HOST, (0, "lr", None)))
    total_ = Traced(graph, graph.reduce("sum", g.node))
    levels = {"host": 1 - n, "uniform": total_ * n, "element": g * (total_ * n)}
    assert {name: value.node.level.name.lower() for name, value in levels.items()} == {name: name for name in levels}
    assert (g > 0).node.kind == BOOLEAN
    assert [node.op for node in walk([(g * n).node])] == ["g", "number", "multiply"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, c: x._apply("where", x, x, x), r"xp\.where must be a comparison"),
        (lambda x, c: c + 1, r"xp\.add of a comparison: write xp\.where"),
        (lambda x, c: x & c, r"logical_and takes comparisons"),
        (lambda x, c: x._apply("where", c, c, x), "mixes a comparison with values"),
        (lambda x, c: Traced(x.graph, x.graph.reduce("max", x.graph.constant(1.0))), "reduces the elements of an array"),
    ],
)
def test_kinds_that_do_not_fit_are_errors(make, message):
    graph = Graph()
    x = Traced(graph, graph.leaf("g", Level.ELEMENT))
    with pytest.raises(KindError, match=message):
        make(x, x > 0)


def test_complex_nodes_know_what_has_no_meaning():
    graph = Graph()
    z = Traced(graph, graph.leaf("g", Level.ELEMENT, kind="complex"))
    assert (z * 2).node.kind == "complex"
    assert abs(z).node.kind == "real"
    for op, args in {"maximum": (z, 0), "less": (z, 0), "floor": (z,)}.items():
        with pytest.raises(KindError, match="no meaning for complex values"):
            z._apply(op, *args)


# ---- stages


def plans(optimizer):
    return [bucket.plan for bucket in optimizer._run.ready_steps().buckets]


def stepped(cls, params=None, **settings):
    opt = cls({"w": np.ones(3)} if params is None else params, engine="eager", **settings)
    opt.step({"w": np.ones(3)})
    return opt


def test_a_rule_without_reductions_is_one_stage_that_reads_each_array_once():
    (plan,) = plans(stepped(Adam))
    assert len(plan.stages) == 1
    assert plan.last.reads == ("w", "g", ("slot", 0, "m", "element"), ("slot", 0, "v", "element")) or set(plan.last.reads) == {
        "w",
        "g",
        ("slot", 0, "m", "element"),
        ("slot", 0, "v", "element"),
    }
    assert set(plan.last.outputs) == set(plan.last.reads) - {"g"}


def test_reductions_of_one_round_share_a_pass_and_nothing_is_written_before_the_last():
    class Two(Optimizer):
        def update(self, w, g, s, h, xp):
            mean = xp.mean(g)
            centred = g - mean
            return (g - xp.max(g) * xp.min(w)) / (1 + norm(centred)), {}

    (plan,) = plans(stepped(Two))
    ops = [sorted(node.op for node in stage.reductions) for stage in plan.stages]
    assert ops == [["max", "min", "sum"], ["sum_of_squares"] * 3, []]
    assert [bool(stage.outputs) for stage in plan.stages] == [False, False, True]


def test_slots_may_be_called_as_the_kernels_own_names():
    names = ["start", "row", "entry", "k0", "x0", "u0", "n", "p_w", "w", "g", "m", "m_new", "real", "and", "λ", "s_m"]

    class Odd(Optimizer):
        def slots(self):
            return {name: full(i) for i, name in enumerate(names)}

        def update(self, w, g, s, h, xp):
            held = vars(s)
            return 0.0 * g, {name: held[name] * 0.5 + held[names[i - 1]] for i, name in enumerate(names)}

    for engine in ("numba", "eager"):
        opt = Odd(np.ones(3), engine=engine)
        opt.step(np.ones(3))
        for i, name in enumerate(names):
            assert opt.state["0"][name].tolist() == [i * 0.5 + (i - 1) % len(names)] * 3, (engine, name)


# ---- misuse (fault 11b): an error that names the class and says what to write


def rule(body, slots=None, **fields):
    """An optimizer with this update, and what it does in its first step."""
    namespace = {"update": body, "__annotations__": {"lr": Scalar, **dict.fromkeys(fields, Scalar)}, "lr": 0.1, **fields}
    if slots is not None:
        namespace["slots"] = lambda self: slots
    return type("Mine", (Optimizer,), namespace)


MISUSE = {
    "if": (lambda self, w, g, s, h, xp: g if g > 0 else -g, {}, r"xp\.where"),
    "and": (lambda self, w, g, s, h, xp: xp.where(g > 0 and w > 0, g, w), {}, r"xp\.where"),
    "chain": (lambda self, w, g, s, h, xp: xp.where(0 < g < 1, g, w), {}, r"xp\.where"),
    "builtin max": (lambda self, w, g, s, h, xp: max(g, w), {}, r"xp\.maximum"),
    "float": (lambda self, w, g, s, h, xp: float(h.lr) * g, {}, r"float\(\)"),
    "int": (lambda self, w, g, s, h, xp: int(h.t) * g, {}, r"int\(\)"),
    "math": (lambda self, w, g, s, h, xp: math.sqrt(h.lr) * g, {}, r"xp\.sqrt"),
    "numpy": (lambda self, w, g, s, h, xp: np.sqrt(g), {}, r"xp\.sqrt\(x\), not np\.sqrt"),
    "numpy on two": (lambda self, w, g, s, h, xp: np.maximum(g, w), {}, "xp|np"),
    "loop": (lambda self, w, g, s, h, xp: sum(x for x in g), {}, "no loops"),
    "index": (lambda self, w, g, s, h, xp: g[0], {}, "no indexing"),
    "self.lr": (lambda self, w, g, s, h, xp: self.lr * g, {}, r"Mine: self\.lr .* write h\.lr"),
    "h.structure": (lambda self, w, g, s, h, xp: h.maximize * g, {}, r"Mine: h\.maximize"),
    "h.unknown": (lambda self, w, g, s, h, xp: h.rate * g, {}, r"Mine: h\.rate is no number; h has .*lr"),
    "s.unknown": (lambda self, w, g, s, h, xp: s.m * g, {}, r"Mine: s\.m is no slot; slots\(\) declares none"),
    "xp.unknown": (lambda self, w, g, s, h, xp: xp.sin(g), {}, r"xp\.sin is not an operation .*: abs, add"),
    "too many arguments": (lambda self, w, g, s, h, xp: xp.sqrt(g, w), {}, r"xp\.sqrt takes 1 argument"),
    "array": (lambda self, w, g, s, h, xp: g * np.ones(3), {}, r"met a ndarray: .* Arrays belong into slots"),
    "string": (lambda self, w, g, s, h, xp: g * "a", {}, "met a str"),
    "comparison as step": (lambda self, w, g, s, h, xp: g > 0, {}, r"xp\.where\(condition, 1\.0, 0\.0\)|xp\.where"),
    "undeclared slot": (lambda self, w, g, s, h, xp: (g, {"m": g}), {}, "Mine.update returns the slot 'm' but slots"),
    "missing slot": (lambda self, w, g, s, h, xp: g, {"m": zeros}, "Mine: the slot 'm' is declared by slots"),
    "comparison as slot": (lambda self, w, g, s, h, xp: (g, {"m": g > 0}), {"m": zeros}, "slot 'm' is a comparison"),
    "no slot": (lambda self, w, g, s, h, xp: g, {"m": 0.0}, r"Mine\.slots\(\)\['m'\] = 0\.0 must be a slot"),
    "wrong tuple": (lambda self, w, g, s, h, xp: (g, g), {}, r"Mine\.update must return a value, or \(value, \{slot"),
    "nothing": (lambda self, w, g, s, h, xp: None, {}, r"Mine\.update returns None"),
    "elements per parameter": (
        lambda self, w, g, s, h, xp: (g, {"m": g}),
        {"m": zeros.per("parameter")},
        "one value per element, but it is declared per parameter",
    ),
    "parameters per optimizer": (
        lambda self, w, g, s, h, xp: (g, {"m": xp.sum(g)}),
        {"m": zeros.per("optimizer")},
        "differs between parameters, but it is declared per optimizer; take total",
    ),
    "reduction of a number": (lambda self, w, g, s, h, xp: g * xp.sum(h.lr), {}, "reduces the elements of an array"),
    "total of a number": (lambda self, w, g, s, h, xp: g * total(h.lr), {}, "total of a number"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_says_what_to_write(name):
    body, slots, message = MISUSE[name]
    w = np.ones(3)
    with pytest.raises((TypeError, AttributeError), match=message):
        rule(body, slots)(w, engine="eager").step(np.ones(3))
    assert w.tolist() == [1, 1, 1]


def test_values_do_not_outlive_their_trace():
    kept = []

    def update(self, w, g, s, h, xp):
        kept.append(g)
        return g + kept[0]

    cls = rule(update)
    cls(np.ones(3), engine="eager").step(np.ones(3))
    with pytest.raises(TypeError, match="pure function"):
        cls(np.ones(3), engine="eager", maximize=True).step(np.ones(3))


@pytest.mark.parametrize("function", [abs2, norm, total, total_norm])
def test_functions_of_rules_work_in_rules_only(function):
    with pytest.raises(TypeError, match="inside an update or a hook"):
        function(np.ones(3))


def test_a_namespace_computes_what_its_subclass_says():
    class Recorded(Namespace):
        def _apply(self, op, *args):
            return op, *args

    assert Recorded().clip(1, None, 2) == ("minimum", 1, 2)
    assert Recorded().sqrt(3) == ("sqrt", 3)
    assert Namespace.pi == math.pi
    assert operator.attrgetter("inf")(Recorded()) == math.inf


# ---- what is printed


def test_explain_shows_stages_bytes_and_kernel():
    text = Adam.explain("float32")
    assert "Adam: 1 stage" in text
    assert "16 bytes read, 12 written per element" in text
    assert "lr / (1 - betas[0]**t)" in text
    assert "def kernel(job):" in text
    opt = optimkit.SGD(np.ones(3, np.float32), lr=0.1, transforms=[ClipByGlobalNorm(1.0)])
    text = opt.explain()
    assert "SGD: 2 stages" in text
    assert "max_norm@1" in text
    with pytest.raises(ValueError, match="dtype = 'float16' must be"):
        Adam.explain("float16")


@pytest.mark.parametrize("root", [np.sqrt(2.0), np.float32(1.5), np.int64(2), np.array(0.5)], ids=lambda x: type(x).__name__)
def test_numpy_numbers_are_constants(root):
    class Scaled(optimkit.Optimizer):
        lr: optimkit.Scalar = 0.5

        def update(self, w, g, s, h, xp):
            return h.lr * root * g, {}

    for engine in ("eager", "numba"):
        w = np.zeros(3)
        Scaled(w, engine=engine).step(np.ones(3))
        np.testing.assert_array_equal(w, -0.5 * float(root))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean", r"no \.mean: write xp\.mean\("),
        ("real", r"write xp\.real\("),
        ("shape", r"no \.shape: it is one element at a time"),
    ],
)
def test_what_arrays_have_and_values_of_a_rule_do_not(name, message):
    class Asks(optimkit.Optimizer):
        lr: optimkit.Scalar = 0.5

        def update(self, w, g, s, h, xp):
            return getattr(g, name), {}

    with pytest.raises(AttributeError, match=message):
        Asks(np.zeros(3)).step(np.ones(3))
