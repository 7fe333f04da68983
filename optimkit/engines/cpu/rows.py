"""The host level in compiled code: a row of host values, from the numbers of a group and its count of updates.

The same values as `plan.host` gives in Python, to the bit, cast once to the dtype in which kernels compute; and once more
as they are, `wide`, for the uniform level.
"""

from __future__ import annotations

from functools import lru_cache

from optimkit.arrays import DType
from optimkit.engines.cpu.text import TABLE, used_names
from optimkit.engines.text import Body, indent, write_statements
from optimkit.fusion.graph import BOOLEAN, Node, walk
from optimkit.fusion.stages import Plan

# Python's own rounding functions know no -0.0; its hypot is none that the C library has.
ROUNDING = ("floor", "ceil", "round")
_OWN = {
    "floor": "(floor({0}) + 0.0)",
    "ceil": "(ceil({0}) + 0.0)",
    "round": "(rint({0}) + 0.0)",
    "power": "(({0} * {0}) if {1} == 2.0 else (sqrt({0}) if {1} == 0.5 else pow({0}, {1})))",
    "count_power": "count_power({0}, {1})",
    "imag": "0.0",
}
HOST = {name: text.replace("real(", "float64(") for name, text in (TABLE | _OWN).items() if name != "hypot"}

_COUNT_POWER = """\


def count_power(base: float64, count: float64) -> float64:
    # by binary powering, in the order of `fusion.operations.multiply_power`
    bits = int64(abs(count))
    result, square = 1.0, base
    while bits:
        if bits & 1:
            result = result * square
        square = square * square
        bits = bits >> 1
    return result if count >= 0.0 else 1.0 / result
"""

_TEXT = """\
# {name}, {dtype}: a row of host values
from optimkit.engines.cpu.language import {names}
{powers}

def kernel(numbers, count, row, wide):
{body}
"""


# In a compiled step: the row of a (group, count) among the first `rows` of a bucket, a new one where there is none.
ROW_OF = """\
def fill_row(bucket, row, group, count):
    numbers = word(bucket, NUMBERS) + group * word(bucket, NUMBER_BYTES)
    narrow = word(bucket, ROWS) + row * word(bucket, ROW_BYTES)
    call(word(bucket, FILL_ROW), numbers, count, narrow, word(bucket, WIDE) + row * word(bucket, WIDE_BYTES))


def row_of(bucket, rows, group, count) -> int64:
    row_group, row_count, row = word(bucket, ROW_GROUP), word(bucket, ROW_COUNT), 0
    while row < rows and (word(row_group, row) != group or word(row_count, row) != count):
        row += 1
    if row == rows:
        put(row_group, row, group)
        put(row_count, row, count)
        fill_row(bucket, row, group, count)
    return row
"""


@lru_cache(maxsize=256)
def rows_text(plan: Plan, dtype: DType) -> str | None:
    """The text of the function that fills a row; None where an operation is not the same in compiled code."""
    nodes = [node for node in walk(plan.hosts) if node.args]
    if any(node.op not in HOST for node in nodes):
        return None
    body = Body()

    def leaf(node: Node) -> str:
        if node.op == "number":
            return f"n{plan.numbers.index(node.key)}"
        return "t" if node.op == "count" else constant_text(node)

    write_statements(body, nodes, plan.hosts, HOST, leaf)
    numbers = [f"n{place} = load_float64(numbers, {place})" for place in range(len(plan.numbers))]
    statements = [f"{name} = {text}" for name, text, _ in body.statements]
    stores = [f"store_{dtype.compute}(row, {column}, {dtype.compute}({end}))" for column, end in enumerate(body.ends)]
    if plan.uniform_rounds:
        stores += [f"store_float64(wide, {column}, float64({end}))" for column, end in enumerate(body.ends)]
    text = indent(["t = float64(count)", *numbers, *statements, *stores], 1)
    powers = powers_of(text)
    return _TEXT.format(
        name=plan.program.name, dtype=dtype.name, names=used_names(text + powers), powers=powers, body=text
    )


def powers_of(text: str) -> str:
    """The function that a text calls for powers, where it does."""
    return _COUNT_POWER if "count_power(" in text else ""


def constant_text(node: Node) -> str:
    if node.kind == BOOLEAN:
        return repr(bool(node.key))
    return repr(float(node.key))  # type: ignore[arg-type]
