"""Show what is in a frame and what a detector finds in it.

pcdet visualize best.ckpt FRAME.bin --out scene.html            detections, and the ground truth that lies beside
pcdet visualize velodyne/000008.bin --results DIR --out a.png   result files of any code base
pcdet visualize label_2/000008.txt --out a.png                  labels alone
pcdet visualize … --out view.png --style view                   an Open3D picture without a screen
pcdet visualize …                                               an Open3D window
"""

from __future__ import annotations

import argparse

from pcdet_ext.cli.arguments import add_device, add_imports, path
from pcdet_ext.cli.errors import FailureError, wrong_use


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=path, help="[CHECKPOINT.ckpt] and point files, or label files (.txt)")
    parser.add_argument("--out", type=path, help=".html or .png, or a folder for several frames; a window without it")
    parser.add_argument(
        "--style", choices=["map", "view", "page"], help="from above, Open3D, or HTML (default: by suffix)"
    )
    parser.add_argument("--labels", type=path, help="a KITTI label file, or a folder of them")
    parser.add_argument("--results", type=path, help="a KITTI result file, or a folder of them")
    parser.add_argument("--calib", type=path, help="a KITTI calibration file, or a folder of them")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score shown (default 0.3)")
    add_device(parser)
    add_imports(parser)


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.files import DataError
    from pcdet_ext.visualization.command import visualize

    try:
        with wrong_use():
            visualize(**vars(options))
    except DataError:
        raise
    except RuntimeError as error:  # Open3D without a screen
        raise FailureError(str(error)) from error
    return 0
