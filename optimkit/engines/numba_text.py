"""The text of numba kernels: a stage of a plan as a Python function that numba compiles.

One call serves all parameters of a bucket. It takes the address of a job (`JOB` names its
words), claims chunks from a counter until none is left, and looks up the parameter of a chunk in
the table (`ENTRY` names its columns; the addresses of the arrays follow).
"""

from __future__ import annotations

from collections.abc import Hashable

from optimkit.engines.canonical import IDENTITY, LANES, UNIT
from optimkit.engines.text import Body, identifiers, indent, write_body
from optimkit.fusion.graph import BOOLEAN, Node
from optimkit.fusion.show import formula, traffic
from optimkit.fusion.stages import GRADIENT, WEIGHT, Plan, Stage

CHUNK = 16384
JOB: tuple[str, ...] = ("chunks", "counter", "n_chunks", "table", "rows", "uniforms", "scratch", "partials", "results")
JOB += ("operations", "copy", "zero", "n_params", "entry_bytes", "count")
ENTRY = ("size", "row", "flags", "first_unit", "layout_w", "layout_g")
ABSENT, GATHER_W, GATHER_G, ZERO_G = 1, 2, 4, 8  # bits of flags
SCRATCH = 2 * CHUNK * 8  # bytes: a chunk of the weight and one of the gradient; the lanes follow

TABLE = {
    "add": "({0} + {1})",
    "subtract": "({0} - {1})",
    "multiply": "({0} * {1})",
    "divide": "({0} / {1})",
    "negative": "(-{0})",
    "sqrt": "sqrt({0})",
    "abs": "abs({0})",
    "sign": "({0} if {0} != {0} else (real(1.0) if {0} > 0 else (real(-1.0) if {0} < 0 else real(0.0))))",
    "minimum": "({0} if ({0} < {1}) | ({0} != {0}) else {1})",
    "maximum": "({0} if ({0} > {1}) | ({0} != {0}) else {1})",
    "floor": "np.floor({0})",
    "ceil": "np.ceil({0})",
    "round": "np.rint({0})",
    "exp": "math.exp({0})",
    "expm1": "math.expm1({0})",
    "log": "math.log({0})",
    "log1p": "math.log1p({0})",
    "tanh": "math.tanh({0})",
    "hypot": "math.hypot({0}, {1})",
    "power": "({0} ** {1})",
    "equal": "({0} == {1})",
    "not_equal": "({0} != {1})",
    "less": "({0} < {1})",
    "less_equal": "({0} <= {1})",
    "greater": "({0} > {1})",
    "greater_equal": "({0} >= {1})",
    "isfinite": "(({0} - {0}) == 0)",
    "isnan": "({0} != {0})",
    "logical_and": "({0} & {1})",
    "logical_or": "({0} | {1})",
    "logical_not": "(not {0})",
    "where": "({1} if {0} else {2})",
    "real": "{0}",
    "conj": "{0}",
    "imag": "({0} * real(0.0))",
}

_HEAD = """\
# {title}
# {traffic}
import math
from math import sqrt

import numpy as np
from numba import float64, {real} as real

from optimkit.engines.numba_runtime import call_copy, claim, load_float64, store_float64
from optimkit.engines.numba_runtime import load_int64 as word, load_{real} as load, store_{real} as store

"""

# Adds the units of each parameter in the canonical order. One text for all rules.
FINISH = """\
# the values of the units of each parameter become one value of the parameter
import math

from optimkit.engines.numba_runtime import load_float64, load_int64 as word, store_float64


def merge(operation, lane, value):
    a = load_float64(lane, 0)
    if operation == 0:
        a = a + value
    elif operation == 1:
        a = a if (a > value) | (a != a) else value
    else:
        a = a if (a < value) | (a != a) else value
    store_float64(lane, 0, a)


def kernel(job):
    table, lanes, partials, results = word(job, 3), word(job, 6), word(job, 7), word(job, 8)
    operations, n_params, entry_bytes, count = word(job, 9), word(job, 12), word(job, 13), word(job, 14)
    for p in range(n_params):
        entry = table + p * entry_bytes
        units = 0 if word(entry, 2) & 1 else (word(entry, 0) + 2047) // 2048
        for r in range(count):
            operation = word(operations, r)
            start = 0.0 if operation == 0 else (-math.inf if operation == 1 else math.inf)
            for lane in range(128):
                store_float64(lanes, lane, start)
            for unit in range(units):
                value = load_float64(partials, (word(entry, 3) + unit) * count + r)
                merge(operation, lanes + 8 * (unit % 128), value)
            half = 64
            while half:
                for lane in range(half):
                    merge(operation, lanes + 8 * lane, load_float64(lanes, lane + half))
                half //= 2
            store_float64(results, p * count + r, load_float64(lanes, 0))
"""

