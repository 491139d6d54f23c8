"""Measure this library.

    python tools/benchmark.py ops [--device cuda] [--only voxelize] [--json FILE]
    python tools/benchmark.py models [CONFIG …] [--device cuda] [--json FILE]
    python tools/benchmark.py steps CONFIG … data.root=DIR [--device cuda]

Ratios are how many times longer the named peer took, both measured in one run; exits 1 when results differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pcdet_ext.engine.allocation import keep_freed_memory


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
    models = commands.add_parser("models", help="detectors at their published size, stage by stage")
    models.add_argument("configs", nargs="*", type=Path, help="configurations (default: published models)")
    models.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    models.add_argument("--voxels", type=int, default=60_000, help="voxels of the frame, at least (default 60000)")
    models.add_argument("--rounds", type=int, default=3, help="passes that count (default 3)")
    models.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    models.add_argument("--reference-scan", action="store_true", help="also time Mamba on the PyTorch scan")
    models.add_argument("--json", type=Path, help="write everything measured to this file")
    steps = commands.add_parser("steps", help="training steps on the frames of a data set")
    steps.add_argument("given", nargs="+", metavar="CONFIG|a.b=c", help="configurations, and changes of all of them")
    steps.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    steps.add_argument("--steps", type=int, default=6, help="steps that count (default 6)")
    steps.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    keep_freed_memory()
    from pcdet_ext.config import ConfigError
    from pcdet_ext.files import DataError

    try:
        return {"ops": run_ops, "models": run_models, "steps": run_steps}[options.command](options)
    except (ConfigError, ValueError, DataError, OSError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2


def run_ops(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark import report

    places = (options.device, options.frames, options.only, options.json, options.threads)
    return 0 if report.run_ops(*places, options.voxels) else 1


def run_models(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark import models

    sizes = (options.voxels, options.rounds, options.threads)
    models.run_models(options.configs, options.device, *sizes, options.reference_scan, options.json)
    return 0


def run_steps(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark import steps

    overrides = [given for given in options.given if "=" in given]
    configs = [Path(given) for given in options.given if "=" not in given]
    steps.run_steps(configs, overrides, options.device, options.steps, options.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
