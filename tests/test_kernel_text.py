"""Kernel text of two rules, stage by stage, compared with stored files: a change to generated code is seen and read.

After a change that is meant, `python tests/test_kernel_text.py` writes the files in `tests/kernels` anew; read the
difference before you commit it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import optimkit
from optimkit import L1
from optimkit.transforms import ClipByGlobalNorm

STORED = Path(__file__).parent / "kernels"


def adam():
    return optimkit.Adam.explain("float32")


def clipped_sgd():
    """Two stages: a norm in float64 that can't overflow, then momentum with a penalty, clipped."""
    params = {"w": np.zeros(3)}
    return optimkit.SGD(params, lr=0.1, momentum=0.9, transforms=[ClipByGlobalNorm(1.0)], penalty=L1(0.1)).explain()


TEXTS = {"adam_float32": adam, "clipped_sgd_float64": clipped_sgd}


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_the_stored_one(name):
    stored = (STORED / f"{name}.txt").read_text()
    assert TEXTS[name]() + "\n" == stored, "if the change is meant: python tests/test_kernel_text.py"


def test_no_file_is_left_over():
    assert {path.stem for path in STORED.iterdir()} == set(TEXTS)


if __name__ == "__main__":
    for name, text in TEXTS.items():
        (STORED / f"{name}.txt").write_text(text() + "\n")
