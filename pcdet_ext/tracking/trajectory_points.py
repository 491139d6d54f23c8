"""The points around a box, a fixed number of them for each."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.structures import Array
from pcdet_ext.tracking.trajectory_geometry import around_box

REACH = 1.2  # of half the diagonal of a box from above, within which points are looked at
LATEST = 1.0  # seconds before the frame; older points are left out
PLACE, REST = slice(0, 3), slice(3, 6)  # x, y, z; intensity, elongation, seconds before the frame
FEATURES = 30  # of a point, see `point_features`


def sampled_points(points: Tensor, boxes: Tensor, count: int) -> Tensor:
    """Points around each box, from above, whatever their height.

    Of more points than wanted, those that the published seed picks are taken, the same for every number of points;
    fewer are filled up with copies of the first one; where there is none, points at the centre with features of zero.

    Args:
        points: float32 [P, 6], x, y, z, intensity, elongation, seconds before the frame.
        boxes: float32 [M, 7 or more].
        count: how many points are wanted for each box.

    Returns:
        [M, count, 6].
    """
    if not len(points):
        return _at_centres(boxes, count)
    recent = points[points[:, 5] < LATEST]
    order = recent[:, 0].argsort(stable=True)
    along = recent[order, 0].contiguous()
    radius = boxes[:, 3:5].norm(dim=1) / 2 * REACH
    low, high = (
        torch.searchsorted(along, boxes[:, 0] - radius - 0.01),
        torch.searchsorted(along, boxes[:, 0] + radius + 0.01),
    )
    found = _at_centres(boxes, count)
    for i, (first, last) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        nearby = recent[order[first:last].sort().values]
        own = nearby[(nearby[:, :2] - boxes[i, :2]).norm(dim=1) <= radius[i]]
        if len(own):
            found[i] = own[torch.from_numpy(_picked(len(own), count)).to(own.device)]
    return found


def _at_centres(boxes: Tensor, count: int) -> Tensor:
    found = boxes.new_zeros(len(boxes), count, 6)
    found[..., PLACE] = boxes[:, None, :3]
    return found


@lru_cache(maxsize=4096)
def _picked(there: int, count: int) -> Array:
    """Which of the points are taken, int64 [count]."""
    if there > count:
        return np.random.RandomState(0).permutation(there)[:count]  # numpy's old generator, as published
    return np.where(np.arange(count) < there, np.arange(count), 0)


def point_features(points: Tensor, boxes: Tensor) -> Tensor:
    """Features [M, K, 30] of points [M, K, 6]: places relative to the corners and centre of their box [M, 7 or more],
    then intensity, elongation and time."""
    return torch.cat([around_box(points[..., PLACE], boxes), points[..., REST]], -1)
