"""Programs and plans are kept, the least recently used go first."""

from __future__ import annotations

import numpy as np
import pytest

import optimkit
from optimkit import Optimizer, Scalar
from optimkit.rules import programs


def test_the_least_recently_used_goes_first():
    kept, made = programs.LatestUsed(2), []

    def get(key):
        return kept.get(key, lambda: made.append(key) or key)

    for key in ("a", "b", "a", "c", "a"):
        assert get(key) in (key, None)
    assert made == ["a", "b", "c"]
    get("b")
    assert made == ["a", "b", "c", "b"]
    get("a")
    assert made == ["a", "b", "c", "b"]
    assert len(kept) == 2


def rule(name):
    def update(self, w, g, s, h, xp):
        return h.lr * g

    return type(name, (Optimizer,), {"__annotations__": {"lr": Scalar}, "lr": 0.5, "update": update})


@pytest.mark.parametrize("engine", ["eager"])
def test_a_rule_that_is_used_stays_though_many_come_and_go(engine, monkeypatch):
    """A notebook defines a class again and again; what it trains with is not traced anew for that."""
    monkeypatch.setattr(programs.programs, "most", 4)
    monkeypatch.setattr(programs.plans, "most", 4)
    stays = rule("Stays")
    w = np.zeros(2)
    stays(w, engine=engine).step(np.ones(2))
    for number in range(8):
        before = optimkit.counters.traces
        rule(f"Goes{number}")(np.zeros(2), engine=engine).step(np.ones(2))
        assert optimkit.counters.traces == before + 1
        stays(w, engine=engine).step(np.ones(2))
        assert optimkit.counters.traces == before + 1
        assert len(programs.programs) == len(programs.plans) == 4
    assert w.tolist() == [-4.5, -4.5]
