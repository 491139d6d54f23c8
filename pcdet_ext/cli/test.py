"""Test a checkpoint on a data set.

    pcdet test runs/lion/best.ckpt data.root=/data/kitti --out results --json ap.json

Writes result files (--out) and prints the data set's own metric; where the split has no labels, it only writes.
"""

from __future__ import annotations

import argparse

from pcdet_ext.cli.arguments import add_device, add_imports, add_overrides, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=path,
        help="a file that a training wrote, or a name as kitti/demo_sim",
    )
    add_overrides(parser, "the checkpoint's configuration")
    parser.add_argument("--split", help="frames to test on (default: the configuration's test.split, else val)")
    parser.add_argument("--out", type=path, help="folder for the result files")
    parser.add_argument("--json", type=path, help="file for all numbers")
    parser.add_argument("--plots", type=path, metavar="DIR", help="folder for diagrams, as precision over recall")
    parser.add_argument(
        "--no-optimize",
        dest="optimize",
        action="store_false",
        help="keep batch norms apart from the layers before them: slower, the same results up to rounding",
    )
    add_device(parser)
    add_imports(parser)


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.engine.allocation import keep_freed_memory

    keep_freed_memory()
    from pcdet_ext.engine.testing import measure

    print(measure(**vars(options)))
    return 0
