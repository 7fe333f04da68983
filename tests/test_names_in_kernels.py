"""Whatever a class or a slot is called, its name does not become code of a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from optimkit import Optimizer, zeros
from optimkit.rules.numbers import NonNegative

NAMES = ["Two\nLines: raise SystemExit(3)", "Ends with \\", 'Quotes """ \'\'\'', "{braces}", "*/ } #error", "Größe"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_code(name, optimkit_backend):
    def update(self, w, g, s, h, xp):
        m = getattr(s, name) + g
        return h.lr * m, {name: m}

    members = {"lr": 0.5, "__annotations__": {"lr": NonNegative}, "slots": lambda self: {name: zeros}, "update": update}
    kind = type(name, (Optimizer,), {**members, "__module__": __name__})
    if optimkit_backend.functional:
        pytest.skip("no kernel text")
    w, g = (optimkit_backend.make(np.ones(3), "float32") for _ in range(2))
    opt = kind(w, engine=optimkit_backend.engine)
    for _ in range(3):
        opt.step(g)
    assert optimkit_backend.to_numpy(w).tolist() == [1 - 0.5 * (1 + 2 + 3)] * 3
