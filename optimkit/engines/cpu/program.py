"""The program of a warm step: which kernels are called on which jobs, in order, for all buckets of an optimizer.

First what only reads: passes that reduce, their ends, and the uniform level between them; then, where the step is applied,
what writes. It is laid out once, as a table of addresses; `step` walks through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optimkit.engines.canonical import LANES
from optimkit.engines.cpu.kernels import Kernel, compile_text
from optimkit.engines.cpu.runner import CpuRunner
from optimkit.engines.cpu.text import WORD
from optimkit.engines.cpu.uniforms import UniformText, uniform_text
from optimkit.engines.tables import Columns

CALL = Columns("function", "call_job", "call_counter")  # a row of the program
TOTALS_JOB = Columns("contributions", "totals", "entries", "labels", "n_labels", "lanes")

# The order of `canonical.combine`, for one value per parameter.
_TOTALS = f"""\
# totals: sums over the parameters of an optimizer, in the canonical order
from optimkit.engines.cpu.language import load_float64, load_int64 as word, store_float64

{TOTALS_JOB.text(str.upper, " ".join(map(str.upper, TOTALS_JOB.names)))}


def kernel(job):
    entries, labels, lanes = word(job, ENTRIES), word(job, LABELS), word(job, LANES)
    for k in range(word(job, N_LABELS)):
        label = word(labels, k)
        values = word(job, CONTRIBUTIONS) + label * entries * {WORD}
        width = {LANES}
        while width // 2 >= entries and width > 1:
            width //= 2
        for lane in range(width):
            store_float64(lanes, lane, 0.0)
        for i in range(entries):
            lane = i % {LANES}
            store_float64(lanes, lane, load_float64(lanes, lane) + load_float64(values, i))
        half = width // 2
        while half:
            for lane in range(half):
                store_float64(lanes, lane, load_float64(lanes, lane) + load_float64(lanes, lane + half))
            half //= 2
        store_float64(word(job, TOTALS), label, load_float64(lanes, 0))
