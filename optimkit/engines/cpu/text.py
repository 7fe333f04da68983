"""The text of CPU kernels: a stage of a plan as a Python function that is compiled.

One call serves all parameters of a bucket. It takes the address of a job (`JOB` names its
words), claims chunks from a counter until none is left, and looks up the parameter of a chunk in
the table (`entry_columns` names its columns). Arrays that are not dense, or of another dtype, go through
scratch memory, a chunk at a time (`copies`).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from functools import lru_cache

from optimkit.arrays import DType
from optimkit.engines.canonical import IDENTITY, LANES, UNIT
from optimkit.engines.cpu.language import CONSTANTS, FUNCTIONS
from optimkit.engines.tables import Columns, Entry
from optimkit.engines.text import OPERATORS, Body, identifiers, indent, write_body
from optimkit.fusion.graph import BOOLEAN, Node
from optimkit.fusion.show import formula, traffic
from optimkit.fusion.stages import GRADIENT, WEIGHT, Plan, Stage

CHUNK = 16384
WORD = 8  # bytes
JOB = Columns(
    "chunks", "counter", "n_chunks", "table", "rows", "uniforms", "scratch", "partials",
    "results", "operations", "zero", "n_params", "entry_bytes", "count",
)  # fmt: skip
ENTRY = ("size", "row", "flags", "first_unit")  # of a parameter; its arrays follow
ABSENT, ZERO_G, GATHER = 1, 2, 4  # bits of flags; from GATHER on, one for each array that may have to be gathered
LAYOUT = Columns("copy", "axes")  # of an array that is gathered: the address of what does it; lengths and strides follow
STRIDED = (WEIGHT, GRADIENT)  # arrays that may be strided, or of another dtype, in any bucket

TABLE = OPERATORS | {
    "abs": "abs({0})",
    "sign": "({0} if {0} != {0} else (real(1.0) if {0} > 0 else (real(-1.0) if {0} < 0 else real(0.0))))",
    "minimum": "({0} if ({0} < {1}) | ({0} != {0}) else {1})",
    "maximum": "({0} if ({0} > {1}) | ({0} != {0}) else {1})",
    "floor": "floor({0})",
    "ceil": "ceil({0})",
    "round": "rint({0})",
    "exp": "exp({0})",
    "expm1": "expm1({0})",
    "log": "log({0})",
    "log1p": "log1p({0})",
    "tanh": "tanh({0})",
    "hypot": "hypot({0}, {1})",
    "power": "pow({0}, {1})",
    "isfinite": "(({0} - {0}) == 0)",
    "logical_and": "({0} & {1})",
    "logical_or": "({0} | {1})",
    "logical_not": "(not {0})",
    "where": "({1} if {0} else {2})",
    "imag": "({0} * real(0.0))",
}

_HEAD = """\
# {title}
# {traffic}
from optimkit.engines.cpu.language import {names}
from optimkit.engines.cpu.language import {real} as real, load_{cpu} as load, load_int64 as word, store_{cpu} as store

# words of the job; columns of a parameter's entry, and bits of its flags; words of an array's layout
{words}

"""

_LOOP = """\
def kernel(job):
    chunks, counter, n_chunks, table = word(job, CHUNKS), word(job, COUNTER), word(job, N_CHUNKS), word(job, TABLE)
    rows, uniforms, scratch = word(job, ROWS), word(job, UNIFORMS), word(job, SCRATCH)
{begin}
    while True:
        c = claim(counter, 1)
        if c >= n_chunks:
            break
        p, start = word(chunks, 2 * c), word(chunks, 2 * c + 1)
        entry = table + p * {entry_bytes}
        flags = word(entry, FLAGS)
        if flags & ABSENT:
            continue
        n = min(word(entry, SIZE) - start, {chunk})
"""


def entry_columns(plan: Plan, strided: Sequence[Hashable] = STRIDED) -> Entry:
    """The columns of a parameter's table entry."""
    return Entry(ENTRY, identifiers(plan.arrays), strided, GATHER)


def scratch_bytes(strided: Sequence[Hashable]) -> int:
    """Bytes of a thread's scratch memory before the lanes of its reductions: a chunk of each array that is gathered."""
    return len(strided) * CHUNK * WORD


def kernel_texts(plan: Plan, dtype: DType) -> list[str]:
    """The texts of all stages."""
    return [kernel_text(plan, number, dtype) for number in range(len(plan.stages))]


