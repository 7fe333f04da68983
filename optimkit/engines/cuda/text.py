"""The text of CUDA kernels: the stages of a plan as CUDA C++ that NVRTC compiles.

One launch serves all parameters of a bucket. A block looks up its chunk, and the parameter of
the chunk in the table (`job` names its columns). Stages that
reduce leave one value per unit of 2,048; the block that arrives last at a parameter adds them, and
the one that arrives last of all computes the uniform values: no launch of their own.

Bytes in flight: an H100 needs about 18 KB per SM to hide its memory's latency (3.35 TB/s over 132 SMs, about
700 ns). A thread that writes asks for 16 bytes of every array it reads at once, one that reduces for 64 in
all; with at most 128 registers, 512 of them are resident, which is 32 KB. Chunks of 4,096 (16 KB an
array) cost one look at the table for four rounds of 256 threads.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from optimkit.arrays import DType
from optimkit.engines.canonical import LANES, UNIT
from optimkit.engines.cuda.combine import COMBINE
from optimkit.engines.cuda.job import READ_CHUNK, READ_THREADS, STRIDED, WRITE_THREADS, entry_columns
from optimkit.engines.cuda.operations import TABLE, identity, literal, note
from optimkit.engines.cuda.prelude import prelude
from optimkit.engines.cuda.uniform import COUNT, NEXT_COUNT, UniformText
from optimkit.engines.text import Body, identifiers, write_body
from optimkit.fusion.graph import BOOLEAN, Node
from optimkit.fusion.show import traffic
from optimkit.fusion.stages import GRADIENT, Plan, Stage, number_totals


def kernel_texts(plan: Plan, dtype: DType) -> list[str]:
    """The text of an optimizer's only bucket."""
    slots = [key for key in plan.slot_outputs if key[-1] == "optimizer"]  # type: ignore[index]
    return [module_text(plan, dtype, number_totals([plan]), slots)]


def module_text(
    plan: Plan,
    dtype: DType,
    labels: Mapping[Hashable, int],
    slots: Sequence[Hashable] = (),
    device_count: bool = False,
    skip: bool = False,
    strided: Sequence[Hashable] = STRIDED,
    by_value: int = 0,
) -> str:
    """The text of all kernels of a plan.

    Parameters
    ----------
    labels : dict
        The numbers of the totals of the optimizer (`number_totals`).
    slots : sequence
        The slots per optimizer, of the whole optimizer.
    device_count : bool
        Update counts live on the device.
    skip : bool
        The device decides whether the step is applied.
    strided : sequence
        Keys of the arrays that may be strided.
    by_value : int
        Words of `moving` that a launch has room for (`job_text`).
    """
    return _Module(plan, dtype, labels, slots, device_count, skip, strided, by_value).text()


