"""What slots are called in errors that tell of memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optimkit.driver.entries.entry import Entry
from optimkit.rules.chain import SlotKey


def called(entries: Iterable[Entry], shared: Mapping[SlotKey, Any]) -> dict[str, Any]:
    """The slots of parameters, and those that an optimizer has once, by what they are called."""
    found: dict[str, Any] = {}
    for entry in entries:
        own = [*entry.slots.items(), *entry.uniforms.items()]
        found |= {f"slot {name!r} of parameter {entry.name!r} (rule {rule})": x for (rule, name), x in own}
    for (rule, name), x in shared.items():
        found[f"the slot {name!r} (rule {rule})"] = x
    return found
