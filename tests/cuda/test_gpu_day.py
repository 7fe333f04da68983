"""The first day on a GPU: its flow, on any device; that it finds what it looks for; that nothing stops it. No times."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimkit.bench.gpu_day import parts, races
from optimkit.bench.gpu_day.__main__ import main
from optimkit.engines.cuda import text
from optimkit.engines.cuda.combine import COMBINE

without_device = pytest.mark.without_device


def command(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "optimkit.bench.gpu_day", "--out", str(out), *arguments]
    return subprocess.run(whole, capture_output=True, text=True, cwd=parts.CHECKOUT)


def test_the_first_day_runs_through(cupy: Any, tmp_path: Path) -> None:
    run = command(tmp_path / "day", "--quick")
    assert run.returncode == 0, run.stdout + run.stderr + (tmp_path / "day" / "log.txt").read_text()
    lines = run.stdout.split("\n\n")[0].splitlines()
    found = [re.fullmatch(r"(PASS|FAIL|SKIP) (\d) (\w+) ([\d.]+) (.+)", line) for line in lines]
    assert [each and (int(each[2]), each[3]) for each in found] == list(enumerate(parts.PARTS))
    words = {each[3]: each[1] for each in found if each}
    assert all(words[name] == "PASS" for name in ("environment", "bits", "suite", "races", "kernels", "host")), run.stdout
    results = json.loads((tmp_path / "day" / "results.json").read_text())
    assert results["races"]["graphs"] == {"checksums": 0, "norms": 0, "of": 12}
    assert len(results["kernels"]["seconds"]) == 20
    assert set(results["host"]["microseconds"]) == {"4", "161", "1000"}
    assert sorted(path.name for path in (tmp_path / "day").iterdir()) == ["log.txt", "report.txt", "results.json"]


def test_the_loop_notices_a_sum_that_is_read_too_early(cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block of a parameter finishes it: what others leave later is still NaN."""
    day = parts.Day(tmp_path, quick=True)
    expected = races._run(cupy, day, 4, races._alone, load=False)
    early = COMBINE.replace("(counter, blocks - 1) == blocks - 1;", "(counter, blocks - 1) == 0;")
    assert early != COMBINE
    monkeypatch.setattr(text, "COMBINE", early)
    found = races._run(cupy, day, 4, races._alone, load=False)
    assert (found["sums"] != expected["sums"]).any()
    assert (found["norms"] != expected["norms"]).any()


def test_the_loop_notices_a_step_that_was_lost(cupy: Any, tmp_path: Path) -> None:
    day = parts.Day(tmp_path, quick=True)

    def forgetful(module: Any, problem: Any, number: int, streams: list[Any]) -> Any:
        return float("nan") if number == 2 else races._iterate(problem, number)

    expected = races._run(cupy, day, 4, races._alone, load=False)
    found = races._run(cupy, day, 4, forgetful, load=True)
    assert (found["sums"] == expected["sums"]).tolist() == [True, True, False, False]


@without_device
def test_options_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for only, message in (("9", "there are parts 0 to 7"), ("bits", "write numbers of parts")):
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path), "--only", only])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])


@without_device
def test_a_part_that_hangs_crashes_or_has_no_time_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"hanging": "import time; time.sleep(60)", "crashing": "import os; os.abort()", "raising": "1 / 0"}
    folder = tmp_path / "package"
    for name, code in bad.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"def run(day):\n    {code}\n")
    monkeypatch.setattr(parts, "PARTS", {"hanging": 1.5, "crashing": 20, "raising": 20, "late": 20})
    start = (
        "import sys, importlib; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "from optimkit.bench.gpu_day import parts; parts.PARTS = dict.fromkeys(('hanging', 'crashing', 'raising', 'late')); "
        "real = importlib.import_module; importlib.import_module = lambda name: real(name.rpartition('.')[2]); "
        "sys.exit(parts.run_here(parts.Day(Path(sys.argv[2])), int(sys.argv[3])))"
    )
    real = subprocess.Popen

    def popen(whole: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", start, str(folder), str(tmp_path), whole[whole.index("--part") + 1]], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    assert parts.run_parts(parts.Day(tmp_path), [0, 1, 2], 60.0, None) == 1
    assert parts.run_parts(parts.Day(tmp_path), [3], 0.5, None) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    for line, pattern in zip(
        lines,
        [
            r"FAIL 0 hanging .* it was stopped after 2 s: see log\.txt",
            r"FAIL 1 crashing .* its process ended with -\d+: see log\.txt",
            r"FAIL 2 raising .* ZeroDivisionError: division by zero",
            r"FAIL 3 late 0\.0 no time was left: raise --minutes",
        ],
        strict=True,
    ):
        assert re.fullmatch(pattern, line), line


@without_device
def test_wheels_go_on_the_path_of_parts_alone(tmp_path: Path) -> None:
    (tmp_path / "some-1.0-py3-none-any.whl").write_bytes(b"")
    found = parts._environment(parts.Day(tmp_path), tmp_path)
    paths = found["PYTHONPATH"].split(os.pathsep)
    assert str(tmp_path / "some-1.0-py3-none-any.whl") in paths
    assert str(parts.CHECKOUT) in paths
    assert found["JAX_PLATFORMS"] == "cpu"


@without_device
def test_the_start_needs_no_library() -> None:
    """Where array-api-compat is carried as a wheel, the command itself must start without it."""
    code = "import sys, optimkit.bench.gpu_day.__main__; print({'numpy', 'array_api_compat', 'cupy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=parts.CHECKOUT)
    assert run.stdout.strip() == "set()", run.stdout + run.stderr


@without_device
def test_factors_clip_in_some_iterations_and_not_in_others() -> None:
    factors = np.array([races.factor(number) for number in range(1000)])
    assert 0.1 < (factors > 0.75).mean() < 0.9
    assert len(np.unique(factors)) == 101
