"""The uniform level as CUDA text: what is computed once per parameter, or for all of them, when a reduction is known.

A pass that reduces leaves a parameter's sums, and what it adds to totals, to the last block of that parameter. Then
`round_2(job)` takes the totals (sums over all parameters, in the canonical order), and computes what follows from them, in
double, for each row of host values. The last block of all runs it; with several buckets `finish_2` is a launch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from optimkit.engines.canonical import LANES, UNIT
from optimkit.engines.cuda.operations import TABLE, double_literal, identity, note
from optimkit.fusion.graph import REDUCTIONS, Level, Node
from optimkit.fusion.stages import Plan, Stage

FINISH_THREADS = LANES
COUNT = "job.counts[p] + 1"  # the count of the step under way
NEXT_COUNT = "job.next_counts[p]"  # the same, where a pass has left it; then the one before may be overwritten already

class UniformText:
    """The text of a plan's uniform level.

    Every value is kept where it is needed least often: a reduction once for each parameter; what follows from totals and
    host values alone once for each row of these; all else is computed by who uses it.

    Parameters
    ----------
    labels : dict
        The numbers of the totals of the whole optimizer, in the order of `job.contributions`; equal ones have the same.
    slots : sequence
        The slots that the optimizer has once; their order is that of `job.shared`.
    """

    def __init__(self, plan: Plan, labels: Mapping[Hashable, int], slots: Sequence[Hashable] = ()) -> None:
        self.plan, self.labels = plan, labels
        self.places = {key: place for place, key in enumerate(slots)}
        self.rounds = {node: number for number, nodes in plan.uniform_rounds.items() for node in nodes}
        self.columns = {node: column for column, node in enumerate(node for node in self.rounds if node.op in REDUCTIONS)}
        keys: list[Any] = list(plan.slot_outputs)
        self.slots = [key for key in keys if key[-1] == "parameter"]
        self.shared = [key for key in keys if key[-1] == "optimizer"]
        self._common: dict[Node, bool] = {}
        totals = {labels[node.key]: node for node in self.rounds if node.op == "total"}  # equal ones once
        self.totals = list(totals.values())
        self.adding = {node: self._where_added(node) for node in self.totals}
        self.row_columns = {node: column for column, node in enumerate(self._kept_by_row())}

    @property
    def width(self) -> int:
        """How many values are kept per parameter."""
        return max(1, len(self.columns))

    @property
    def row_width(self) -> int:
        """How many values are kept per row."""
        return max(1, len(self.row_columns))

    # ---- what is where

    def is_common(self, node: Node) -> bool:
        """Whether a value is the same for all parameters with the same row."""
        if node.level is Level.HOST or node.op in ("constant", "total"):
            return True
        if node.op in REDUCTIONS or node.op in ("size", "count"):
            return False
        if node.op == "slot":
            return ("slot", *node.key) in self.places  # type: ignore[misc]
        if node not in self._common:
            self._common[node] = all(map(self.is_common, node.args))
        return self._common[node]

    def is_early(self, node: Node) -> bool:
        """Whether a value needs no reduction: sizes, counts, slots, and what follows from them."""
        return self.rounds.get(node, 0) == 0

    def is_kept(self, node: Node) -> bool:
        """Whether a value lies in device memory when the round that it belongs to is over."""
        return node in self.columns or (not self.is_early(node) and self.is_common(node))

    def _needs(self, node: Node) -> Iterator[Node]:
        """The values in device memory that one is computed from."""
        if self.is_kept(node):
            yield node
        elif not self.is_early(node):
            for arg in node.args:
                yield from self._needs(arg)

    def _kept_by_row(self) -> list[Node]:
        """The values per row that are used outside of their own round."""
        roots = [*self.plan.uniforms, *self.plan.slot_outputs.values(), *(node.args[0] for node in self.totals)]
        found = {each for root in roots for each in self._needs(root)}
        for node, own in self.rounds.items():
            if self.is_common(node):
                found |= {arg for arg in node.args if self.is_kept(arg) and self.rounds[arg] != own}
        return [node for node in self.rounds if node in found and node not in self.columns]

    def _where_added(self, total: Node) -> Stage | int:
        """Where parameters add to a total: in the pass in which the last of what they add is known, or after a round."""
        needs = set(self._needs(total.args[0]))
        last = max((self.rounds[node] for node in needs if node in self.columns), default=None)
        if last is None or any(self.rounds[node] >= last for node in needs if node not in self.columns):
            return self.rounds[total] - 1
        return next(stage for stage in self._reducing() if stage.round == last)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The rounds in which there is something to do for all parameters together."""
        found = {number for node, number in self.rounds.items() if number and node not in self.columns and self.is_common(node)}
        return tuple(sorted(found | {where for where in self.adding.values() if isinstance(where, int)}))

    @property
    def adding_rounds(self) -> frozenset[int]:
        """The rounds in which parameters add to totals."""
        return frozenset(where if isinstance(where, int) else where.round for where in self.adding.values())

    def _reducing(self) -> list[Stage]:
        return [self.plan.stages[number] for number in self.plan.reducing]

    def head_rounds(self) -> tuple[int, ...]:
        """The rounds before the first pass."""
        first = min((stage.round for stage in self._reducing()), default=None)
        return tuple(number for number in self.numbers if first is None or number < first)

    # ---- text

    def kept(self, node: Node) -> str:
        """A value that lies in device memory."""
        if node in self.columns:
            return f"fresh(job.uniforms + p * {self.width} + {self.columns[node]})"
        return f"fresh(job.by_row + entry[ROW] * {self.row_width} + {self.row_columns[node]})"

    def expression(self, node: Node, known: dict[Node, str], lines: list[str], count: str = COUNT) -> str:
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
            text = f"(double)({count})"
        elif node.op == "slot":
            key: Any = ("slot", *node.key)  # type: ignore[misc]
            own = key in self.slots
            per_parameter = f"job.slots[p * {len(self.slots)} + {self.slots.index(key) if own else 0}]"
            text = per_parameter if own else f"job.shared[{self.places[key]}]"
        elif self.is_kept(node):
            text = self.kept(node)
        else:
            text = TABLE[node.op].format(*(self.expression(arg, known, lines, count) for arg in node.args))
        known[node] = f"y{len(known)}"
        lines.append(f"double {known[node]} = {text};  // {note(node)}")
        return known[node]

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
        by_label: dict[int, str] = {}
        known: dict[Node, str] = {}
        lines: list[str] = []
        for node in (node for node in nodes if node.op == "total"):
            label = self.labels[node.key]
            if label not in by_label:
                by_label[label] = f"y{len(by_label)}"
                lines.append(f"double {by_label[label]} = total_of(job, {label}, tree);  // {note(node)}")
            known[node] = by_label[label]
        if by_label:
            lines.insert(0, f"__shared__ double tree[{LANES}];")
        lines += self._by_row([node for node in nodes if node not in self.columns and self.is_common(node)], known, norm)
        after = [node for node in self.totals if self.adding[node] == number]
        if after:
            lines += self._add_all(after)
        return "\n".join([f"__device__ void round_{number}(const Job& job) {{", *("    " + line for line in lines), "}", ""])

    def _by_row(self, nodes: Sequence[Node], known: dict[Node, str], norm: Node | None) -> list[str]:
        """What follows from totals, for each row of host values."""
        if not nodes:
            return []
        inner: list[str] = []
        for node in nodes:
            if node.op != "total":
                args = [self._of_row(arg, known, inner) for arg in node.args]
                known[node] = f"y{len(known)}"
                inner.append(f"double {known[node]} = {TABLE[node.op].format(*args)};  // {note(node)}")
            if node in self.row_columns:
                inner.append(f"job.by_row[row * {self.row_width} + {self.row_columns[node]}] = {known[node]};")
        if norm is not None and norm in nodes:
            result = [f"    job.result[NORM] = {known[norm]};", f"    job.result[FINITE] = is_finite({known[norm]});"]
            inner += ["if (row == 0) {", *result, "}"]
        if not inner:
            return []
        head = [f"for (word row = threadIdx.x; row < job.row_count; row += {FINISH_THREADS}) {{"]
        head += [f"    const double* rows = (job.more_rows ? job.more_rows : job.rows) + row * {len(self.plan.hosts)};"]
        return [*head, *("    " + line for line in inner), "}", "__syncthreads();"]

    def _of_row(self, node: Node, known: dict[Node, str], lines: list[str]) -> str:
        """A value that is common to the parameters of a row, where there is no parameter at hand."""
        if node in known or not self.is_kept(node):
            return self.expression(node, known, lines)
        known[node] = f"y{len(known)}"
        text = f"fresh(job.by_row + row * {self.row_width} + {self.row_columns[node]})"
        lines.append(f"double {known[node]} = {text};  // {note(node)}")
        return known[node]

    def _add_all(self, totals: Sequence[Node]) -> list[str]:
        """One block adds for all parameters, what needs no pass or comes of other totals."""
        known: dict[Node, str] = {}
        inner = [self.rows_line()]
        parts = [self.expression(node.args[0], known, inner) for node in totals]
        inner += [f"{self._place_of(node)} = {part};" for node, part in zip(totals, parts, strict=True)]
        lines = [f"for (word p = threadIdx.x; p < job.members; p += {FINISH_THREADS}) {{"]
        lines += ["    const Entry entry{job, p};"]
        lines += ["    if (entry[FLAGS] & ABSENT) {", *(f"        {self._place_of(node)} = 0.0;" for node in totals)]
        return [*lines, "        continue;", "    }", *("    " + line for line in inner), "}", "__syncthreads();"]

    def _place_of(self, total: Node) -> str:
        """What parameter p adds to a total."""
        row = f"((word)job.device * job.labels + {self.labels[total.key]}) * job.entries"
        return f"job.contributions[{row} + entry[PLACE]]"

    def finish(self, stage: Stage, reading: Sequence[str], count_next: bool) -> list[str]:
        """A reducing kernel from the pass on: parameters are finished by their last block, the rounds by the last of all.

        Of a parameter that takes no part, the first block adds nothing to totals, and arrives.
        """
        count, known = len(stage.reductions), dict[Node, str]()
        lines = [*reading, "if (!comes_last(job.arrived + p, entry[BLOCKS])) return;"]
        lines += [f"word units = (entry[SIZE] + {UNIT - 1}) / {UNIT};"]
        for r, node in enumerate(stage.reductions):
            merge = {"max": "Max()", "min": "Min()"}.get(node.op, "Add()")
            partials = f"job.partials + entry[FIRST_UNIT] * {count} + {r}"
            known[node] = f"sum{r}"
            own = f"combine({partials}, units, {count}, {identity(node)}, tree, {merge})"
            lines.append(f"double sum{r} = {own};  // {note(node)}")
        inner = [f"job.uniforms[p * {self.width} + {self.columns[node]}] = {value};" for node, value in known.items()]
        totals = [node for node in self.totals if self.adding[node] is stage]
        for node in totals:
            inner.append(f"{self._place_of(node)} = {self.expression(node.args[0], known, inner)};")
        inner += ["job.next_counts[p] = job.counts[p] + 1;"] * count_next
        lines += ["if (threadIdx.x == 0) {", *("    " + line for line in inner), "}"]
        rounds = self._rounds_after(stage)
        if not rounds:
            return ["if (flags & ABSENT) return;", *lines]
        zeros = [f"    if (threadIdx.x == 0) {self._place_of(node)} = 0.0;" for node in totals]
        both = ["if (flags & ABSENT) {", "    if (chunk.y) return;", *zeros]
        both += ["} else {", *("    " + line for line in lines), "}"]
        both += ["if (!comes_last(job.control + PARAMETERS_READ, job.members) || !job.finish) return;"]
        return both + [f"round_{number}(job);" for number in rounds]

    def _rounds_after(self, stage: Stage) -> list[int]:
        """The rounds between this pass and the next one."""
        after = min((other.round for other in self._reducing() if other.round > stage.round), default=None)
        return [number for number in self.numbers if number >= stage.round and (after is None or number < after)]

    def epilogue(self, device_count: bool, check: bool) -> list[str]:
        """The end of the writing kernel: its last block writes counts, and slots per parameter and optimizer.

        Counts are known in the pass that reads, where there is one: then blocks write them, and none has to be the last.
        """
        counting = device_count and not self.plan.reducing
        if not counting and not self.plan.slot_outputs:
            return []
        lines = ["if (!comes_last(job.control + BLOCKS_WRITTEN, gridDim.x)) return;"]
        lines += ["if (!apply) return;"] if check else []
        count = NEXT_COUNT if device_count and self.plan.reducing else COUNT
        lines += self._shared_values(count)
        if self.slots or counting:
            lines += ["for (p = threadIdx.x; p < job.members; p += blockDim.x) {"]
            inner = ["const Entry entry{job, p};", "if (entry[FLAGS] & ABSENT) continue;"]
            if self.slots:
                known: dict[Node, str] = {}
                inner.append(self.rows_line())
                ends = [self.expression(self.plan.slot_outputs[key], known, inner, count) for key in self.slots]
                inner += [f"job.slots[p * {len(self.slots)} + {place}] = {end};" for place, end in enumerate(ends)]
            inner += ["job.counts[p] += 1;"] * counting
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

    def _shared_values(self, count: str) -> list[str]:
        """Slots of the optimizer: the same value for every parameter, so that of the first one present."""
        if not self.shared:
            return []
        known: dict[Node, str] = {}
        inner = ["const Entry entry{job, p};", "if (entry[FLAGS] & ABSENT) continue;"]
        inner.append(self.rows_line())
        ends = [self.expression(self.plan.slot_outputs[key], known, inner, count) for key in self.shared]
        inner += [f"shared{place} = {end};" for place, end in enumerate(ends)] + ["break;"]
        lines = [f"double shared{place} = 0.0;" for place in range(len(self.shared))]
        lines.append("if (threadIdx.x == 0) for (p = 0; p < job.members; p++) {")
        return [*lines, *("    " + line for line in inner), "}", "__syncthreads();"]
