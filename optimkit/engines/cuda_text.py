"""The text of CUDA kernels: the stages of a plan as CUDA C++ that NVRTC compiles.

One launch serves all parameters of a bucket. A block looks up its chunk, and the parameter of
the chunk in the table (`ENTRY` names its columns; the addresses of the arrays follow). Stages that
reduce leave one value per unit of 2,048; the block that arrives last at a parameter adds them, and
the one that arrives last of all computes the uniform values: no launch of their own.

Bytes in flight: an H100 needs about 18 KB per SM to hide its memory's latency (3.35 TB/s over 132 SMs, about
700 ns). A thread that writes asks for 16 bytes of every array it reads at once, one that reduces for 64 in
all; with at most 128 registers, 512 of them are resident, which is 32 KB. Chunks of 4,096 (16 KB an
array) cost one look at the table for four rounds of 256 threads.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from optimkit.engines.canonical import LANES, UNIT
from optimkit.engines.cuda_uniform import COMBINE, UniformText, note
from optimkit.engines.text import Body, identifiers, write_body
from optimkit.fusion.graph import BOOLEAN, Node
from optimkit.fusion.show import traffic
from optimkit.fusion.stages import GRADIENT, WEIGHT, Plan, Stage

WRITE_CHUNK, WRITE_THREADS = 4096, 256
READ_CHUNK, READ_THREADS = 8192, 128
ROWS = 384  # doubles that a launch carries by value
ENTRY = ("size", "row", "flags", "first_unit", "blocks", "place", "layout_w", "layout_g")
ABSENT, VECTOR, STRIDED_W, STRIDED_G, ZERO_G, OTHER_G = 1, 2, 4, 8, 16, 32  # bits of flags, named alike in the text

TABLE = {
    "add": "({0} + {1})",
    "subtract": "({0} - {1})",
    "multiply": "({0} * {1})",
    "divide": "({0} / {1})",
    "negative": "(-{0})",
    "sqrt": "sqrt({0})",
    "abs": "fabs({0})",
    "sign": "sign_of({0})",
    "minimum": "minimum_of({0}, {1})",
    "maximum": "maximum_of({0}, {1})",
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
    "count_power": "count_power({0}, {1})",
    "equal": "({0} == {1})",
    "not_equal": "({0} != {1})",
    "less": "({0} < {1})",
    "less_equal": "({0} <= {1})",
    "greater": "({0} > {1})",
    "greater_equal": "({0} >= {1})",
    "isfinite": "is_finite({0})",
    "isnan": "({0} != {0})",
    "logical_and": "({0} && {1})",
    "logical_or": "({0} || {1})",
    "logical_not": "(!{0})",
    "where": "({0} ? {1} : {2})",
    "real": "{0}",
    "conj": "{0}",
    "imag": "({0} * 0)",
}

PRELUDE = """\
typedef long long word;
enum {{ {columns_of_entry} }};  // columns of the table; the addresses of the arrays follow
enum {{ ABSENT = 1, VECTOR = 2, STRIDED_W = 4, STRIDED_G = 8, ZERO_G = 16, OTHER_G = 32 }};  // bits of FLAGS
struct Job {{
    const word* table;          // one entry per parameter
    const int2* chunks;         // (parameter, number of the chunk), for the stage that writes
    const int2* read_chunks;    // the same for the stages that reduce
    const double* more_rows;    // the rows, where they are too many to be carried below
    double* uniforms;           // uniform values, {columns} per parameter
    double* slots;              // state per parameter, {slots} values each
    double* shared;             // state per optimizer
    word* counts;               // updates of each parameter, where a step is decided on the device
    int* arrived;               // blocks that have finished, per parameter
    int* control;               // [0] parameters that have finished, [1] blocks that have written
    double* partials;           // one value per unit of 2,048 elements and reduction
    double* contributions;      // what each parameter of the optimizer adds to each total, by device
    double* result;             // [0] norm of all gradients, [1] whether it is finite
    unsigned long long write_shared;  // bits: the slots per optimizer that this bucket writes
    int members, present;       // parameters of the bucket, and those that have a gradient
    int entries, labels;        // parameters of the optimizer, and totals
    int devices, device;        // with parameters of the optimizer, and which this one is
    int zero, finish;           // zero the gradients; finish the rounds in the launch that reduces
    double rows[{rows}];
}};
{classes}
template <class T> __device__ __forceinline__ T minimum_of(T a, T b) {{ return (a < b || a != a) ? a : b; }}
template <class T> __device__ __forceinline__ T maximum_of(T a, T b) {{ return (a > b || a != a) ? a : b; }}
template <class T> __device__ __forceinline__ T sign_of(T a) {{
    return a != a ? a : (a > 0 ? (T)1 : (a < 0 ? (T)-1 : (T)0));
}}
template <class T> __device__ __forceinline__ bool is_finite(T a) {{ return a - a == 0; }}
__device__ __forceinline__ double count_power(double base, double count) {{
    double result = 1.0, square = base;
    for (word bits = (word)fabs(count); bits; bits >>= 1) {{
        if (bits & 1) result *= square;
        square *= square;
    }}
    return count < 0 ? 1.0 / result : result;
}}

