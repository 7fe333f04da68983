"""A `Group`: values of the optimizer's fields, which some of the parameters share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optimkit.rules.rule import Rule


@dataclass(eq=False, repr=False)
class Group:
    """Values of all fields of the optimizer, and the factors of the learning rate that schedulers set, by their key."""

    values: dict[str, Any]
    factors: dict[int, float] = field(default_factory=dict)

    def rule(self, kind: type[Rule]) -> Any:
        """A rule with this group's values: no parameters, no driver."""
        rule = object.__new__(kind)
        rule.__dict__.update(self.values)
        return rule
