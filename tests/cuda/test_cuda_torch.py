"""Steps inside of a graph of torch's, as docs/gpu.md has them: where torch has CUDA."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import optimkit
from optimkit.bench.contestants import torch_problem


def from_the_page() -> Any:
    """`captured` of docs/gpu.md."""
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    code = re.search(r"```python\n(def captured\(.*?)```", page, re.S)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names["captured"]


@pytest.mark.filterwarnings("ignore:ExternalStream is deprecated:DeprecationWarning")
def test_a_step_is_a_part_of_torchs_graph(cupy: Any) -> None:
    captured = from_the_page()
    if torch_problem("cuda"):
        pytest.skip(torch_problem("cuda"))
    import torch

    w = torch.ones(1000, device="cuda", requires_grad=True)
    w.grad = torch.zeros_like(w)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight, gradient = cupy.from_dlpack(w.detach()), cupy.from_dlpack(w.grad)
    torch.cuda.synchronize()
    opt = optimkit.SGD({"w": weight}, lr=0.25, capturable=True)
    graph = captured(torch, cupy, opt, {"w": gradient}, lambda: w.grad.fill_(1.0))
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert opt.state["w"].t == 4
    assert bool((w == 0.0).all())
