#!/usr/bin/env python3
"""Show what is in a frame and what a detector finds in it.

visualize.py runs/demo/best.ckpt FRAME.bin --out scene.html        detections, with ground truth where it lies beside
visualize.py training/velodyne/000008.bin --results DIR --out a.png   result files of any codebase
visualize.py training/label_2/000008.txt --out a.png               labels alone
visualize.py … --out view.png --style view                         an Open3D picture without a screen
visualize.py …                                                     an Open3D window
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="[CHECKPOINT.ckpt] and point files, or label files (.txt)")
    parser.add_argument("--out", type=Path, help=".html or .png, or a folder for several frames; a window without it")
    parser.add_argument(
        "--style", choices=["map", "view", "page"], help="from above, Open3D, or HTML (default: by suffix)"
    )
    parser.add_argument("--labels", type=Path, help="a KITTI label file, or a folder of them")
    parser.add_argument("--results", type=Path, help="a KITTI result file, or a folder of them")
    parser.add_argument("--calib", type=Path, help="a KITTI calibration file, or a folder of them")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score shown (default 0.3)")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def main() -> int:
    options = parse()
    from pcdet_ext.visualization.command import visualize

    try:
        visualize(**vars(options))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"visualize: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
