"""What schedules and schedulers take: finite numbers in a range, and whole numbers."""

from __future__ import annotations

import operator
from typing import Any

from optimkit.rules.numbers import Range

FINITE = Range()
FACTOR = Range(low=0.0)


def check_number(what: str, value: Any, allowed: Range = FINITE) -> float:
    """`value` as a float in range, or a ValueError that starts with `what`."""
    message = f"{what} = {value!r} must be {allowed}"
    if isinstance(value, bool | str | bytes) or type(value).__name__ == "bool":
        raise ValueError(message)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(message) from error
    if number not in allowed:
        raise ValueError(message)
    return number


def check_whole(what: str, value: Any, low: int) -> int:
    """`value` as an int from `low`, or a ValueError that starts with `what`."""
    message = f"{what} = {value!r} must be a whole number from {low}"
    if isinstance(value, bool):
        raise ValueError(message)
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ValueError(message) from error
    if number < low:
        raise ValueError(message)
    return number
