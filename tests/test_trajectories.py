"""Stored trajectories of torch: what tells its conventions apart from those of others (see trajectories/README.md).

The file was made by `trajectories/make_torch.py`; no test needs torch. Schedules are compared in `test_schedules.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import optimkit
from optimkit import transforms
from optimkit.testing import TOLERANCES
from optimkit.testing.compare import difference

CASES = json.loads((Path(__file__).parent / "trajectories" / "torch.json").read_text())["cases"]


def build(case, params, engine):
    settings = {name: tuple(x) if isinstance(x, list) else x for name, x in case["kwargs"].items()}
    links = [getattr(transforms, link["class"])(*link["args"]) for link in case.get("transforms", ())]
    penalty = case.get("penalty")
    penalty = getattr(transforms, penalty["class"])(*penalty["args"]) if penalty else None
    maximize = case.get("maximize", False)
    cls = getattr(optimkit, case["optimizer"])
    return cls(params, **settings, transforms=links, penalty=penalty, maximize=maximize, engine=engine)


def arrays(values, dtype):
    return {name: None if x is None else np.array(x, dtype) for name, x in values.items()}


@pytest.mark.parametrize("engine", ["llvm", "eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_weights_are_those_of_the_trajectory(case, engine):
    dtype = case["dtype"]
    params = arrays(case["params"], dtype)
    opt = build(case, params, engine)
    for t, (grads, weights) in enumerate(zip(case["grads"], case["weights"], strict=True), 1):
        if "lrs" in case:
            opt.lr = case["lrs"][t - 1]
        assert opt.step(arrays(grads, dtype)).applied
        for name, expected in arrays(weights, dtype).items():
            found = difference(params[name], expected, TOLERANCES[dtype])
            assert not found, f"step {t}, {name!r}: {found}; {case['tolerance_note']}"


def test_the_file_covers_the_optimizers_and_is_whole():
    assert {case["optimizer"] for case in CASES} == {"SGD", "Adagrad", "Adam", "AMSGrad", "AdamW", "RMSProp"}
    assert len(CASES) == 67
    assert all(len(case["grads"]) == len(case["weights"]) == 30 for case in CASES)
