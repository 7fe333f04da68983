"""The command: `python -m optimkit.bench.gpu_day --out FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optimkit.bench.gpu_day.parts import PARTS, Day, run_here, run_parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, or one of them in this process; 0 where none has failed."""
    parser = argparse.ArgumentParser("python -m optimkit.bench.gpu_day", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for report.txt, results.json, log.txt")
    parser.add_argument("--only", metavar="NUMBERS", help=f"some of {', '.join(f'{n} {name}' for n, name in enumerate(PARTS))}")
    parser.add_argument("--quick", action="store_true", help="small arrays, few rounds: shows that it runs, measures nothing")
    parser.add_argument("--minutes", type=float, default=9.5, metavar="N", help="for all parts together (default: 9.5)")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help='wheels to put on the path (default: "wheels", ".whl")')
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    day = Day(args.out.resolve(), args.quick)
    if args.part is not None:
        return run_here(day, args.part)
    try:
        numbers = range(len(PARTS)) if args.only is None else sorted({int(each) for each in args.only.split(",")})
    except ValueError:
        parser.error(f"--only {args.only}: write numbers of parts, separated by commas")
    if not all(0 <= number < len(PARTS) for number in numbers):
        parser.error(f"--only {args.only}: there are parts 0 to {len(PARTS) - 1}")
    return run_parts(day, list(numbers), args.minutes * 60, args.wheels)


if __name__ == "__main__":
    sys.exit(main())
