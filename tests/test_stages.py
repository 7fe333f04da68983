"""From rules to stages: the graph, the levels, the stages, and what is printed of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

import optimkit
from optimkit import Adam, Optimizer, full, norm
from optimkit.fusion.graph import BOOLEAN, Graph, KindError, Level, walk
from optimkit.fusion.trace import Traced
from optimkit.transforms import ClipByGlobalNorm

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

    for engine in ("llvm", "eager"):
        opt = Odd(np.ones(3), engine=engine)
        opt.step(np.ones(3))
        for i, name in enumerate(names):
            assert opt.state["0"][name].tolist() == [i * 0.5 + (i - 1) % len(names)] * 3, (engine, name)


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