class _Module:
    """All kernels of a plan, for a dtype."""

    def __init__(
        self,
        plan: Plan,
        dtype: DType,
        labels: Mapping[Hashable, int],
        slots: Sequence[Hashable],
        device_count: bool,
        skip: bool,
        strided: Sequence[Hashable],
        by_value: int,
    ) -> None:
        self.by_value = by_value
        self.plan, self.dtype, self.skip, self.strided = plan, dtype, skip, tuple(strided)
        self.names = identifiers(plan.arrays)
        self.columns = entry_columns(plan, strided)
        self.uniform = UniformText(plan, labels, slots)
        self.device_count = device_count
        self.epilogue = self.uniform.epilogue(device_count, skip)

    def text(self) -> str:
        plan, uniform = self.plan, self.uniform
        head = [f"// {plan.program.name}, {self.dtype.name}"]
        for number in range(len(plan.stages)):
            read, written = traffic(plan, number, self.dtype.itemsize)
            head.append(f"// stage {number + 1}: {read} bytes read, {written} written per element")
        widths = uniform.width, uniform.row_width, len(uniform.slots), self.by_value
        parts = ["\n".join(head), prelude(self.columns, self.dtype, *widths)]
        if plan.reducing or uniform.numbers or self.epilogue:
            parts.append(COMBINE)
        parts += uniform.functions(plan.program.gradient_norm)
        parts += [self._read_kernel(number) for number in plan.reducing]
        parts += [self._write_kernel(number) for number in (*plan.filling, len(plan.stages) - 1)]
        return "\n".join(parts)

    def _element(self, name: str, body: Body, stage: Stage, results: list[str]) -> str:
        """The function of one element: everything by value, the results by reference."""
        given = [f"real {self.names[key]}" for key in stage.reads]
        given += [f"real {scalar}" for scalar in _scalars(body)]
        given += [f"real& {result}" for result in results]
        lines = [f"__device__ __forceinline__ void {name}({', '.join(given)}) {{"]
        lines += [f"    {'bool' if kind == BOOLEAN else 'real'} {known} = {text};" for known, text, kind in body.statements]
        lines += [f"    {result} = {end};" for result, end in zip(results, body.ends, strict=True)]
        return "\n".join([*lines, "}"])

    def _prologue(self, body: Body, chunk: str, skip: bool, count: str = COUNT) -> list[str]:
        """What a block knows before its loop: its chunk, its parameter's entry, and all scalars; read once, by one warp."""
        plan, uniform = self.plan, self.uniform
        words, hosts = len(self.columns), len(plan.hosts)
        columns = sorted(body.uniforms)
        lines = [f"__shared__ word entry[{words}];"]
        lines += [f"__shared__ double rows[{max(1, hosts)}], uniform[{max(1, len(columns))}];"]
        lines += ["__shared__ int2 chunk;"] + ["__shared__ bool apply;"] * skip + ["if (threadIdx.x < 32) {"]
        inner = ["int2 mine = {};", "if (threadIdx.x == 0) {", f"    chunk = mine = job.{chunk};"]
        inner += ["    apply = job.result[FINITE] != 0.0;"] * skip + ["}"]
        inner += ["word p = __shfl_sync(0xffffffffu, mine.x, 0);", "const Entry from{job, p};"]
        inner += [f"for (int i = threadIdx.x; i < {words}; i += 32) entry[i] = from[i];", "__syncwarp();"]
        if hosts:
            inner += [f"const double* values = (job.more_rows ? job.more_rows : job.rows) + entry[ROW] * {hosts};"]
            inner += [f"for (int i = threadIdx.x; i < {hosts}; i += 32) rows[i] = values[i];"]
        computed = [place for place, column in enumerate(columns) if not uniform.is_kept(plan.uniforms[column])]
        for place, column in enumerate(columns):
            if place not in computed:
                inner.append(f"if (threadIdx.x == {place % 32}) uniform[{place}] = {uniform.kept(plan.uniforms[column])};")
        if computed:
            known: dict[Node, str] = {}
            own: list[str] = []
            ends = [uniform.expression(plan.uniforms[columns[place]], known, own, count) for place in computed]
            own += [f"uniform[{place}] = {end};" for place, end in zip(computed, ends, strict=True)]
            inner += ["__syncwarp();", "if (threadIdx.x == 0) {", *("    " + line for line in own), "}"]
        lines += ["    " + line for line in inner] + ["}", "__syncthreads();", "word p = chunk.x, flags = entry[FLAGS];"]
        lines += [f"real k{column} = (real)rows[{column}];  // {note(plan.hosts[column])}" for column in sorted(body.scalars)]
        return lines + [f"real u{c} = (real)uniform[{place}];  // {note(plan.uniforms[c])}" for place, c in enumerate(columns)]

    def _pointers(self, stage: Stage) -> list[str]:
        keys = list(dict.fromkeys([*stage.reads, *stage.outputs, *([GRADIENT] if stage is self.plan.last else [])]))
        return [f"real* p_{self.names[key]} = global((real*)entry[{self.names[key]}_at]);" for key in keys]

    def _at(self, key: Hashable) -> str:
        """One element, by scalar code."""
        name = self.names[key]
        if key == GRADIENT:
            return f"load_g(entry, p_{name}, i)"
        return f"*at(entry, STRIDED_{name}, {name}_layout, p_{name}, i)" if key in self.strided else f"p_{name}[i]"

    def _write_kernel(self, number: int) -> str:
        """The last stage, or one that writes what calls are given."""
        plan = self.plan
        stage = plan.stages[number]
        last = stage is plan.last
        body = write_body(plan, stage, TABLE, self.names, literal)
        element = "element" if last else f"element_{number}"
        skip, zero = self.skip and last, "p_" + self.names[GRADIENT]

        def call(values: list[str], targets: list[str]) -> str:
            return f"{element}({', '.join([*values, *_scalars(body), *targets])});"

        reads = [self.names[key] for key in stage.reads]
        fresh = [f"{self.names[key]}_new" for key in stage.outputs]
        # Last first, where the gradients were read before: those at the end are in the cache still.
        chunk = "chunks[gridDim.x - 1 - blockIdx.x]" if plan.reducing else "chunks[blockIdx.x]"
        counting = last and self.device_count and bool(plan.reducing)
        lines = self._prologue(body, chunk, skip, NEXT_COUNT if counting else COUNT)
        inner = self._pointers(stage)
        inner += ["word start = (word)chunk.y * job.chunk, end = min(entry[SIZE], start + job.chunk), done = start;"]
        inner += ["bool zero = job.zero && (flags & ZERO_G);"] * last + ["if (flags & VECTOR) {"]
        inner += ["    const word lanes = sizeof(Pack) / sizeof(real);"]
        inner += ["    done = start + (end - start) / lanes * lanes;"]
        inner += [f"    for (word i = start + threadIdx.x * lanes; i < done; i += {WRITE_THREADS} * lanes) {{"]
        inner += [f"        Pack {name} = *(const Pack*)(p_{name} + i);" for name in reads]
        inner += [f"        Pack {', '.join(fresh)};", "        #pragma unroll", "        for (int j = 0; j < lanes; j++)"]
        inner += ["            " + call([f"{name}.x[j]" for name in reads], [f"{name}.x[j]" for name in fresh])]
        inner += [f"        *(Pack*)(p_{self.names[key]} + i) = {self.names[key]}_new;" for key in stage.outputs]
        inner += [f"        if (zero) *(Pack*)({zero} + i) = Pack{{}};"] * last + ["    }", "}"]
        inner += [f"for (word i = done + threadIdx.x; i < end; i += {WRITE_THREADS}) {{", f"    real {', '.join(fresh)};"]
        inner += ["    " + call([self._at(key) for key in stage.reads], fresh)]
        inner += [f"    {self._at(key)} = {self.names[key]}_new;" for key in stage.outputs]
        inner += [f"    if (zero) zero_g(entry, {zero}, i);"] * last + ["}"]
        inner += [f"if (chunk.y == 0 && threadIdx.x == 0) job.counts[p] = {NEXT_COUNT};"] * counting
        wanted = "!(flags & ABSENT) && apply" if skip else "!(flags & ABSENT)"
        lines += [f"if ({wanted}) {{", *("    " + line for line in inner), "}"]
        if skip:
            lines.append("if (!apply && !(flags & ABSENT) && job.zero && (flags & ZERO_G)) {")
            lines += [*("    " + line for line in self._zero_only(zero)), "}"]
        lines += self.epilogue if last else []
        name = "write_stage" if last else f"fill_stage_{number}"
        head = f'extern "C" __global__ void __launch_bounds__({WRITE_THREADS}, 2)\n{name}(const __grid_constant__ Job job) {{'
        kernel = "\n".join([head, *("    " + line for line in lines), "}"])
        return "\n".join([self._element(element, body, stage, fresh), kernel, ""])

    def _zero_only(self, zero: str) -> list[str]:
        """The gradients of a step that is left out are zeroed all the same."""
        return [
            f"real* {zero} = global((real*)entry[{self.names[GRADIENT]}_at]);",
            "word start = (word)chunk.y * job.chunk, end = min(entry[SIZE], start + job.chunk);",
            f"for (word i = start + threadIdx.x; i < end; i += {WRITE_THREADS}) zero_g(entry, {zero}, i);",
        ]

    def _read_kernel(self, number: int) -> str:
        plan = self.plan
        stage = plan.stages[number]
        body = write_body(plan, stage, TABLE, self.names, literal)
        count = len(stage.reductions)
        results = [f"y{r}" for r in range(count)]
        name = f"element_{number}"
        inner = self._pointers(stage)
        inner += [f"word unit = (word)chunk.y * {READ_CHUNK // UNIT} + threadIdx.x / 32, first = unit * {UNIT};"]
        inner += ["int thread = threadIdx.x % 32;", f"word end = min(entry[SIZE], first + {UNIT});"]
        inner += [f"double a{r}[4] = {{{', '.join([identity(node)] * 4)}}};" for r, node in enumerate(stage.reductions)]
        inner += ["word row = first + thread * 4;"]
        inner += self._rows_in_flight(stage, body, name, results)
        inner += [f"for (; row < end; row += {LANES})", "    #pragma unroll"]
        inner += ["    for (int j = 0; j < 4; j++) if (row + j < end) {"]
        inner += ["        word i = row + j;", f"        real {', '.join(results)};"]
        inner += [f"        {name}({', '.join([*(self._at(key) for key in stage.reads), *_scalars(body), *results])});"]
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
        lines = self._prologue(body, "read_chunks[blockIdx.x]", skip=False)
        counting = self.device_count and number == plan.reducing[-1]
        lines += [f"__shared__ double tree[{LANES}];", *self.uniform.finish(stage, inner, counting)]
        head = f'extern "C" __global__ void __launch_bounds__({READ_THREADS}, 4)\n'
        head += f"read_stage_{number}(const __grid_constant__ Job job) {{"
        kernel = "\n".join([head, *("    " + line for line in lines), "}"])
        return "\n".join([self._element(name, body, stage, results), kernel, ""])

    def _rows_in_flight(self, stage: Stage, body: Body, name: str, results: list[str]) -> list[str]:
        """The loop over rows of lanes that lie in one piece: 64 bytes a thread are asked for before the first is used."""
        reads = [self.names[key] for key in stage.reads]
        depth = max(1, 4 // max(1, len(reads)))
        lines = [f"if (flags & VECTOR) for (; row + {LANES * (depth - 1) + 4} <= end; row += {LANES * depth}) {{"]
        lines += ["    const int lanes = sizeof(Pack) / sizeof(real);"]
        lines += [f"    alignas(16) real v_{each}[{depth}][4];" for each in reads] + ["    #pragma unroll"]
        lines += [f"    for (int d = 0; d < {depth}; d++) for (int j = 0; j < 4; j += lanes) {{"]
        for each in reads:
            lines.append(f"        *(Pack*)(v_{each}[d] + j) = *(const Pack*)(p_{each} + row + d * {LANES} + j);")
        lines += ["    }", "    #pragma unroll", f"    for (int d = 0; d < {depth}; d++) for (int j = 0; j < 4; j++) {{"]
        lines += [f"        real {', '.join(results)};"]
        lines += [f"        {name}({', '.join([*(f'v_{each}[d][j]' for each in reads), *_scalars(body), *results])});"]
        lines += ["        " + line for r, node in enumerate(stage.reductions) for line in _accumulate(node, r)]
        return [*lines, "    }", "}"]


def _scalars(body: Body) -> list[str]:
    return [f"k{column}" for column in sorted(body.scalars)] + [f"u{column}" for column in sorted(body.uniforms)]


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