// The address of element i of a strided array, in memory order of its weight.
__device__ __noinline__ char* strided(const word* layout, char* data, word i) {{
    word axes = layout[0];
    for (word axis = axes - 1; axis >= 0; axis--) {{
        data += (i % layout[1 + axis]) * layout[1 + axes + axis];
        i /= layout[1 + axis];
    }}
    return data;
}}
template <class T> __device__ __forceinline__ T* global(T* p) {{ __builtin_assume(__isGlobal(p)); return p; }}
"""

_CLASSES = """\
typedef {real} real;
typedef {other} other;
struct alignas(16) Pack {{ real x[{lanes}]; }};
"""

# A gradient that is strided, of another dtype, or both.
_LOAD_G = """\
__device__ __forceinline__ real load_g(const word* entry, real* g, word i) {
    word flags = entry[FLAGS];
    char* p = (char*)g + i * ((flags & OTHER_G) ? sizeof(other) : sizeof(real));
    if (flags & STRIDED_G) p = strided((const word*)entry[LAYOUT_G], (char*)g, i);
    p = global(p);
    return (flags & OTHER_G) ? (real)*(other*)p : *(real*)p;
}
__device__ __forceinline__ void zero_g(const word* entry, real* g, word i) {
    word flags = entry[FLAGS];
    char* p = (char*)g + i * ((flags & OTHER_G) ? sizeof(other) : sizeof(real));
    if (flags & STRIDED_G) p = strided((const word*)entry[LAYOUT_G], (char*)g, i);
    p = global(p);
    if (flags & OTHER_G) *(other*)p = 0; else *(real*)p = 0;
}
__device__ __forceinline__ real* at_w(const word* entry, real* w, word i) {
    return global((entry[FLAGS] & STRIDED_W) ? (real*)strided((const word*)entry[LAYOUT_W], (char*)w, i) : w + i);
}
"""


def literal(node: Node, real: str = "real") -> str:
    """A constant in the compute dtype."""
    if node.kind == BOOLEAN:
        return "true" if node.key else "false"
    value = float(node.key)  # type: ignore[arg-type]
    if value != value:
        text = "__longlong_as_double(0x7ff8000000000000LL)"
    elif value in (float("inf"), float("-inf")):
        text = "__longlong_as_double(0x7ff0000000000000LL)" if value > 0 else "(-__longlong_as_double(0x7ff0000000000000LL))"
    else:
        text = repr(value)
    return f"(({real}){text})"


def module_text(
    plan: Plan,
    dtype: str,
    labels: Sequence[Hashable] = (),
    slots: Sequence[Hashable] = (),
    device_count: bool = False,
    skip: bool = False,
) -> str:
    """The text of all kernels of a plan.

    Parameters
    ----------
    labels, slots : sequence
        The totals, and the slots per optimizer, of the whole optimizer.
    device_count : bool
        Update counts live on the device.
    skip : bool
        The device decides whether the step is applied.
    """
    real, other = {"float32": ("float", "double"), "float64": ("double", "float")}[dtype]
    uniform = UniformText(plan, TABLE, len(ENTRY) + len(plan.arrays), labels, slots)
    itemsize = 4 if real == "float" else 8
    classes = _CLASSES.format(real=real, other=other, lanes=16 // itemsize)
    head = [f"// {plan.program.name}, {dtype}"]
    for number in range(len(plan.stages)):
        read, written = traffic(plan, number, itemsize)
        head.append(f"// stage {number + 1}: {read} bytes read, {written} written per element")
    columns = ", ".join(ENTRY).upper()
    prelude = PRELUDE.format(
        columns_of_entry=columns, columns=uniform.width, slots=len(uniform.slots), rows=ROWS, classes=classes
    )
    parts = ["\n".join(head), prelude, _LOAD_G]
    epilogue = uniform.epilogue(device_count, skip) if device_count or plan.slot_outputs else []
    if uniform.numbers or epilogue:
        parts.append(COMBINE)
    parts += uniform.functions(plan.program.gradient_norm)
    parts += [_read_kernel(plan, number, uniform) for number in range(len(plan.reading))]
    parts.append(_write_kernel(plan, uniform, epilogue, skip))
    return "\n".join(parts)


def _element(name: str, body: Body, stage: Stage, names: dict[Hashable, str], results: list[str]) -> str:
    """The function of one element: everything by value, the results by reference."""
    given = [f"real {names[key]}" for key in stage.reads]
    given += [f"real k{column}" for column in sorted(body.scalars)] + [f"real u{column}" for column in sorted(body.uniforms)]
    given += [f"real& {result}" for result in results]
    lines = [f"__device__ __forceinline__ void {name}({', '.join(given)}) {{"]
    lines += [f"    {'bool' if kind == BOOLEAN else 'real'} {temporary} = {text};" for temporary, text, kind in body.statements]
    lines += [f"    {result} = {end};" for result, end in zip(results, body.ends, strict=True)]
    return "\n".join([*lines, "}"])


def _prologue(plan: Plan, body: Body, uniform: UniformText, chunks: str, skip: bool) -> list[str]:
    """What a block knows before its loop: its chunk, its parameter's entry, and all scalars; read once, by one warp."""
    words, hosts = len(ENTRY) + len(plan.arrays), len(plan.hosts)
    columns = sorted(body.uniforms)
    lines = [f"__shared__ word entry[{words}];", f"__shared__ double rows[{max(1, hosts)}], uniform[{max(1, len(columns))}];"]
    lines += ["__shared__ int2 chunk;"] + ["__shared__ bool apply;"] * skip + ["if (threadIdx.x < 32) {"]
    inner = [f"int2 mine = job.{chunks}[blockIdx.x];", "word p = mine.x;", f"const word* from = job.table + p * {words};"]
    inner += [f"for (int i = threadIdx.x; i < {words}; i += 32) entry[i] = from[i];"]
    if hosts:
        inner += [f"const double* values = (job.more_rows ? job.more_rows : job.rows) + from[ROW] * {hosts};"]
        inner += [f"for (int i = threadIdx.x; i < {hosts}; i += 32) rows[i] = values[i];"]
    inner += ["if (threadIdx.x == 0) chunk = mine;"] + ["if (threadIdx.x == 0) apply = job.result[1] != 0.0;"] * skip
    early = [place for place, column in enumerate(columns) if uniform.is_early(plan.uniforms[column])]
    for place, column in enumerate(columns):
        if place not in early:
            inner.append(f"if (threadIdx.x == {place % 32}) uniform[{place}] = {uniform.stored(plan.uniforms[column])};")
    if early:
        known: dict[Node, str] = {}
        own: list[str] = []
        ends = [uniform.expression(plan.uniforms[columns[place]], known, own) for place in early]
        own += [f"uniform[{place}] = {end};" for place, end in zip(early, ends, strict=True)]
        inner += ["__syncwarp();", "if (threadIdx.x == 0) {", *("    " + line for line in own), "}"]
    lines += ["    " + line for line in inner] + ["}", "__syncthreads();", "word p = chunk.x, flags = entry[FLAGS];"]
    lines += [f"real k{column} = (real)rows[{column}];  // {note(plan.hosts[column])}" for column in sorted(body.scalars)]
    lines += [f"real u{c} = (real)uniform[{place}];  // {note(plan.uniforms[c])}" for place, c in enumerate(columns)]
    return lines


