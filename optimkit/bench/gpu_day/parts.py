"""The parts of the first day: each in a process of its own, with a limit, one line for each, a table last.

A part is a module with `run(day)`, which returns what there is to tell in a line, or raises `Failed` or `Left` (out).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[3]
PARTS = {  # with their limits in seconds
    "environment": 40,
    "bits": 120,
    "suite": 240,
    "races": 150,
    "sanitizer": 150,
    "kernels": 120,
    "profile": 60,
    "host": 60,
}


class Failed(Exception):
    """A part found something wrong; says what."""


class Left(Exception):
    """A part can't be done here; says why."""


@dataclass
class Day:
    """Where results go, whether all is small, and what a part has found, for `results.json`."""

    out: Path
    quick: bool = False
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    number: int
    word: str
    seconds: float
    detail: str

    def __str__(self) -> str:
        return f"{self.word} {self.number} {list(PARTS)[self.number]} {self.seconds:.1f} {self.detail}"


def run_here(day: Day, number: int) -> int:
    """Run a part in this process; its answer goes to a file, since what it prints is its log."""
    name = list(PARTS)[number]
    try:
        word, detail = "PASS", importlib.import_module(f"optimkit.bench.gpu_day.{name}").run(day)
    except Failed as error:
        word, detail = "FAIL", str(error)
    except Left as error:
        word, detail = "SKIP", str(error)
    except Exception as error:
        traceback.print_exc()
        word, detail = "FAIL", f"{type(error).__name__}: {error}"
    answer = {"word": word, "detail": " ".join(str(detail).split()), "found": day.found}
    _answer_file(day, number).write_text(json.dumps(answer, default=str))
    return int(word == "FAIL")


def run_parts(day: Day, numbers: list[int], seconds: float, wheels: Path | None) -> int:
    """Run parts one after the other, each as a process; 1 where one has failed."""
    end, outcomes, found = time.monotonic() + seconds, [], {}
    (day.out / "log.txt").write_text("")
    for number in numbers:
        outcome, own = _run_part(day, number, min(list(PARTS.values())[number], end - time.monotonic()), wheels)
        outcomes.append(outcome)
        found[list(PARTS)[number]] = {"word": outcome.word, "seconds": outcome.seconds, "detail": outcome.detail, **own}
        (day.out / "results.json").write_text(json.dumps(found, indent=1))
        print(outcome, flush=True)
    table = _table(outcomes)
    (day.out / "report.txt").write_text("\n".join([*map(str, outcomes), "", table, ""]))
    print(f"\n{table}\n{day.out / 'report.txt'}, results.json and log.txt have the rest")
    return int(any(outcome.word == "FAIL" for outcome in outcomes))


def _run_part(day: Day, number: int, limit: float, wheels: Path | None) -> tuple[Outcome, dict[str, Any]]:
    start, file = time.monotonic(), _answer_file(day, number)
    file.unlink(missing_ok=True)
    if limit < 1:
        return Outcome(number, "FAIL", 0.0, "no time was left: raise --minutes"), {}
    command = [sys.executable, "-m", "optimkit.bench.gpu_day", "--out", str(day.out), "--part", str(number)]
    with open(day.out / "log.txt", "a") as log:
        print(f"\n==== {number} {list(PARTS)[number]}", file=log, flush=True)
        process = subprocess.Popen(
            command + ["--quick"] * day.quick, stdout=log, stderr=log, env=_environment(day, wheels), start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Outcome(number, "FAIL", time.monotonic() - start, f"it was stopped after {limit:.0f} s: see log.txt"), {}
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    taken = time.monotonic() - start
    if not file.exists():
        return Outcome(number, "FAIL", taken, f"its process ended with {code}: see log.txt"), {}
    answer = json.loads(file.read_text())
    file.unlink()
    return Outcome(number, answer["word"], taken, answer["detail"]), answer["found"]


def _answer_file(day: Day, number: int) -> Path:
    return day.out / f"part-{number}.json"


def _environment(day: Day, wheels: Path | None) -> dict[str, str]:
    """Of a part: the checkout and wheels on the path, kernels in a folder of its own, JAX away from the GPU."""
    folders = [wheels] if wheels is not None else [CHECKOUT / "wheels", CHECKOUT / ".whl"]
    found = [str(file) for folder in folders for file in sorted(folder.glob("*.whl"))]
    kernels = Path.home() / ".cache" / "optimkit-gpu-day"
    kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    own = {"PYTHONPATH": os.pathsep.join([*before, str(CHECKOUT), *found]), "JAX_PLATFORMS": "cpu"}
    return {**os.environ, **own, "OPTIMKIT_CACHE_DIR": os.environ.get("OPTIMKIT_CACHE_DIR", str(kernels))}


def _table(outcomes: list[Outcome]) -> str:
    lines = [("part", "", "seconds", "")]
    lines += [(list(PARTS)[each.number], each.word, f"{each.seconds:.1f}", each.detail) for each in outcomes]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in lines)
