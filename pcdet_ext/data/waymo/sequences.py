"""Several frames of a sequence as one cloud: earlier points in the frame in which the vehicle is now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pcdet_ext.data.geometry import transform
from pcdet_ext.structures import Array

SECONDS_PER_FRAME = 0.1
NEAR = 1.0  # metres; nearer in x and in y, points of earlier frames are on the vehicle itself or in its wake


class EarlierFrame(NamedTuple):
    """Points [N, F] of an earlier frame, its pose (vehicle to world, [4, 4]), and how many frames ago it was."""

    points: Array
    pose: Array
    age: int


def moved(points: Array, pose: Array, to_pose: Array) -> Array:
    """Points of a frame with one pose in the frame of another, computed in float64.

    Args:
        points: floating-point [N, 3+], x, y and z in metres first; further columns stay.
        pose: [4, 4], of the points' frame in the world.
        to_pose: [4, 4], of the other frame in the world.

    Returns:
        [N, 3+] of the same dtype.
    """
    # Solved before points come in: their differences are metres, while positions in the world may be many kilometres.
    between = np.linalg.inv(np.asarray(to_pose, np.float64)) @ np.asarray(pose, np.float64)
    return np.concatenate([transform(points, between).astype(points.dtype), points[:, 3:]], axis=1)


def join(
    points: Array,
    pose: Array,
    earlier: Sequence[EarlierFrame],
    near: float = NEAR,
    move: Callable[[Array, Array, Array], Array] = moved,
) -> tuple[Array, Array, Array]:
    """The points of a frame followed by those of earlier ones, in its coordinates.

    Args:
        points: [N, F] of the frame itself, all of which are kept.
        pose: [4, 4], vehicle to world.
        earlier: frames in the order in which they are joined.
        near: points of earlier frames with |x| and |y| below it, in the coordinates of the frame, are left out.
        move: brings points from one pose to another.

    Returns:
        The joined points [P, F], int64 [P] how many frames ago each was measured, and int64 [1 + K] the number of
        points of the frame and of each earlier one.
    """
    clouds, ages = [points], [np.zeros(len(points), np.int64)]
    for frame in earlier:
        cloud = move(frame.points, frame.pose, pose)
        cloud = cloud[(np.abs(cloud[:, :2]) >= near).any(axis=1)]
        clouds.append(cloud)
        ages.append(np.full(len(cloud), frame.age, np.int64))
    return np.concatenate(clouds), np.concatenate(ages), np.array([len(cloud) for cloud in clouds], np.int64)