# Copies a part of a strided array, in memory order of its weight, from (0), to (1), or fills it with 0 (2).
# layout: number of axes, bits (1: the array is float64, 2: the buffer is float64), lengths, strides in bytes
COPY = """\
# a chunk of a strided array to or from a dense buffer
from numba import float32, float64

from optimkit.engines.numba_runtime import load_float32, load_float64, store_float32, store_float64
from optimkit.engines.numba_runtime import load_int64 as word


def kernel(layout, data, start, n, dense, mode):
    axes, bits = word(layout, 0), word(layout, 1)
    last, step = word(layout, 1 + axes), word(layout, 1 + 2 * axes)
    done = 0
    while done < n:
        row, column = (start + done) // last, (start + done) % last
        run = min(last - column, n - done)
        line = data + column * step
        for axis in range(axes - 2, -1, -1):
            length = word(layout, 2 + axis)
            line += (row % length) * word(layout, 2 + axes + axis)
            row //= length
        if mode == 0:
            for i in range(run):
                if bits & 1:
                    value = load_float64(line + i * step, 0)
                else:
                    value = float64(load_float32(line + i * step, 0))
                if bits & 2:
                    store_float64(dense, done + i, value)
                else:
                    store_float32(dense, done + i, float32(value))
        else:
            for i in range(run):
                value = 0.0
                if mode == 1:
                    value = load_float64(dense, done + i) if bits & 2 else float64(load_float32(dense, done + i))
                if bits & 1:
                    store_float64(line + i * step, 0, value)
                else:
                    store_float32(line + i * step, 0, float32(value))
        done += run
"""

_LOOP = """\
def kernel(job):
    chunks, counter, n_chunks, table = word(job, 0), word(job, 1), word(job, 2), word(job, 3)
    rows, uniforms, scratch, copy = word(job, 4), word(job, 5), word(job, 6), word(job, 10)
{begin}
    while True:
        c = claim(counter, 1)
        if c >= n_chunks:
            break
        p, start = word(chunks, 2 * c), word(chunks, 2 * c + 1)
        entry = table + p * {entry_bytes}
        flags = word(entry, 2)
        if flags & {absent}:
            continue
        n = min(word(entry, 0) - start, {chunk})
"""


def _literal(node: Node) -> str:
    if node.kind == BOOLEAN:
        return repr(bool(node.key))
    text = repr(float(node.key))  # type: ignore[arg-type]
    return f"real({'math.' + text if text in ('inf', 'nan') else '-math.inf' if text == '-inf' else text})"


def entry_words(plan: Plan) -> int:
    """The words of a parameter's table entry."""
    return len(ENTRY) + len(plan.arrays)


def kernel_text(plan: Plan, number: int, dtype: str) -> str:
    """The text of stage `number` of a plan, for arrays of `dtype`."""
    stage = plan.stages[number]
    itemsize = {"float32": 4, "float64": 8}[dtype]
    names = identifiers(plan.arrays)
    body = write_body(plan, stage, TABLE, names, _literal)
    read, written = traffic(plan, number, itemsize)
    title = f"{plan.program.name}, {dtype}, stage {number + 1} of {len(plan.stages)}"
    head = _HEAD.format(title=title, traffic=f"{read} bytes read, {written} written per element", real=dtype)
    loop = _LOOP.format(
        entry_bytes=8 * entry_words(plan),
        absent=ABSENT,
        chunk=CHUNK,
        begin=indent(["zero = word(job, 11)"] if stage is plan.last else _begin_reductions(stage), 1),
    )
    setup = indent(_setup(plan, stage, body, names, itemsize), 2)
    if stage is plan.last:
        return f"{head}{loop}{setup}\n{indent(_write_loop(plan, stage, body, names), 2)}\n"
    return f"{head}{loop}{setup}\n{indent(_reduce_loop(stage, body, names), 2)}\n"


def _setup(plan: Plan, stage: Stage, body: Body, names: dict[Hashable, str], itemsize: int) -> list[str]:
    """Addresses of this chunk's arrays, and the scalars of its parameter."""
    lines = []
    used = list(dict.fromkeys([*stage.reads, *stage.outputs, *([GRADIENT] if stage is plan.last else [])]))
    for key in used:
        column = len(ENTRY) + plan.arrays.index(key)
        if key in (WEIGHT, GRADIENT):
            bit, layout, offset = (GATHER_W, 4, 0) if key == WEIGHT else (GATHER_G, 5, CHUNK * 8)
            lines += [f"{names[key]}_data = word(entry, {column})", f"if flags & {bit}:"]
            lines += [f"    p_{names[key]} = scratch + {offset}"]
            if key in stage.reads:
                lines += [f"    call_copy(copy, word(entry, {layout}), {names[key]}_data, start, n, p_{names[key]}, 0)"]
            lines += ["else:", f"    p_{names[key]} = {names[key]}_data + {itemsize} * start"]
        else:
            lines.append(f"p_{names[key]} = word(entry, {column}) + {itemsize} * start")
    if body.scalars:
        lines.append(f"row = rows + word(entry, 1) * {itemsize * len(plan.hosts)}")
    if body.uniforms:
        lines.append(f"uniform = uniforms + p * {itemsize * len(plan.uniforms)}")
    for column in sorted(body.scalars):
        truth = " != 0" * (plan.hosts[column].kind == BOOLEAN)
        lines.append(f"k{column} = load(row, {column}){truth}  # {formula(plan.hosts[column])}")
    for column in sorted(body.uniforms):
        truth = " != 0" * (plan.uniforms[column].kind == BOOLEAN)
        lines.append(f"u{column} = load(uniform, {column}){truth}  # {formula(plan.uniforms[column])}")
    return lines


