"""The uniform level as CUDA text: what one block computes for all parameters once a reduction is known.

`round_1(job)` takes the totals of its round (sums over all parameters, in the canonical order), computes
what follows from them for each parameter, in double, and leaves what the totals of the next round
need. The last block of a reducing launch runs it; with several buckets `finish_1` is a launch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from optimkit.engines.canonical import LANES, UNIT
from optimkit.engines.cuda.operations import TABLE, double_literal, identity, note
from optimkit.fusion.graph import REDUCTIONS, Level, Node
from optimkit.fusion.stages import Plan, Stage

FINISH_THREADS = LANES

COMBINE = f"""\
// What another block wrote: read from memory, not from this SM's cache.
template <class T> __device__ __forceinline__ T fresh(const T* p) {{ return *(const volatile T*)p; }}

// {LANES} lanes to one value, as a tree; every thread of the block gets it.
template <class F> __device__ double fold(double lane, double* tree, F merge) {{
    if (threadIdx.x < {LANES}) tree[threadIdx.x] = lane;
    __syncthreads();
    for (int half = {LANES // 2}; half; half >>= 1) {{
        if (threadIdx.x < half) tree[threadIdx.x] = merge(tree[threadIdx.x], tree[threadIdx.x + half]);
        __syncthreads();
    }}
    double result = tree[0];
    __syncthreads();
    return result;
}}
struct Add {{ __device__ double operator()(double a, double b) const {{ return a + b; }} }};
struct Max {{ __device__ double operator()(double a, double b) const {{ return maximum_of(a, b); }} }};
struct Min {{ __device__ double operator()(double a, double b) const {{ return minimum_of(a, b); }} }};
template <class F> __device__ double combine(
    const double* values, word count, word stride, double start, double* tree, F merge) {{
    if (count == 1) return merge(start, fresh(values));
    double lane = start, loaded[16];
    word i = threadIdx.x < {LANES} ? threadIdx.x : count;
    for (; i + 15 * {LANES} < count; i += 16 * {LANES}) {{  // many under way: a billion elements have 488,282 units
        #pragma unroll
        for (int j = 0; j < 16; j++) loaded[j] = fresh(values + (i + j * {LANES}) * stride);
        #pragma unroll
        for (int j = 0; j < 16; j++) lane = merge(lane, loaded[j]);
    }}
    for (; i < count; i += {LANES}) lane = merge(lane, fresh(values + i * stride));
    return fold(lane, tree, merge);
}}
// A total: what the parameters of the optimizer add to it, those of each device in a table of their own.
__device__ double total_of(const Job& job, int label, double* tree) {{
    double lane = 0.0;
    for (word i = threadIdx.x; i < job.entries; i += {LANES}) {{
        double value = 0.0;
        for (int device = 0; device < job.devices; device++)
            value += fresh(job.contributions + ((word)device * job.labels + label) * job.entries + i);
        lane += value;
    }}
    return fold(lane, tree, Add());
}}
// True in all threads of the block that comes last of `blocks`; what the others wrote is visible then.
__device__ bool comes_last(int* counter, int blocks) {{
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {{  // its fences stand for the whole block, which the barriers put in order with it
        __threadfence();
        last = atomicAdd(counter, 1) == blocks - 1;
        if (last) *counter = 0;
        __threadfence();
    }}
    __syncthreads();
    return last;
}}
"""


class UniformText:
    """The text of a plan's uniform level.

    Parameters
    ----------
    labels : sequence
        The totals of the whole optimizer; their order is that of `job.contributions`.
    slots : sequence
        The slots that the optimizer has once; their order is that of `job.shared`.
    stride : int
        Words of a table entry.
    """

    def __init__(
        self, plan: Plan, stride: int, labels: Sequence[Hashable] = (), slots: Sequence[Hashable] = ()
    ) -> None:
        self.plan, self.stride = plan, stride
        self.labels, self.places = list(labels), {key: place for place, key in enumerate(slots)}
        self.rounds = {node: number for number, nodes in plan.uniform_rounds.items() for node in nodes}
        later = [node for node, number in self.rounds.items() if number]
        self.columns = {node: column for column, node in enumerate(later)}
        keys: list[Any] = list(plan.slot_outputs)
        self.slots = [key for key in keys if key[-1] == "parameter"]
        self.shared = [key for key in keys if key[-1] == "optimizer"]

    @property
    def width(self) -> int:
        """How many uniform values are kept per parameter."""
        return max(1, len(self.columns))

    @property
    def numbers(self) -> tuple[int, ...]:
        """The rounds in which there is something to do."""
        before = {self.rounds[node] - 1 for node in self.rounds if node.op == "total"}
        return tuple(sorted({number for number in self.plan.uniform_rounds if number} | before))

    def is_early(self, node: Node) -> bool:
        """Whether a value needs no reduction: sizes, counts, slots, and what follows from them."""
        return self.rounds[node] == 0

    def stored(self, node: Node) -> str:
        return f"fresh(job.uniforms + p * {self.width} + {self.columns[node]})"

    def expression(self, node: Node, known: dict[Node, str], lines: list[str]) -> str:
        """A host or uniform value of parameter p in double; statements it needs go to `lines`."""
        if node in known:
            return known[node]
        if node.op == "constant":
            return double_literal(node)
        if node.level is Level.HOST:
            return f"rows[{self.plan.hosts.index(node)}]"
        if node.op == "size":
            text = "(double)entry[SIZE]"
        elif node.op == "count":
            text = "(double)(job.counts[p] + 1)"
        elif node.op == "slot":
            key: Any = ("slot", *node.key)  # type: ignore[misc]
            own = key in self.slots
            per_parameter = f"job.slots[p * {len(self.slots)} + {self.slots.index(key) if own else 0}]"
            text = per_parameter if own else f"job.shared[{self.places[key]}]"
        elif node.op in REDUCTIONS or node.op == "total" or not self.is_early(node):
            text = self.stored(node)
        else:
            text = self._operation(node, known, lines)
        known[node] = f"y{len(known)}"
        lines.append(f"double {known[node]} = {text};  // {note(node)}")
        return known[node]

    def _operation(self, node: Node, known: dict[Node, str], lines: list[str]) -> str:
        template = TABLE[node.op]
        return template.format(*(self.expression(arg, known, lines) for arg in node.args))

    def functions(self, norm: Node | None) -> list[str]:
        """All rounds: what the last block calls, and a kernel for each."""
        parts = []
        for number in self.numbers:
            parts.append(self._round(number, norm))
            head = f'extern "C" __global__ void __launch_bounds__({FINISH_THREADS}, 4)'
            parts.append(f"{head}\nfinish_{number}(const __grid_constant__ Job job) {{ round_{number}(job); }}\n")
        return parts

    def _round(self, number: int, norm: Node | None) -> str:
        nodes = self.plan.uniform_rounds.get(number, ()) if number else ()
        totals = [node for node in nodes if node.op == "total"]
        lines = [f"__shared__ double tree[{LANES}];"] if totals else []
        known: dict[Node, str] = {}
        for node in totals:
            known[node] = f"y{len(known)}"
            lines.append(f"double {known[node]} = total_of(job, {self.labels.index(node.key)}, tree);  // {note(node)}")
        lines += [f"for (word p = threadIdx.x; p < job.members; p += {FINISH_THREADS}) {{"]
        lines += [f"    const word* entry = job.table + p * {self.stride};", "    bool present = !(entry[FLAGS] & ABSENT);"]
        next_totals = [node for node, own in self.rounds.items() if node.op == "total" and own == number + 1]
        lines += [f"    double part{place} = 0.0;" for place in range(len(next_totals))] + ["    if (present) {"]
        lines += ["        " + line for line in self._present(nodes, known, next_totals, norm)] + ["    }"]
        for place, node in enumerate(next_totals):
            label = self.labels.index(node.key)
            row = f"((word)job.device * job.labels + {label}) * job.entries"
            lines.append(f"    job.contributions[{row} + entry[PLACE]] = part{place};")
        lines += ["}", "__syncthreads();"]
        return "\n".join([f"__device__ void round_{number}(const Job& job) {{", *("    " + line for line in lines), "}", ""])

    def _present(
        self, nodes: Sequence[Node], known: dict[Node, str], next_totals: Sequence[Node], norm: Node | None
    ) -> list[str]:
        """What is computed for a parameter that takes part."""
        lines = [self.rows_line()]
        for node in nodes:
            if node.op in REDUCTIONS:
                continue
            if node.op != "total":
                text = self._operation(node, known, lines)
                known[node] = f"y{len(known)}"
                lines.append(f"double {known[node]} = {text};  // {note(node)}")
            lines.append(f"job.uniforms[p * {self.width} + {self.columns[node]}] = {known[node]};")
        if norm is not None and norm in nodes:
            lines += [f"job.result[NORM] = {known[norm]};", f"job.result[FINITE] = is_finite({known[norm]});"]
        for place, node in enumerate(next_totals):
            lines.append(f"part{place} = {self.expression(node.args[0], known, lines)};")
        return lines

    def finish(self, stage: Stage) -> list[str]:
        """The end of a reducing kernel: parameters are finished by their last block, the rounds by the last of all."""
        count = len(stage.reductions)
        lines = [f"__shared__ double tree[{LANES}];", "if (!comes_last(job.arrived + p, entry[BLOCKS])) return;"]
        lines += [f"word units = (entry[SIZE] + {UNIT - 1}) / {UNIT};"]
        for r, node in enumerate(stage.reductions):
            merge = {"max": "Max()", "min": "Min()"}.get(node.op, "Add()")
            partials, column = f"job.partials + entry[FIRST_UNIT] * {count} + {r}", self.columns[node]
            lines.append(f"double sum{r} = combine({partials}, units, {count}, {identity(node)}, tree, {merge});")
            lines.append(f"if (threadIdx.x == 0) job.uniforms[p * {self.width} + {column}] = sum{r};  // {note(node)}")
        lines += ["if (!comes_last(job.control + PARAMETERS_READ, job.present) || !job.finish) return;"]
        later = [other.round for other in self._reducing() if other.round > stage.round]
        after = min(later, default=None)
        lines += [f"round_{n}(job);" for n in self.numbers if n >= stage.round and (after is None or n < after)]
        return lines

    def _reducing(self) -> list[Stage]:
        return [self.plan.stages[number] for number in self.plan.reducing]

    def head_rounds(self) -> tuple[int, ...]:
        """The rounds before the first pass."""
        first = min((stage.round for stage in self._reducing()), default=None)
        return tuple(number for number in self.numbers if first is None or number < first)

    def epilogue(self, device_count: bool, check: bool) -> list[str]:
        """The end of the writing kernel: its last block writes counts, and slots per parameter and optimizer."""
        lines = ["if (!comes_last(job.control + BLOCKS_WRITTEN, gridDim.x)) return;"]
        lines += ["if (!apply) return;"] if check else []
        lines += self._shared_values()
        lines += ["for (p = threadIdx.x; p < job.members; p += blockDim.x) {"]
        inner = [f"const word* entry = job.table + p * {self.stride};", "if (entry[FLAGS] & ABSENT) continue;"]
        if self.slots:
            known: dict[Node, str] = {}
            inner.append(self.rows_line())
            ends = [self.expression(self.plan.slot_outputs[key], known, inner) for key in self.slots]
            inner += [f"job.slots[p * {len(self.slots)} + {place}] = {end};" for place, end in enumerate(ends)]
        if device_count:
            inner.append("job.counts[p] += 1;")
        lines += ["    " + line for line in inner] + ["}"]
        if self.shared:
            lines += ["__syncthreads();"]
            for place, key in enumerate(self.shared):
                bit = 1 << self.places[key]
                target = f"job.shared[{self.places[key]}]"
                lines.append(f"if (threadIdx.x == 0 && (job.write_shared & {bit}ull)) {target} = shared{place};")
        return lines

    def rows_line(self) -> str:
        return f"const double* rows = (job.more_rows ? job.more_rows : job.rows) + entry[ROW] * {len(self.plan.hosts)};"

    def _shared_values(self) -> list[str]:
        """Slots of the optimizer: the same value for every parameter, so that of the first one present."""
        if not self.shared:
            return []
        known: dict[Node, str] = {}
        inner = [f"const word* entry = job.table + p * {self.stride};", "if (entry[FLAGS] & ABSENT) continue;"]
        inner.append(self.rows_line())
        ends = [self.expression(self.plan.slot_outputs[key], known, inner) for key in self.shared]
        inner += [f"shared{place} = {end};" for place, end in enumerate(ends)] + ["break;"]
        lines = [f"double shared{place} = 0.0;" for place in range(len(self.shared))]
        lines.append("if (threadIdx.x == 0) for (p = 0; p < job.members; p++) {")
        return [*lines, *("    " + line for line in inner), "}", "__syncthreads();"]