@lru_cache(maxsize=256)
def kernel_text(plan: Plan, number: int, dtype: DType, strided: tuple[Hashable, ...] = STRIDED) -> str:
    """The text of stage `number` of a plan, for arrays of `dtype`, of which those in `strided` may have to be gathered."""
    return _Kernel(plan, number, dtype, strided).text()


def used_names(kernel: str) -> str:
    """The names of the language that a text uses."""
    return ", ".join(name for name in (*FUNCTIONS, *CONSTANTS) if re.search(rf"\b{name}\b", kernel))


def _literal(node: Node) -> str:
    if node.kind == BOOLEAN:
        return repr(bool(node.key))
    text = repr(float(node.key))  # type: ignore[arg-type]
    return f"real({text})"


class _Kernel:
    """One kernel: a stage of a plan, for a dtype."""

    def __init__(self, plan: Plan, number: int, dtype: DType, strided: Sequence[Hashable]) -> None:
        self.plan, self.number, self.dtype, self.strided = plan, number, dtype, tuple(strided)
        self.stage: Stage = plan.stages[number]
        self.names = identifiers(plan.arrays)
        self.columns = entry_columns(plan, strided)
        self.body: Body = write_body(plan, self.stage, TABLE, self.names, _literal)

    def text(self) -> str:
        plan, stage, dtype = self.plan, self.stage, self.dtype
        read, written = traffic(plan, self.number, dtype.itemsize)
        bits = {"ABSENT": ABSENT, "ZERO_G": ZERO_G}
        bits |= {f"GATHER_{self.names[key]}": bit for key, bit in self.columns.bit.items()}
        begin = self._begin_reductions() if stage.reductions else ["zero = word(job, ZERO)"] * (stage is plan.last)
        loop = _LOOP.format(entry_bytes=WORD * len(self.columns), chunk=CHUNK, begin=indent(begin, 1))
        body = self._reduce_loop() if stage.reductions else self._write_loop()
        kernel = f"{loop}{indent(self._setup(), 2)}\n{indent(body, 2)}\n"
        words = [
            JOB.text(str.upper, kernel),
            self.columns.text(lambda name: name.upper() if name in ENTRY else name, kernel),
            f"{', '.join(bits)} = {', '.join(map(str, bits.values()))}",
            LAYOUT.text(str.upper, kernel),
        ]
        head = _HEAD.format(
            title=f"{plan.program.name}, {dtype.name}, stage {self.number + 1} of {len(plan.stages)}",
            traffic=f"{read} bytes read, {written} written per element",
            names=used_names(kernel),
            real=dtype.compute,
            cpu=dtype.cpu,
            words="\n".join(filter(None, words)),
        )
        return head + kernel

    def _setup(self) -> list[str]:
        """Addresses of this chunk's arrays, and the scalars of its parameter."""
        stage, plan, itemsize = self.stage, self.plan, self.dtype.itemsize
        lines = []
        used = list(dict.fromkeys([*stage.reads, *stage.outputs, *([GRADIENT] if stage is plan.last else [])]))
        for key in used:
            name = self.names[key]
            if key in self.strided:
                offset = scratch_bytes(self.strided[: self.strided.index(key)])
                lines += [f"{name}_data = word(entry, {name}_at)", f"if flags & GATHER_{name}:"]
                lines += [f"    p_{name} = scratch + {offset}"]
                if key in stage.reads:
                    lines += ["    " + line for line in self._copy(name, 0)]
                lines += ["else:", f"    p_{name} = {name}_data + {itemsize} * start"]
            else:
                lines.append(f"p_{name} = word(entry, {name}_at) + {itemsize} * start")
        body = self.body
        if body.scalars:
            lines.append(f"row = rows + word(entry, ROW) * {itemsize * len(plan.hosts)}")
        if body.uniforms:
            lines.append(f"uniform = uniforms + p * {itemsize * len(plan.uniforms)}")
        for column in sorted(body.scalars):
            truth = " != 0" * (plan.hosts[column].kind == BOOLEAN)
            lines.append(f"k{column} = load(row, {column}){truth}  # {formula(plan.hosts[column])}")
        for column in sorted(body.uniforms):
            truth = " != 0" * (plan.uniforms[column].kind == BOOLEAN)
            lines.append(f"u{column} = load(uniform, {column}){truth}  # {formula(plan.uniforms[column])}")
        return lines

    def _copy(self, name: str, mode: int) -> list[str]:
        """A chunk of an array to scratch memory (0), from there (1), or filled with zeros (2)."""
        layout = f"layout = word(entry, {name}_layout)"
        return [layout, f"call(word(layout, COPY), layout, {name}_data, start, n, p_{name}, {mode})"]

    def _loads(self) -> list[str]:
        return [f"{self.names[key]} = load(p_{self.names[key]}, i)" for key in self.stage.reads]

    def _statements(self) -> list[str]:
        return [f"{name} = {text}" for name, text, _ in self.body.statements]

    def _write_loop(self) -> list[str]:
        inner = self._loads() + self._statements()
        stores = []
        for key, end in zip(self.stage.outputs, self.body.ends, strict=True):
            name = self.names[key]
            inner.append(f"{name}_new = {end}")
            stores.append(f"store(p_{name}, i, {name}_new)")
        lines = ["for i in range(n):", *("    " + line for line in inner + stores)]
        for key in self.stage.outputs:
            if key in self.strided:
                name = self.names[key]
                lines += [f"if flags & GATHER_{name}:", *("    " + line for line in self._copy(name, 1))]
        if self.stage is self.plan.last:
            lines += ["if zero and flags & ZERO_G:", f"    if flags & GATHER_{self.names[GRADIENT]}:"]
            lines += [*("        " + line for line in self._copy(self.names[GRADIENT], 2)), "    else:"]
            lines += ["        for i in range(n):", "            store(p_g, i, real(0.0))"]
        return lines

    def _begin_reductions(self) -> list[str]:
        """Each reduction has its lanes in scratch memory, behind a raw pointer: so the loop vectorizes."""
        first, reductions = scratch_bytes(self.strided), self.stage.reductions
        lines = [f"count = {len(reductions)}", "partials = word(job, PARTIALS)"]
        return lines + [f"lanes{i} = scratch + {first + i * LANES * WORD}" for i in range(len(reductions))]

    def _reduce_loop(self) -> list[str]:
        stage = self.stage
        inner = self._loads() + self._statements()
        for number, (reduction, end) in enumerate(zip(stage.reductions, self.body.ends, strict=True)):
            inner.append(f"y{number} = float64({end})")
            if reduction.op == "sum_of_squares":
                if reduction.key:
                    inner.append(f"y{number} = y{number} * {2.0 ** reduction.key!r}")  # type: ignore[operator]
                inner.append(f"y{number} = y{number} * y{number}")
            inner.append(f"a = load_float64(lanes{number}, lane)")
            inner.append(_accumulate(reduction, f"lanes{number}", "lane", f"y{number}"))
        lines = [f"for unit in range(0, n, {UNIT}):", f"    stop = min(n, unit + {UNIT})"]
        lines += ["    " + line for line in _used_lanes("stop - unit")]
        for number, reduction in enumerate(stage.reductions):
            lines += ["    for lane in range(width):", f"        store_float64(lanes{number}, lane, {_identity(reduction)})"]
        lines += [f"    for first in range(unit, stop, {LANES}):", f"        for lane in range(min({LANES}, stop - first)):"]
        lines += ["            i = first + lane", *("            " + line for line in inner)]
        lines.append(f"    place = (word(entry, FIRST_UNIT) + (start + unit) // {UNIT}) * count")
        for number, reduction in enumerate(stage.reductions):
            lines += ["    " + line for line in _tree(reduction, f"lanes{number}")]
            lines.append(f"    store_float64(partials, place + {number}, load_float64(lanes{number}, 0))")
        return lines


def _accumulate(reduction: Node, lanes: str, lane: str, value: str) -> str:
    """The statement that adds a value to its lane."""
    if reduction.op in ("max", "min"):
        sign = ">" if reduction.op == "max" else "<"
        return f"store_float64({lanes}, {lane}, a if (a {sign} {value}) | (a != a) else {value})"
    return f"store_float64({lanes}, {lane}, a + {value})"


def _used_lanes(count: str) -> list[str]:
    """The statements that find how wide the tree is: lanes that nothing was added to change no bit of it."""
    return [f"width = {LANES}", f"while width // 2 >= {count}:", "    width //= 2"]


def _identity(reduction: Node) -> str:
    value = IDENTITY[reduction.op]
    return repr(value)


def _tree(reduction: Node, lanes: str) -> list[str]:
    lines = ["half = width // 2", "while half:", "    for lane in range(half):"]
    lines += [f"        a, b = load_float64({lanes}, lane), load_float64({lanes}, lane + half)"]
    lines += ["        " + _accumulate(reduction, lanes, "lane", "b"), "    half //= 2"]
    return lines
