"""Rectangles in the plane, compiled with numba the first time and kept on disk."""

from __future__ import annotations

import numpy as np
from numba import njit

from pcdet_ext.structures import Array


@njit(cache=True)
def corners(x: float, y: float, length: float, width: float, yaw: float) -> Array:
    """Corners float64 [4, 2] of a rectangle, counter-clockwise, the front left one first.

    Args:
        x, y: its centre in metres.
        length: along its heading.
        width: across.
        yaw: its heading, counter-clockwise from +x in radians.
    """
    cos, sin = np.cos(yaw), np.sin(yaw)
    found = np.empty((4, 2))
    for i in range(4):
        along = length / 2 if i in (0, 3) else -length / 2
        across = width / 2 if i < 2 else -width / 2
        found[i, 0] = x + along * cos - across * sin
        found[i, 1] = y + along * sin + across * cos
    return found