def _pointers(plan: Plan, stage: Stage, names: dict[Hashable, str]) -> list[str]:
    keys = list(dict.fromkeys([*stage.reads, *stage.outputs, *([GRADIENT] if stage is plan.last else [])]))
    return [f"real* p_{names[key]} = global((real*)entry[{len(ENTRY) + plan.arrays.index(key)}]);" for key in keys]


def _load(key: Hashable, name: str) -> str:
    """One element, by scalar code."""
    if key == WEIGHT:
        return f"*at_w(entry, p_{name}, i)"
    return f"load_g(entry, p_{name}, i)" if key == GRADIENT else f"p_{name}[i]"


def _write_kernel(plan: Plan, uniform: UniformText, epilogue: list[str], skip: bool) -> str:
    stage, names = plan.last, identifiers(plan.arrays)
    body = write_body(plan, stage, TABLE, names, literal)
    results = [f"{names[key]}_new" for key in stage.outputs]
    scalars = [f"k{column}" for column in sorted(body.scalars)] + [f"u{column}" for column in sorted(body.uniforms)]
    lanes = "sizeof(Pack) / sizeof(real)"

    def call(values: list[str], targets: list[str]) -> str:
        return f"element({', '.join([*values, *scalars, *targets])});"

    reads = [names[key] for key in stage.reads]
    zero = "p_" + names[GRADIENT]
    lines = _prologue(plan, body, uniform, "chunks", skip)
    inner = _pointers(plan, stage, names)
    inner += [f"word start = (word)chunk.y * {WRITE_CHUNK}, end = min(entry[SIZE], start + {WRITE_CHUNK}), done = start;"]
    inner += ["bool zero = job.zero && (flags & ZERO_G);", "if (flags & VECTOR) {", f"    const word lanes = {lanes};"]
    inner += ["    done = start + (end - start) / lanes * lanes;"]
    inner += ["    for (word i = start + threadIdx.x * lanes; i < done; i += blockDim.x * lanes) {"]
    inner += [f"        Pack {name} = *(const Pack*)(p_{name} + i);" for name in reads]
    fresh = [f"{names[key]}_new" for key in stage.outputs]
    inner += [f"        Pack {', '.join(fresh)};", "        #pragma unroll", "        for (int j = 0; j < lanes; j++)"]
    inner += ["            " + call([f"{name}.x[j]" for name in reads], [f"{name}.x[j]" for name in fresh])]
    inner += [f"        *(Pack*)(p_{names[key]} + i) = {names[key]}_new;" for key in stage.outputs]
    inner += [f"        if (zero) *(Pack*)({zero} + i) = Pack{{}};", "    }", "}"]
    inner += ["for (word i = done + threadIdx.x; i < end; i += blockDim.x) {", f"    real {', '.join(fresh)};"]
    inner += ["    " + call([_load(key, names[key]) for key in stage.reads], fresh)]
    for key in stage.outputs:
        target = _load(key, names[key]) if key == WEIGHT else f"p_{names[key]}[i]"
        inner.append(f"    {target} = {names[key]}_new;")
    inner += [f"    if (zero) zero_g(entry, {zero}, i);", "}"]
    wanted = "!(flags & ABSENT) && apply" if skip else "!(flags & ABSENT)"
    lines += [f"if ({wanted}) {{", *("    " + line for line in inner), "}"]
    if skip:
        lines.append("if (!apply && !(flags & ABSENT) && job.zero && (flags & ZERO_G)) {")
        lines += [*("    " + line for line in _zero_only(plan, zero)), "}"]
    lines += epilogue
    head = f'extern "C" __global__ void __launch_bounds__({WRITE_THREADS}, 2)\nwrite_stage(const __grid_constant__ Job job) {{'
    kernel = "\n".join([head, *("    " + line for line in lines), "}"])
    return "\n".join([_element("element", body, stage, names, results), kernel, ""])


