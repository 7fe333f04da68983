"""Registers and spills of the CUDA kernels, as the assembler in NVRTC reports them; no GPU is needed.

    python tests/cuda/registers.py

prints a row per rule, dtype, kernel and architecture. NVRTC comes with the extra `cuda13x-ctk` (or any
installation of CUDA).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

import optimkit
from optimkit import transforms
from optimkit.arrays import DTYPES
from optimkit.engines.cuda.compile import OPTIONS
from optimkit.engines.cuda.job import BY_VALUE
from optimkit.engines.cuda.text import module_text
from optimkit.fusion.stages import number_totals, total_rounds
from optimkit.rules.programs import plan_of, program_of

ARCHITECTURES = (75, 80, 90, 100, 120)

CLIP = [transforms.ClipByGlobalNorm(1.0)]
RULES: dict[str, Any] = {
    "SGD": lambda: optimkit.SGD(lr=0.1, momentum=0.9, nesterov=True),
    "Adagrad": lambda: optimkit.Adagrad(lr_decay=0.1),
    "RMSProp": lambda: optimkit.RMSProp(momentum=0.9, centered=True, penalty=optimkit.ElasticNet(1e-3, 1e-3)),
    "Adam": lambda: optimkit.Adam(),
    "AMSGrad": lambda: optimkit.AMSGrad(transforms=[transforms.ClipByValue(1.0)]),
    "AdamW, clip, skip": lambda: optimkit.AdamW(transforms=CLIP, nonfinite="skip"),
}


@dataclass(frozen=True)
class Row:
    """What the assembler says about one kernel."""

    rule: str
    dtype: str
    architecture: int
    kernel: str
    registers: int
    stack: int
    spills: int


def text_of(rule: str, dtype: str, by_value: int = BY_VALUE[-1]) -> str:
    """The CUDA text of a rule, with counts on the device where a skip is decided there, and the table carried by launches."""
    optimizer = RULES[rule]()
    skip = optimizer.nonfinite == "skip"
    key, program = program_of(optimizer._run.chain(), DTYPES[dtype], DTYPES[dtype].wide, skip, skip)
    plan = plan_of(key, program, total_rounds([program]))
    return module_text(plan, DTYPES[dtype], number_totals([plan]), (), skip, skip, by_value=by_value)


def assemble(text: str, architecture: int) -> list[tuple[str, int, int, int]]:
    """(kernel, registers, bytes of stack, bytes spilled) of each kernel of a text."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(text, "optimkit.cu", (), ())
    try:
        fresh = ("--no-cache",) if nvrtc.getVersion() >= (12, 9) else ()  # what it has kept comes without the assembler's log
        nvrtc.compileProgram(program, (*OPTIONS, *fresh, f"-arch=sm_{architecture}", "--ptxas-options=-v"))
        log = nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)
    return parse(log)


def parse(log: str) -> list[tuple[str, int, int, int]]:
    """Read the log of `ptxas -v`; functions that are not kernels add their stack and spills to the kernel before them."""
    found: list[tuple[str, int, int, int]] = []
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            found.append((match[1], 0, 0, 0))
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            name, registers, stack, spills = found[-1]
            found[-1] = name, registers, max(stack, int(match[1])), spills + int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            name, _, stack, spills = found[-1]
            found[-1] = name, int(match[1]), stack, spills
    return found


def measure(rules: Any = tuple(RULES), dtypes: Any = ("float32", "float64"), architectures: Any = ARCHITECTURES) -> list[Row]:
    """All rows."""
    return [
        Row(rule, dtype, architecture, *kernel)
        for rule in rules
        for dtype in dtypes
        for architecture in architectures
        for kernel in assemble(text_of(rule, dtype), architecture)
    ]


def main() -> int:
    rows = measure()
    print(f"{'rule':20} {'dtype':8} {'arch':>6} {'kernel':14} {'registers':>9} {'stack':>6} {'spills':>6}")
    for row in rows:
        where = f"{row.rule:20} {row.dtype:8} sm_{row.architecture:<3} {row.kernel:14}"
        print(f"{where} {row.registers:9} {row.stack:6} {row.spills:6}")
    return int(any(row.spills for row in rows))


if __name__ == "__main__":
    sys.exit(main())
