"""Measure this library: python tools/benchmark.py ops [--device cuda] [--only voxelize] [--json FILE]

Ratios are how many times longer the named peer took, both measured in turns in one run; exits 1 when results differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ops = commands.add_parser("ops", help="operations against their references and other libraries")
    ops.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    ops.add_argument(
        "--frames", nargs="+", type=Path, default=[], metavar="PATH", help="point files or folders of them"
    )
    sizes = {"nargs": "+", "type": int, "default": [20_000, 100_000], "metavar": "N"}
    ops.add_argument("--voxels", **sizes, help="sizes of the synthetic scans (default: 20000 100000)")
    ops.add_argument("--only", nargs="+", default=[], metavar="NAME", help="benchmarks to run (default: all)")
    ops.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    ops.add_argument("--json", type=Path, help="write everything measured to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from pcdet_ext.benchmark.report import run_ops
    from pcdet_ext.data.files import DataError

    try:
        places = (options.device, options.frames, options.only, options.json, options.threads)
        agreed = run_ops(*places, options.voxels)
    except (ValueError, DataError, OSError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