def _zero_only(plan: Plan, zero: str) -> list[str]:
    """The gradients of a step that is left out are zeroed all the same."""
    column = len(ENTRY) + plan.arrays.index(GRADIENT)
    return [
        f"real* {zero} = global((real*)entry[{column}]);",
        f"word start = (word)chunk.y * {WRITE_CHUNK}, end = min(entry[SIZE], start + {WRITE_CHUNK});",
        f"for (word i = start + threadIdx.x; i < end; i += blockDim.x) zero_g(entry, {zero}, i);",
    ]


def _read_kernel(plan: Plan, number: int, uniform: UniformText) -> str:
    stage, names = plan.stages[number], identifiers(plan.arrays)
    body = write_body(plan, stage, TABLE, names, literal)
    count = len(stage.reductions)
    results = [f"y{r}" for r in range(count)]
    scalars = [f"k{column}" for column in sorted(body.scalars)] + [f"u{column}" for column in sorted(body.uniforms)]
    name = f"element_{number}"
    inner = _pointers(plan, stage, names)
    inner += [f"word unit = (word)chunk.y * {READ_CHUNK // UNIT} + threadIdx.x / 32, first = unit * {UNIT};"]
    inner += ["int thread = threadIdx.x % 32;", f"word end = min(entry[SIZE], first + {UNIT});"]
    inner += [f"double a{r}[4] = {{{', '.join([_identity(node)] * 4)}}};" for r, node in enumerate(stage.reductions)]
    inner += ["word row = first + thread * 4;"]
    inner += _rows_in_flight(stage, names, scalars, name, results)
    inner += [f"for (; row < end; row += {LANES})", "    #pragma unroll"]
    inner += ["    for (int j = 0; j < 4; j++) if (row + j < end) {"]
    inner += ["        word i = row + j;", f"        real {', '.join(results)};"]
    inner += [f"        {name}({', '.join([*(_load(key, names[key]) for key in stage.reads), *scalars, *results])});"]
    inner += ["        " + line for r, node in enumerate(stage.reductions) for line in _accumulate(node, r)] + ["    }"]
    for r, node in enumerate(stage.reductions):
        inner += ["for (int half = 16; half; half >>= 1) for (int j = 0; j < 4; j++) {"]
        inner += [f"    double other_lane = __shfl_down_sync(0xffffffffu, a{r}[j], half);"]
        inner += [f"    a{r}[j] = {_merge(node, f'a{r}[j]', 'other_lane')};", "}"]
        inner += [f"for (int j = 0; j < 2; j++) a{r}[j] = {_merge(node, f'a{r}[j]', f'a{r}[j + 2]')};"]
        inner += [f"a{r}[0] = {_merge(node, f'a{r}[0]', f'a{r}[1]')};"]
    inner += ["if (thread == 0 && first < entry[SIZE]) {"]
    inner += [f"    double* to = job.partials + (entry[FIRST_UNIT] + unit) * {count};"]
    inner += [f"    to[{r}] = a{r}[0];" for r in range(count)] + ["}"]
    lines = _prologue(plan, body, uniform, "read_chunks", skip=False)
    lines += ["if (flags & ABSENT) return;", *inner, *uniform.finish(stage)]
    head = f'extern "C" __global__ void __launch_bounds__({READ_THREADS}, 4)\n'
    head += f"read_stage_{number}(const __grid_constant__ Job job) {{"
    kernel = "\n".join([head, *("    " + line for line in lines), "}"])
    return "\n".join([_element(name, body, stage, names, results), kernel, ""])


