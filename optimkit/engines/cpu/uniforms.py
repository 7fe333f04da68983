"""The uniform level in compiled code: what is known of each parameter once its reductions, and the totals, are known.

The same values as `driver/steps/uniforms.py` gives, to the bit: a plan has one text, whose phases are called between the
passes of a step. A phase goes over the members of a bucket; their values stand in a table, (members, values) float64.
"""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache
from typing import cast

from optimkit.arrays import DType
from optimkit.engines.cpu.rows import HOST, ROUNDING, constant_text, powers_of
from optimkit.engines.cpu.text import ENTRY, WORD, used_names
from optimkit.engines.tables import Columns
from optimkit.engines.text import indent
from optimkit.fusion.graph import BOOLEAN, REDUCTIONS, Level, Node
from optimkit.fusion.operations import OPERATIONS
from optimkit.fusion.stages import Plan

JOB = Columns(
    "phase", "members", "entries", "table", "entry_bytes", "places", "present", "wide", "values", "uniforms", "contributions",
    "totals", "slots", "shared", "norm",
)  # fmt: skip  # the results of each stage that reduces follow

_TEXT = """\
# {name}, {dtype}: values of each parameter, between the passes
from optimkit.engines.cpu.language import {names}, load_int64 as word

{job}
{entry}
{powers}

def kernel(job):
    phase, table, entry_bytes, wide = word(job, PHASE), word(job, TABLE), word(job, ENTRY_BYTES), word(job, WIDE)
    places, present, values = word(job, PLACES), word(job, PRESENT), word(job, VALUES)
    first = True
    for p in range(word(job, MEMBERS)):
        entry, place, row = table + p * entry_bytes, word(places, p), values + p * {row_bytes}
        here, host = word(present, place) != 0, wide + word(table + p * entry_bytes, ROW) * {host_bytes}
{phases}
        first = first and not here
"""


