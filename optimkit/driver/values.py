"""The numbers of a run as they are now: what was set, what a schedule gives, what schedulers multiply."""

from __future__ import annotations

from typing import Any

from optimkit import arrays
from optimkit.driver.entries.group import Group
from optimkit.driver.run import Run
from optimkit.rules.numbers import coerce_number


def number(run: Run, group: Group, key: tuple[int, str, int | None], count: Any = None) -> Any:
    """The value of a number of the chain in this step; `key` is (rule, name, position).

    A schedule is called with the count of steps, or with `count`, which may be known to a jitted function alone. In a
    step it is called once, whatever asks for it.
    """
    index, name, position = key
    rule: Any = run.kind if index == 0 else run.links[index - 1]
    value = group.values[name] if index == 0 else rule.__dict__[name]
    value = value if position is None else value[position]
    if callable(value):
        ask = _ask_once if count is None and run.stepping else _ask
        count = run.count if count is None else count
        label = run.kind.__name__ if index == 0 else type(rule).__name__
        what = f"{label}: {name}, given by {value!r} for step {count},"
        value = ask(run, value, count)
        if not arrays.is_traced(value):
            value = coerce_number(what, value, rule._numbers[name].range_of(position))
    if index == 0 and name == "lr" and group.multiplier != 1.0:
        value = value * group.multiplier
    return value


def _ask(run: Run, schedule: Any, count: Any) -> Any:
    return schedule(count)


def _ask_once(run: Run, schedule: Any, count: int) -> Any:
    """What a schedule gives for this step, asked before or now."""
    if id(schedule) not in run.asked:
        run.asked[id(schedule)] = schedule(count)
    return run.asked[id(schedule)]


def step_number(run: Run, group: Group, key: Any) -> float:
    """The value of a number of the chain for the step that begins.

    Raises
    ------
    ValueError
        If it is too large, or a schedule gave a number out of range.
    """
    value = float(number(run, group, key))
    if value == float("inf"):
        label, name = run.kind.__name__, key[1]
        raise ValueError(f"{label}: {name} = {group.values[name]!r} times the schedulers' factors is too large for a float")
    return value