def _loads(stage: Stage, names: dict[Hashable, str]) -> list[str]:
    return [f"{names[key]} = load(p_{names[key]}, i)" for key in stage.reads]


def _statements(body: Body) -> list[str]:
    return [f"{name} = {text}" for name, text, _ in body.statements]


def _write_loop(plan: Plan, stage: Stage, body: Body, names: dict[Hashable, str]) -> list[str]:
    inner = _loads(stage, names) + _statements(body)
    stores = []
    for key, end in zip(stage.outputs, body.ends, strict=True):
        inner.append(f"{names[key]}_new = {end}")
        stores.append(f"store(p_{names[key]}, i, {names[key]}_new)")
    lines = ["for i in range(n):", *("    " + line for line in inner + stores)]
    lines += [f"if flags & {GATHER_W}:", "    call_copy(copy, word(entry, 4), w_data, start, n, p_w, 1)"]
    lines += [f"if zero and flags & {ZERO_G}:", f"    if flags & {GATHER_G}:"]
    lines += ["        call_copy(copy, word(entry, 5), g_data, start, n, p_g, 2)", "    else:"]
    lines += ["        for i in range(n):", "            store(p_g, i, real(0.0))"]
    return lines


def _begin_reductions(stage: Stage) -> list[str]:
    """Each reduction has 128 lanes in scratch memory, behind a raw pointer: so the loop vectorizes."""
    lines = [f"count = {len(stage.reductions)}", "partials = word(job, 7)"]
    lines += [f"lanes{i} = scratch + {SCRATCH + i * LANES * 8}" for i in range(len(stage.reductions))]
    return lines


def _accumulate(reduction: Node, lanes: str, lane: str, value: str) -> str:
    """The statement that adds a value to its lane."""
    if reduction.op in ("max", "min"):
        sign = ">" if reduction.op == "max" else "<"
        return f"store_float64({lanes}, {lane}, a if (a {sign} {value}) | (a != a) else {value})"
    return f"store_float64({lanes}, {lane}, a + {value})"


def _reduce_loop(stage: Stage, body: Body, names: dict[Hashable, str]) -> list[str]:
    inner = _loads(stage, names) + _statements(body)
    for number, (reduction, end) in enumerate(zip(stage.reductions, body.ends, strict=True)):
        inner.append(f"y{number} = float64({end})")
        if reduction.op == "sum_of_squares":
            if reduction.key:
                inner.append(f"y{number} = y{number} * {2.0 ** reduction.key!r}")  # type: ignore[operator]
            inner.append(f"y{number} = y{number} * y{number}")
        inner.append(f"a = load_float64(lanes{number}, lane)")
        inner.append(_accumulate(reduction, f"lanes{number}", "lane", f"y{number}"))
    lines = [f"for unit in range(0, n, {UNIT}):", f"    stop = min(n, unit + {UNIT})"]
    for number, reduction in enumerate(stage.reductions):
        lines += [f"    for lane in range({LANES}):", f"        store_float64(lanes{number}, lane, {_identity(reduction)})"]
    lines += [f"    for first in range(unit, stop, {LANES}):", f"        for lane in range(min({LANES}, stop - first)):"]
    lines += ["            i = first + lane", *("            " + line for line in inner)]
    lines.append(f"    place = (word(entry, 3) + (start + unit) // {UNIT}) * count")
    for number, reduction in enumerate(stage.reductions):
        lines += ["    " + line for line in _tree(reduction, f"lanes{number}")]
        lines.append(f"    store_float64(partials, place + {number}, load_float64(lanes{number}, 0))")
    return lines


def _identity(reduction: Node) -> str:
    value = IDENTITY[reduction.op]
    return repr(value) if value == 0 else ("math.inf" if value > 0 else "-math.inf")


def _tree(reduction: Node, lanes: str) -> list[str]:
    lines = ["half = 64", "while half:", "    for lane in range(half):"]
    lines += [f"        a, b = load_float64({lanes}, lane), load_float64({lanes}, lane + half)"]
    lines += ["        " + _accumulate(reduction, lanes, "lane", "b"), "    half //= 2"]
    return lines