"""


class Part(NamedTuple):
    """A bucket as a compiled step sees it: what runs it, where its members stand, their counts and groups, the numbers of
    the groups, (groups, numbers) float64, and the slots per parameter of each member."""

    runner: CpuRunner
    places: np.ndarray
    counts: np.ndarray
    groups: np.ndarray
    numbers: np.ndarray
    slots: Sequence[Mapping[Any, np.ndarray]]


class Program:
    """The calls of a warm step.

    `present` says, by place, who takes part. `shared` are the slots that the optimizer has once. `norm` is the norm of all
    gradients after the passes that read, where `has_norm`.
    """

    def __init__(self, parts: Sequence[Part], present: np.ndarray, shared: Mapping[Any, np.ndarray]) -> None:
        self.parts, self.present, self.shared, self.entries = list(parts), present, shared, len(present)
        labels = [node.key for part in parts for node in part.runner.plan.program.totals]
        self.labels = tuple(dict.fromkeys(labels))
        self.texts = [uniform_text(part.runner.plan, part.runner.dtype, self.labels) for part in parts]
        self.norm = np.zeros(1)
        self.has_norm = all(part.runner.plan.program.gradient_norm is not None for part in parts)
        self._kept: list[Any] = []  # what the addresses point to

    def possible(self) -> bool:
        """Whether compiled code can take all steps of these buckets, with the bits that the driver gives."""
        plans = [part.runner.plan for part in self.parts]
        one_pass = all(not (plan.reducing or plan.uniform_rounds or plan.slot_outputs) for plan in plans)
        return (
            len({plan.program.gradient_norm is None for plan in plans}) == 1
            and (not self.shared or len(plans) == 1)
            and not any(plan.calls for plan in plans)
            and (one_pass or not any(part.runner.threaded for part in self.parts))
            and all(text.exact() for text in self.texts)
        )

    def lay_out(self) -> None:
        """Make the tables: `calls`, of which the first `n_reads` only read; and `wide`, the rows of each part in float64."""
        self.wide = [np.zeros((len(part.places), len(part.runner.plan.hosts))) for part in self.parts]
        self.contributions, self.totals = np.zeros((len(self.labels), self.entries)), np.zeros(len(self.labels))
        self.kernels: list[Kernel | None] = [self._compile(text) for text in self.texts]
        self.jobs = [self._uniform_job(number) for number in range(len(self.parts))]
        rows: list[tuple[int, int, int]] = []
        rounds = sorted({number for part in self.parts for number in part.runner.plan.rounds} | {0})
        finish: list[Kernel] = [part.runner.finish for part in self.parts if part.runner.finish is not None]
        for number in rounds:
            for part in self.parts:
                runner = part.runner
                for place in runner.plan.reducing:
                    if runner.plan.stages[place].round == number:
                        job = runner.job_of(place)
                        rows += [self._row(runner.kernels[place], job, runner.counter), self._row(finish[0], job)]
            rows += self._phases(2 * number)
            rows += self._total(number)
            rows += self._phases(2 * number + 1)
        self.n_reads = len(rows)
        rows += [self._row(part.runner.kernels[-1], part.runner.jobs[0], part.runner.counter) for part in self.parts]
        for number, text in enumerate(self.texts):
            if text.plan.slot_outputs:
                rows += self._phases(text.write_phase, number)
        self.calls = np.array(rows, np.int64)

    def _row(self, kernel: Kernel, job: np.ndarray, counter: np.ndarray | None = None) -> tuple[int, int, int]:
        counter = np.zeros(1, np.int64) if counter is None else counter
        self._kept += [kernel, job, counter]
        return kernel.address, job.ctypes.data, counter.ctypes.data

    def _compile(self, text: UniformText) -> Kernel | None:
        return compile_text(text.text()) if text.plan.uniform_rounds or text.plan.slot_outputs else None

    def _uniform_job(self, number: int) -> np.ndarray:
        part, text = self.parts[number], self.texts[number]
        runner = part.runner
        values = np.zeros((len(part.places), max(1, len(text.nodes))))
        slots = np.array([[own[key].ctypes.data for key in text.slots] for own in part.slots], np.int64).reshape(-1)
        shared = np.array([self.shared[key].ctypes.data for key in text.shared], np.int64)
        tables = {"table": runner.table, "places": part.places, "present": self.present, "wide": self.wide[number]}
        tables |= {"values": values, "uniforms": runner.uniforms, "contributions": self.contributions}
        tables |= {"totals": self.totals, "slots": slots, "shared": shared, "norm": self.norm}
        tables |= {f"results_{stage}": runner.reductions[stage].results for stage in runner.plan.reducing}
        self._kept += [*tables.values(), *part.slots, *self.shared.values()]
        job = np.zeros(len(text.job), np.int64)
        told = {"members": len(part.places), "entries": self.entries, "entry_bytes": runner.table.strides[0]}
        for name, word in (told | {name: table.ctypes.data for name, table in tables.items()}).items():
            job[getattr(text.job, name)] = word
        return job

    def _phases(self, phase: int, only: int | None = None) -> list[tuple[int, int, int]]:
        """The calls of a phase of the uniform level: of all parts, or of one."""
        rows = []
        for number, (kernel, text) in enumerate(zip(self.kernels, self.texts, strict=True)):
            concerned = text.has_phase(phase) if only is None else number == only
            if kernel is not None and concerned:
                job = self.jobs[number].copy()
                job[text.job.phase] = phase
                rows.append(self._row(kernel, job))
        return rows

    def _total(self, number: int) -> list[tuple[int, int, int]]:
        """The call that forms the totals of a round, where there are some."""
        rounds = [part.runner.plan.uniform_rounds.get(number, ()) for part in self.parts]
        wanted = dict.fromkeys(node.key for nodes in rounds for node in nodes if node.op == "total")
        if not wanted:
            return []
        labels, lanes = np.array([self.labels.index(key) for key in wanted], np.int64), np.zeros(LANES)
        job = np.zeros(len(TOTALS_JOB), np.int64)
        told = {"contributions": self.contributions, "totals": self.totals, "labels": labels, "lanes": lanes}
        for name, table in told.items():
            job[getattr(TOTALS_JOB, name)] = table.ctypes.data
        job[TOTALS_JOB.entries], job[TOTALS_JOB.n_labels] = self.entries, len(labels)
        self._kept += [labels, lanes]
        return [self._row(compile_text(_TOTALS), job)]