class UniformText:
    """The text of a plan's uniform level, and how the tables are laid out that it reads and writes.

    Phase 2 r sets down what each member adds to the totals of round r, phase 2 r + 1 computes what follows from them (in
    round 0, before any pass: sizes and slots), `write_phase` writes the slots.

    `labels` are the totals of the optimizer, in order; `slots` the slots per parameter that the plan reads or writes, by
    key, `shared` those per optimizer: the kernel has their addresses.
    """

    def __init__(self, plan: Plan, dtype: DType, labels: tuple[object, ...]) -> None:
        self.plan, self.dtype, self.labels = plan, dtype, labels
        rounds = plan.uniform_rounds
        self.nodes = [node for number in rounds for node in rounds[number]]
        self.columns = {node: column for column, node in enumerate(self.nodes)}
        found = [cast(tuple[int, str, str], node.key) for node in self.nodes if node.op == "slot"]
        found += [cast(tuple[str, int, str, str], key)[1:] for key in plan.slot_outputs]
        self.slots = list(dict.fromkeys((index, name) for index, name, extent in found if extent != "optimizer"))
        self.shared = list(dict.fromkeys((index, name) for index, name, extent in found if extent == "optimizer"))
        self.reductions = {
            node: (number, column)
            for number in plan.reducing
            for column, node in enumerate(plan.stages[number].reductions)
        }
        self.job = Columns(*JOB.names, *(f"results_{number}" for number in plan.reducing))

    def exact(self) -> bool:
        """Whether all operations give the same bits in NumPy."""
        operations = {node.op for node in self.nodes} - {*REDUCTIONS, "total", "slot", "size"}
        return all(OPERATIONS[name].exact and name not in ROUNDING for name in operations)

    def text(self) -> str:
        phases: list[str] = []
        for number in self.plan.uniform_rounds:
            for phase, lines in ((2 * number, self._contributions(number)), (2 * number + 1, self._following(number))):
                if lines:
                    phases += [f"if phase == {phase}:", *("    " + line for line in lines)]
        if self.plan.slot_outputs:
            phases += [f"if phase == {self.write_phase}:", *("    " + line for line in self._slots())]
        body = indent(phases, 2)
        text, powers = _TEXT.replace("{phases}", body), powers_of(body)
        return text.format(
            name=self.plan.program.name,
            dtype=self.dtype.name,
            names=used_names(body + powers),
            job=self.job.text(str.upper, text),
            entry=Columns(*ENTRY).text(str.upper, text),
            powers=powers,
            row_bytes=WORD * max(1, len(self.nodes)),
            host_bytes=WORD * len(self.plan.hosts),
        )

    def has_phase(self, phase: int) -> bool:
        """Whether there is something to do in a phase between the passes."""
        nodes = self.plan.uniform_rounds.get(phase // 2, ())
        return bool(nodes) if phase % 2 else any(node.op == "total" for node in nodes)

    @property
    def write_phase(self) -> int:
        """The phase after the passes: slots are written."""
        return 2 * max(self.plan.uniform_rounds, default=0) + 2

    def _value(self, node: Node, known: Container[int] = ()) -> str:
        """The text of a value that is known by now; the columns in `known` are in variables."""
        if node.op == "constant":
            return constant_text(node)
        if self.columns.get(node) in known:
            return f"x{self.columns[node]}"
        if node.level is Level.HOST:
            text = f"load_float64(host, {self.plan.hosts.index(node)})"
        elif node in self.reductions:
            number, column = self.reductions[node]
            count = len(self.plan.stages[number].reductions)
            text = f"load_float64(word(job, RESULTS_{number}), p * {count} + {column})"
        else:
            text = f"load_float64(row, {self.columns[node]})"
        return f"({text} != 0.0)" if node.kind == BOOLEAN else text

    def _contributions(self, number: int) -> list[str]:
        totals = [node for node in self.plan.uniform_rounds[number] if node.op == "total"]
        return [
            f"store_float64(word(job, CONTRIBUTIONS), {self.labels.index(node.key)} * word(job, ENTRIES) + place, "
            f"{self._value(node.args[0])} if here else 0.0)"
            for node in totals
        ]

    def _following(self, number: int) -> list[str]:
        lines: list[str] = []
        known: set[int] = set()
        for node in self.plan.uniform_rounds[number]:
            text = self._value(node, known) if node in self.reductions else self._computed(node, known)
            column = self.columns[node]
            known.add(column)
            lines += [f"x{column} = {text}", f"store_float64(row, {column}, float64(x{column}))"]
            if node in self.plan.uniforms:
                place = f"p * {len(self.plan.uniforms)} + {self.plan.uniforms.index(node)}"
                lines.append(f"store_{self.dtype.compute}(word(job, UNIFORMS), {place}, {self.dtype.compute}(x{column}))")
            if node is self.plan.program.gradient_norm:
                lines += ["if p == 0:", f"    store_float64(word(job, NORM), 0, x{column})"]
        return lines

    def _computed(self, node: Node, known: Container[int]) -> str:
        if node.op == "total":
            return f"load_float64(word(job, TOTALS), {self.labels.index(node.key)})"
        if node.op == "size":
            return "float64(word(entry, SIZE))"
        if node.op == "slot":
            return f"load_float64({self._address(*cast(tuple[int, str, str], node.key))}, 0)"
        return HOST[node.op].format(*(self._value(arg, known) for arg in node.args))

    def _address(self, index: int, name: str, extent: str) -> str:
        if extent == "optimizer":
            return f"word(word(job, SHARED), {self.shared.index((index, name))})"
        return f"word(word(job, SLOTS), p * {len(self.slots)} + {self.slots.index((index, name))})"

    def _slots(self) -> list[str]:
        lines = []
        for key, node in self.plan.slot_outputs.items():
            _, index, name, extent = cast(tuple[str, int, str, str], key)
            when = "here and first" if extent == "optimizer" else "here"
            store = f"store_float64({self._address(index, name, extent)}, 0, {self._value(node)})"
            lines += [f"if {when}:", f"    {store}"]
        return lines


@lru_cache(maxsize=256)
def uniform_text(plan: Plan, dtype: DType, labels: tuple[object, ...]) -> UniformText:
    return UniformText(plan, dtype, labels)
