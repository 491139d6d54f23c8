"""Which points stand above the ground, in clouds of a sensor that stood upright."""

from __future__ import annotations

import numpy as np

from pcdet_ext.registration.checks import check_cloud
from pcdet_ext.structures import Array

GROUND = 0.4  # metres above the lowest points around up to which a point is on the ground
CELL = 1.0  # metres in x and y
REACH = 2  # cells to each side over which the lowest point is taken to be the ground


def above_ground(points: Array, cloud: Array, height: float) -> Array:
    """Whether points are more than some metres higher than the lowest point of the cloud around them.

    The lowest point is that of 5 x 5 cells of 1 m: the cell in x and y that the point is in and two to each side, so
    that the window ends between 2 and 3 m away. Only occupied cells are kept, whatever the extent of the cloud.

    Args:
        points: [M, 3+], which lie within the extent of the cloud; what lies outside is taken to be at its border.
        cloud: [N, 3+], N > 0 unless M is 0.
        height: metres.

    Returns:
        bool [M], False where the window holds no point of the cloud.

    Raises:
        TypeError: for what is no array of real numbers.
        ValueError: for other shapes, and points that are not finite or farther away than a map reaches.
    """
    check_cloud(points, "points")
    check_cloud(cloud, "cloud")
    if not len(points):
        return np.zeros(0, bool)
    if not len(cloud):
        raise ValueError(f"cloud has no points, so that the ground under {len(points)} points is not known")
    first = np.floor(cloud[:, :2].min(0) / CELL)
    cells = _cells(cloud, first)
    last = cells.max(0)
    stride = int(last[1]) + 1 + 2 * REACH  # so that windows over the border of one row do not reach into the next one
    occupied, cell = np.unique(cells[:, 0] * stride + cells[:, 1], return_inverse=True)
    lowest = np.full(len(occupied), np.inf)
    np.minimum.at(lowest, cell, cloud[:, 2])
    wanted = _cells(points, first).clip(0, last)
    asked, row = np.unique(wanted[:, 0] * stride + wanted[:, 1], return_inverse=True)
    higher: Array = points[:, 2] - _lowest_around(asked, occupied, lowest, stride)[row] > height
    return higher


def _cells(points: Array, first: Array) -> Array:
    """Cells int64 [N, 2] in x and y, counted from the first one."""
    return (np.floor(points[:, :2] / CELL) - first).astype(np.int64)


def _lowest_around(asked: Array, occupied: Array, lowest: Array, stride: int) -> Array:
    """The lowest z in the windows around cells [K], infinite where none is occupied.

    Args:
        asked: numbers of cells, x * stride + y.
        occupied: those of the cells [U] that hold points, ascending.
        lowest: the lowest z in each of these.
        stride: cells from one x to the next one.
    """
    found = np.full(len(asked), np.inf)
    side = range(-REACH, REACH + 1)
    for shift in (x * stride + y for x in side for y in side):
        at = np.searchsorted(occupied, asked + shift).clip(max=len(occupied) - 1)
        hit = occupied[at] == asked + shift
        found[hit] = np.minimum(found[hit], lowest[at[hit]])
    return found
