"""Simulate LiDAR frames of street scenes.

pcdet simulate --format kitti --frames 200 --seed 0 --out data/sim
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pcdet_ext.cli.arguments import path
from pcdet_ext.cli.errors import FailureError, wrong_use


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=["kitti"], default="kitti", help="layout of the files (default: kitti)")
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same frames")
    parser.add_argument("--out", type=path, required=True, help="folder to write to")
    parser.add_argument("--val-fraction", type=float, default=0.2, help="share of frames in ImageSets/val.txt")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--beams", type=int, default=64)
    parser.add_argument("--azimuths", type=int, default=2080, help="firings per turn")


def run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pcdet_ext.data.simulation import SpinningLidar, simulate_kitti

    begun = False

    def bar(numbers: Iterator[int]) -> Iterator[int]:
        nonlocal begun
        begun = True
        return iter(tqdm(numbers, total=options.frames, unit="frame", desc=str(options.out)))

    with wrong_use():
        sensor = SpinningLidar(beams=options.beams, azimuths=options.azimuths)
        simulate_kitti(options.out, options.frames, options.seed, options.val_fraction, options.workers, sensor, bar)
    if not begun:
        raise FailureError(f"{options.out}: holds these frames already, there is nothing to do")
    return 0
