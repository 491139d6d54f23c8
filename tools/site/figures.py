#!/usr/bin/env python3
"""Draw the figures of docs/idea.md: orders, partitions and mixers on the voxels of a simulated or a given cloud.

python tools/site/figures.py --out docs/figures
python tools/site/figures.py --cloud 000008.bin --out my_figures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pcdet_ext.data.points import read_points
from pcdet_ext.data.simulation import SpinningLidar, simulate_frame
from pcdet_ext.grouping import orders, partitions
from pcdet_ext.mixers import MIXERS
from pcdet_ext.structures import Groups, Segments, SparseVoxels
from pcdet_ext.visualization.sequences import draw_influence, draw_orders, draw_plans, pillars_of

AREA = (0.0, -16.0, 32.0, 16.0)  # metres before and beside the vehicle
SIZE = 0.5  # metres, of a pillar
WINDOW = (1, 16, 16)
CHANNELS = 32

ORDERS: dict[str, orders.Order] = {
    "Window, 16 × 16 cells": orders.Window(WINDOW),
    "WindowX, lines to and fro": orders.WindowX(WINDOW, path="snake"),
    "WindowY, lines to and fro": orders.WindowY(WINDOW, path="snake"),
    "ZOrder": orders.ZOrder(),
    "Hilbert": orders.Hilbert(),
    "LSH, three projections": orders.LSH(width=12.0),
}


def plans(voxels: SparseVoxels) -> dict[str, Groups | Segments]:
    """What the partitions make of the voxels, by titles."""
    snake = orders.WindowX(WINDOW, path="snake")
    return {
        "EqualGroups of 48 along WindowX": partitions.EqualGroups(48)(voxels, snake),
        "EqualGroups of 48 along Hilbert": partitions.EqualGroups(48)(voxels, orders.Hilbert()),
        "RotatedSets of 24 in windows": partitions.RotatedSets(24)(voxels, orders.WindowX(WINDOW)),
        "OctreeWindows of 24, every second": partitions.OctreeWindows(24, dilation=2)(voxels, orders.ZOrder()),
        "LSHWindows, sets of 24": partitions.LSHWindows(24, width=12.0)(voxels, orders.Hilbert()),
        "Windows, of any length": partitions.Windows()(voxels, orders.Window(WINDOW)),
    }


def layers(voxels: SparseVoxels) -> dict[str, Callable[[Tensor], Tensor]]:
    """Untrained mixers on groups of the voxels, by titles."""
    hilbert = partitions.EqualGroups(256)(voxels, orders.Hilbert())
    windows = partitions.RotatedSets(24)(voxels, orders.WindowX(WINDOW))

    def mixed(name: str, plan: Groups | Segments) -> Callable[[Tensor], Tensor]:
        torch.manual_seed(0)
        mixer = MIXERS.build({"name": name}, channels=CHANNELS)
        return lambda x: mixer(x, plan)

    return {
        "SoftmaxAttention in RotatedSets of 24": mixed("SoftmaxAttention", windows),
        "SoftmaxAttention, Hilbert, groups of 256": mixed("SoftmaxAttention", hilbert),
        "Mamba, Hilbert, groups of 256": mixed("Mamba", hilbert),
    }


def main() -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--cloud", type=Path, help="a point file (default: a simulated street)")
    options = parser.parse_args()
    points = simulate_frame(0, 7, SpinningLidar())[1].points if options.cloud is None else read_points(options.cloud)
    voxels = pillars_of(points, AREA, SIZE)
    options.out.mkdir(parents=True, exist_ok=True)
    draw_orders(voxels, ORDERS, options.out / "orders.png")
    draw_plans(voxels, plans(voxels), options.out / "partitions.png")
    cells = voxels.coords[:, 2:].float()
    middle = int((cells - torch.tensor([37.0, 28.0])).norm(dim=1).argmin())
    draw_influence(voxels, layers(voxels), middle, options.out / "mixers.png", CHANNELS)


if __name__ == "__main__":
    main()
