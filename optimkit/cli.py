"""The command line: `python -m optimkit info`, `python -m optimkit bench`.

    optimkit info               what is installed, what runs which arrays, and what is missing
    optimkit bench --quick      a short look; without --quick the real measurement, some minutes

Exit code 0: done; 1: the benchmark could not go on; 2: a wrong option, or nothing to measure on; 130: Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import optimkit


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code.
    """
    args = _parser().parse_args(argv)
    return args.run(args)  # type: ignore[no-any-return]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="optimkit", description="Gradient-based optimizers for NumPy and CuPy arrays.")
    parser.add_argument("--version", action="version", version=f"optimkit {optimkit.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="{info,bench}")

    info = commands.add_parser("info", help="versions, engines, devices, threads, kernel cache, and what is missing")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_info)

    bench = commands.add_parser(
        "bench",
        help="measure steps against torch, plain NumPy and the memory itself",
        description="Measures whole steps side by side, in interleaved rounds. A ratio is the other's time over optimkit's "
        "in the same round: the median, and the least and the largest round.",
    )
    bench.add_argument("--backend", default="numpy", metavar="NAME", help="numpy (default) or cupy")
    parts = "parts, separated by commas: sgd adam adamw tail, large resnet small mlp, extras, loop"
    bench.add_argument("--only", metavar="NAMES", help=parts)
    bench.add_argument("--rounds", metavar="N", help="interleaved rounds (default: 15, with --quick 3)")
    bench.add_argument("--threads", metavar="N", help="threads on the CPU, torch's too (default: as optimkit takes)")
    bench.add_argument("--dtype", default="float32", metavar="DTYPE", help="float32 (default) or float64")
    bench.add_argument("--quick", action="store_true", help="small arrays, a few seconds: shows that it runs, measures nothing")
    bench.add_argument("--json", metavar="FILE", help="write all numbers, round by round, to a file")
    bench.set_defaults(run=_bench)
    return parser


def _info(args: argparse.Namespace) -> int:
    from optimkit import info

    found = info.collect()
    print(json.dumps(found, indent=2) if args.json else info.render(found))
    return 0


def _bench(args: argparse.Namespace) -> int:
    from optimkit.bench.options import Options
    from optimkit.bench.report import Unavailable
    from optimkit.bench.run import run

    try:
        options = Options.read(
            backend=args.backend,
            only=args.only,
            rounds=args.rounds,
            threads=args.threads,
            dtype=args.dtype,
            quick=args.quick,
            json=args.json,
        )
        run(options)
    except (ValueError, Unavailable) as error:
        print(f"optimkit bench: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError, OSError) as error:
        print(f"optimkit bench: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("optimkit bench: interrupted", file=sys.stderr)
        return 130
    return 0
