"""A schedule is called once in a step, whatever asks for it: buckets of two dtypes, groups, warm steps or not."""

from __future__ import annotations

import numpy as np
import pytest

from optimkit import SGD


class Changing:
    """Gives another rate whenever it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, count):
        self.asked.append(count)
        return float(len(self.asked))


@pytest.mark.parametrize("engine", ["llvm", "eager"])
def test_a_schedule_is_called_once_a_step(engine):
    schedule = Changing()
    params = {"a": np.zeros(3, np.float32), "b": np.zeros(2), "c": np.zeros(4, np.float32)}
    opt = SGD([{"params": {name: w}} for name, w in params.items()], lr=schedule, engine=engine)
    grads = [{name: np.ones_like(w)} for name, w in params.items()]
    for count in range(5):
        opt.step(grads)
        assert schedule.asked == list(range(count + 1))
        rates = sum(range(1, count + 2))
        assert all((w == -rates).all() for w in params.values())
