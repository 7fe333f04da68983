"""Runs of the benchmark: that ratios are taken as promised, that targets are judged, and that each part runs. No times."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_bench import TORCH

from optimkit.bench import cpu, cupy, graphs, loop, measure, neighbours, report, targets
from optimkit.bench.contestants import BY_HAND, FLOOR, FOREACH, FUSED, OPTIMKIT, Contestant
from optimkit.bench.options import Options
from optimkit.bench.run import run
from optimkit.bench.shapes import FULL, QUICK
from optimkit.bench.workloads import WORKLOADS
from optimkit.cli import main
from optimkit.engines import threads
from optimkit.engines.cuda.diagnosis import cuda_problem, find_cuda

NO_DEVICE = cuda_problem(find_cuda())


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0.0)


# ---- ratios and rounds


def test_a_ratio_is_the_median_of_the_rounds():
    ratio = measure.compare([1.0, 8.0, 6.0], [2.0, 4.0, 1.0])  # the ratio of the medians would be 3
    assert ratio == (2.0, 0.5, 6.0)
    assert str(ratio) == "2.00x (0.50..6.00)"


def test_rounds_are_interleaved():
    """Each takes its turn once in a round, the first one changes, and what is short is repeated."""
    calls = []
    seconds = {"a": 0.004, "b": 1.0, "c": 0.5}

    def timer(contestant, steps):
        calls.append((contestant.name, steps))
        return seconds[contestant.name]

    taken = measure.run_rounds([Contestant(name, lambda: None) for name in "abc"], 3, "float32", timer, least=0.04)
    assert taken == {name: [value] * 3 for name, value in seconds.items()}
    assert calls[:6] == [(name, steps) for name in "abc" for steps in (2, 1)]
    timed = [call for call in calls[6:] if call != ("a", 1)]
    assert timed == [("a", 10), ("b", 1), ("c", 1), ("b", 1), ("c", 1), ("a", 10), ("c", 1), ("a", 10), ("b", 1)]


@pytest.mark.parametrize("refilled", [False, True])
def test_filling_gradients_again_is_not_timed(refilled):
    now = [0.0]

    def advance(by):
        now[0] += by

    contestant = Contestant("x", lambda: advance(1.0), (lambda: advance(100.0)) if refilled else None)
    assert measure.time_on_host(contestant, 4, clock=lambda: now[0]) == 1.0
    assert now[0] == 4.0 + 400.0 * refilled


def test_who_is_not_captured_is_told_and_ours_is_no_exception():
    class Graph:
        def __init__(self, seconds):
            self.taken = iter(seconds)

        def seconds(self):
            return next(self.taken)

    def fail():
        raise ValueError("it allocates")

    made = {"a": lambda: Graph([3.0, 1.0, 2.0]), "b": fail}
    assert graphs.measure_graphs(made, 3, ["b"]) == ({"a": 2.0}, {"b": "ValueError: it allocates"})
    with pytest.raises(ValueError, match="it allocates"):
        graphs.measure_graphs(made, 3, ["a"])


# ---- targets


def cell(name, shape, fused=2.0, over_floor=1.1, **more):
    ratios = {FUSED: {"median": fused, "low": fused, "high": fused}}
    return {"workload": name, "shape": shape, "ratios": ratios, "over_floor": {"median": over_floor}, "allocated": 5000, **more}


def judged(options, found):
    return {each.text: each.holds for each in targets.judge(options, found)}


def test_targets():
    extras = {
        "imports": {"ratio": {"median": 1.6}},
        "first_steps": [
            {"workload": "adam", "torch": 2.0, "cold_ratio": 0.26, "cached_ratio": 0.12},
            {"workload": "tail", "torch": 2.0, "cold_ratio": 0.4, "cached_ratio": 0.5},
        ],
        "replaced": {"seconds": [1e-6, 1.5e-6, 9e-6]},
    }
    lines = [
        {"part": "warm step", "title": "Adam, 4 arrays, 1,000 elements", "ratio": {"median": 0.26}},
        {"part": "warm step", "title": "clip + AdamW, 4 arrays, 1,000 elements", "ratio": {"median": 9.0}},
        {"part": "loop", "title": "training loop, 1,000 weights", "ratio": {"median": 0.3}},
        {"part": "loop", "title": "training loop, 100,000 weights", "ratio": {"median": 0.51}},
        {"part": "halves", "title": "halves of 200 arrays in turn", "ratio": {"median": 1.0}},
        {"part": "halves", "title": "halves of 20 arrays in turn", "ratio": {"median": 1.4}},
    ]
    cells = [
        cell("adam", "large", 0.99, over_floor=1.07),
        cell("adam", "mlp", 1.6),
        cell("tail", "resnet", over_floor=1.31),
        cell("sgd", "large"),
    ]
    found = {"cells": cells, "extras": extras, "loop": lines, "torch": {"problem": ""}}
    assert judged(Options(threads=2), found) == {
        "torch's fused Adam over optimkit's, large": False,
        "torch's fused Adam over optimkit's, resnet": None,
        "torch's fused Adam over optimkit's, small": None,
        "torch's fused Adam over optimkit's, mlp": True,
        "Adam over its memory traffic, large": True,
        "Adam over its memory traffic, resnet": None,
        "clip + AdamW + zeroing over its memory traffic, large": None,
        "clip + AdamW + zeroing over its memory traffic, resnet": False,
        "allocated in a warm step": True,
        "import optimkit over import numpy": False,
        "first step over import torch, Adam, cold": False,
        "first step over import torch, clip + AdamW + zeroing, cold": True,
        "first step over import torch, Adam, from cache": True,
        "a warm step over Adam by hand": False,
        "a step in a loop over Adam by hand, 1,000 weights": True,
        "a step in a loop over Adam by hand, 14,000 weights": None,
        "a step in a loop over Adam by hand, 100,000 weights": False,
        "a step of one half of the arrays, in turn, over one of all": False,
        "a replaced gradient, per parameter": True,
    }
    for options in (Options(threads=1), Options(threads=2, quick=True), Options(threads=2, dtype="float64")):
        assert set(judged(options, found).values()) == {None}
        assert report.targets(targets.judge(options, found)).startswith("Targets: not measured, ")
    without = {"cells": [{**cells[0], "ratios": {}}], "extras": None, "loop": None, "torch": {"problem": "no torch here"}}
    text = report.targets(targets.judge(Options(threads=2), without))
    assert "large: >= 1x: not measured, no torch here" in text
    assert "first step over import torch, Adam, cold: <= 0.25x: not measured, left out by --only" in text
    assert "holds Adam over its memory traffic, large: <= 1.08x: 1.07x" in text
    assert "a warm step over Adam by hand: <= 0.25x: not measured, left out by --only" in text
    no_torch = {**extras, "first_steps": [{**step, "torch": 0.0} for step in extras["first_steps"]]}
    text = report.targets(targets.judge(Options(threads=2), {**without, "extras": no_torch}))
    assert "first step over import torch, Adam, cold: <= 0.25x: not measured, no torch here" in text


def test_targets_of_a_device():
    cells = [cell("adam", "small", stages=1, launches={OPTIMKIT: 2}), cell("tail", "mlp", stages=2, launches={OPTIMKIT: 3})]
    found = targets.judge_device(
        {"cells": [*cells, cell("sgd", "mlp", stages=1, launches={OPTIMKIT: None})], "engine": "eager"}
    )
    assert [each.holds for each in found] == [False, True, None]


# ---- runs


def test_only_names_parts():
    full = Options.read()
    assert (full.workloads, full.shapes, full.extras, full.loop) == (tuple(WORKLOADS), tuple(FULL), True, True)
    some = Options.read(only="mlp, Adam,large")
    assert (some.workloads, some.shapes, some.extras) == (("adam",), ("large", "mlp"), False)
    assert Options.read(only="extras").workloads == ()
    assert Options.read(only="tail,extras").shapes == tuple(FULL)
    assert Options.read(only="tail,extras").extras
    small = Options.read(only="loop")
    assert (small.workloads, small.shapes, small.extras, small.loop) == ((), (), False, True)
    with pytest.raises(ValueError, match="--only loop is measured on the CPU alone; leave out --backend cupy"):
        Options.read(backend="cupy", only="loop")
    with pytest.raises(ValueError, match=r"--only names lop; write one or more of .*, extras, loop"):
        Options.read(only="lop")


def test_a_quick_run(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    arguments = [
        "--quick",
        "--only",
        "adam,tail,mlp",
        "--rounds",
        "2",
        "--threads",
        "1",
        "--dtype",
        "float64",
        "--json",
        str(file),
    ]
    before = threads.get_num_threads()
    assert main(["bench", *arguments]) == 0
    assert threads.get_num_threads() == before
    text = capsys.readouterr().out
    for words in (
        "float64, 1 thread,",
        "Adam: 32 bytes read and 24 written",
        QUICK["mlp"].title,
        BY_HAND,
        "not measured, --quick",
    ):
        assert words in text
    found = json.loads(file.read_text())
    assert found["options"]["workloads"] == ["adam", "tail"]
    assert found["machine"]["packages"]["numpy"] == np.__version__
    others = {BY_HAND} if TORCH else {BY_HAND, FUSED, FOREACH}
    for each in found["cells"]:
        seconds = each["seconds"]
        assert set(seconds) == {OPTIMKIT, FLOOR, *others}
        assert all(len(taken) == 2 and min(taken) > 0 for taken in seconds.values())
        for name in others:
            assert each["ratios"][name] == measure.compare(seconds[name], seconds[OPTIMKIT])._asdict()
        assert each["over_floor"] == measure.compare(seconds[OPTIMKIT], seconds[FLOOR])._asdict()


def test_a_quick_loop(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    assert main(["bench", "--quick", "--only", "loop", "--rounds", "2", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    lines = json.loads(file.read_text())["loop"]
    assert [line["part"] for line in lines] == ["warm step", "warm step", "loop", "halves", "halves"]
    for line in lines:
        assert line["title"] in text
        own, other = line["seconds"][OPTIMKIT], line["seconds"][line["other"]]
        assert len(own) == len(other) == 2
        assert line["ratio"] == measure.compare(own, other)._asdict()


def test_a_loop_whose_sides_differ_is_not_measured(monkeypatch):
    monkeypatch.setattr(loop, "EPS", 0.5)
    with pytest.raises(RuntimeError, match="Adam by hand computes something else than optimkit: W1 differs by"):
        loop.measure_loop(1, "float32", quick=True)


def test_a_run_without_torch_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cpu, "torch_problem", lambda: "torch can't be imported; pip install torch")
    assert main(["bench", "--quick", "--only", "sgd,mlp", "--rounds", "1"]) == 0
    text = capsys.readouterr().out
    assert "no torch (torch can't be imported; pip install torch)" in text
    assert FUSED not in text


@pytest.mark.parametrize(
    ("start", "end", "share"),
    [
        ((100.0, 7.0, 1000.0), (130.0, 17.0, 1100.0), 0.2),  # others: 30 s busy without our 10 s, of 100 s
        ((100.0, 7.0, 1000.0), (109.0, 17.0, 1100.0), 0.0),  # clocks that disagree a little
        (None, None, None),
    ],
)
def test_neighbours_are_told(monkeypatch, start, end, share):
    monkeypatch.setattr("optimkit.bench.cpu.measure", lambda options, show: {})
    values = iter((start, end))
    monkeypatch.setattr(neighbours, "_read", lambda: next(values))
    shown = []
    found = run(Options(), shown.append)
    assert found["neighbours"] == share
    assert shown == ([neighbours.warning(share)] if share else [])
    assert "Other processes used 20% of the cores" in neighbours.warning(0.2)


def test_a_file_that_can_not_be_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("optimkit.bench.cpu.measure", lambda options, show: {})
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert main(["bench", "--quick", "--json", str(tmp_path / "b.json")]) == 1
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.skipif(NO_DEVICE is not None, reason=f"the benchmark on CuPy arrays: {NO_DEVICE and NO_DEVICE.what}")
def test_a_quick_run_on_cupy(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    assert main(["bench", "--backend", "cupy", "--quick", "--only", "adam,tail,mlp", "--rounds", "1", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert ("emulated on the CPU" in text) == found["device"]["emulated"]
    adam, tail = found["cells"]
    for each in (adam, tail):
        assert {OPTIMKIT, cupy.COPY, cupy.KERNEL, cupy.FUSE, cupy.EXPRESSIONS} <= set(each["seconds"])
    assert adam["launches"] == {OPTIMKIT: 1, cupy.KERNEL: 4, cupy.FUSE: 4, cupy.EXPRESSIONS: 52, **_torch(adam)}
    assert tail["launches"][OPTIMKIT] <= 3


def _torch(cell):
    return {name: count for name, count in cell["launches"].items() if name == FUSED}
