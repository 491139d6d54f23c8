#!/usr/bin/env python3
"""Simulate LiDAR frames of street scenes.

simulate_data.py --format kitti --frames 200 --seed 0 --out data/sim
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=["kitti"], default="kitti")
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same frames")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--val-fraction", type=float, default=0.2, help="share of frames in ImageSets/val.txt")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--beams", type=int, default=64)
    parser.add_argument("--azimuths", type=int, default=2080, help="firings a turn")
    options = parser.parse_args()
    from pcdet_ext.data.simulation import SpinningLidar, simulate_kitti
    from pcdet_ext.files import DataError

    bar = partial(tqdm, total=options.frames, unit="frame", desc=str(options.out))
    sensor = SpinningLidar(beams=options.beams, azimuths=options.azimuths)
    arguments = (options.out, options.frames, options.seed, options.val_fraction, options.workers, sensor, bar)
    try:
        simulate_kitti(*arguments)
    except (ValueError, DataError, OSError, ImportError) as error:
        print(f"simulate_data: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
