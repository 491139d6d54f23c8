"""Which points stand above the ground, in clouds of a sensor that stood upright."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import minimum_filter

from pcdet_ext.structures import Array

GROUND = 0.4  # metres above the lowest points around up to which a point is on the ground
CELL = 1.0  # metres in x and y
AROUND = 5  # cells in x and y over which the lowest point is taken to be the ground


def above_ground(points: Array, cloud: Array, height: float) -> Array:
    """Whether points are at least some metres higher than the lowest point of the cloud in the five metres around.

    Args:
        points: [M, 3+], which lie within the cloud.
        cloud: [N, 3+], N > 0 unless M is 0.
        height: metres.

    Returns:
        bool [M].
    """
    if not len(points):
        return np.zeros(0, bool)
    low = np.floor(cloud[:, :2].min(0) / CELL)
    y, x = (np.floor(cloud[:, :2] / CELL) - low).astype(np.int64).T
    lowest = np.full((int(y.max()) + 1, int(x.max()) + 1), np.inf)
    np.minimum.at(lowest, (y, x), cloud[:, 2])
    lowest = minimum_filter(lowest, AROUND, mode="constant", cval=np.inf)
    rows = (np.floor(points[:, :2] / CELL) - low).astype(np.int64).clip(0, np.array(lowest.shape) - 1)
    higher: Array = points[:, 2] - lowest[rows[:, 0], rows[:, 1]] > height
    return higher