def _rows_in_flight(stage: Stage, names: dict[Hashable, str], scalars: list[str], name: str, results: list[str]) -> list[str]:
    """The loop over rows of 128 lanes that lie in one piece: 64 bytes a thread are asked for before the first is used."""
    reads = [names[key] for key in stage.reads]
    depth = max(1, 4 // max(1, len(reads)))
    lines = [f"if (flags & VECTOR) for (; row + {LANES * (depth - 1) + 4} <= end; row += {LANES * depth}) {{"]
    lines += ["    const int lanes = sizeof(Pack) / sizeof(real);"]
    lines += [f"    alignas(16) real v_{each}[{depth}][4];" for each in reads] + ["    #pragma unroll"]
    lines += [f"    for (int d = 0; d < {depth}; d++) for (int j = 0; j < 4; j += lanes) {{"]
    for each in reads:
        lines.append(f"        *(Pack*)(v_{each}[d] + j) = *(const Pack*)(p_{each} + row + d * {LANES} + j);")
    lines += ["    }", "    #pragma unroll", f"    for (int d = 0; d < {depth}; d++) for (int j = 0; j < 4; j++) {{"]
    lines += [f"        real {', '.join(results)};"]
    lines += [f"        {name}({', '.join([*(f'v_{each}[d][j]' for each in reads), *scalars, *results])});"]
    lines += ["        " + line for r, node in enumerate(stage.reductions) for line in _accumulate(node, r)]
    return [*lines, "    }", "}"]


def _identity(node: Node) -> str:
    infinity = "__longlong_as_double(0x7ff0000000000000LL)"
    return {"max": f"-{infinity}", "min": infinity}.get(node.op, "0.0")


def _merge(node: Node, a: str, b: str) -> str:
    function = {"max": "maximum_of", "min": "minimum_of"}.get(node.op)
    return f"{function}({a}, {b})" if function else f"{a} + {b}"


def _accumulate(node: Node, r: int) -> list[str]:
    lines = [f"double z{r} = (double)y{r};"]
    if node.op == "sum_of_squares":
        if node.key:
            lines.append(f"z{r} = z{r} * {2.0**node.key!r};")  # type: ignore[operator]
        lines.append(f"z{r} = z{r} * z{r};")
    return [*lines, f"a{r}[j] = {_merge(node, f'a{r}[j]', f'z{r}')};"]


__all__ = ["ABSENT", "ENTRY", "OTHER_G", "ROWS", "STRIDED_G", "STRIDED_W", "VECTOR", "ZERO_G", "module_text"]
