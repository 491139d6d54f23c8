"""What published pipelines for Waymo data compute beyond what the library needs: the cases compare it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pcdet_ext.data.waymo.parquet import Segment
from pcdet_ext.data.waymo.row_files import Kind, read_columns
from pcdet_ext.data.waymo.sequences import SECONDS_PER_FRAME, moved
from pcdet_ext.structures import Array


def moved_as_published(points: Array, pose: Array, to_pose: Array) -> Array:
    """As `moved`, with the arithmetic of OpenPCDet: by way of the world and with an inverse in float32.

    It is off by up to half a millimetre where the vehicle is 9 km from the origin of the world, and more beyond.
    Arguments as in `moved`.
    """
    pose, to_pose = (np.asarray(matrix, np.float32) for matrix in (pose, to_pose))
    world = np.pad(points[:, :3].astype(np.float64), ((0, 0), (0, 1)), constant_values=1.0) @ pose.T
    world[:, 3] = 1.0
    xyz = (world @ np.linalg.inv(to_pose.T))[:, :3]
    return np.concatenate([xyz.astype(points.dtype), points[:, 3:]], axis=1)


def label_columns(segment: Segment, time: int, columns: Sequence[str]) -> list[Array]:
    """Further columns of lidar_box for the objects that `Segment.labels` gives of a frame.

    Args:
        segment: of the frame.
        time: of the frame, microseconds.
        columns: names without their prefix; all hold numbers.
    """
    kinds: dict[str, Kind] = {f"[LiDARBoxComponent].{name}": "numbers" for name in columns}
    table = read_columns(segment.path("lidar_box"), kinds)
    rows = segment.rows_of_objects(time)
    return [table[name].to_numpy(zero_copy_only=False)[rows] for name in kinds]


class PredictedFrame(NamedTuple):
    """What a detector predicted in a frame, which two-stage models over time start from.

    boxes [R, 9] with velocity, scores [R], labels [R] from 1 on; pose [4, 4] of the frame.
    """

    boxes: Array
    scores: Array
    labels: Array
    pose: Array


def roi_table(frames: Sequence[PredictedFrame]) -> tuple[Array, Array, Array]:
    """Predictions of a frame and of earlier ones, in the coordinates of the first.

    Args:
        frames: the frame itself first, then earlier ones, nearest first.

    Returns:
        Boxes float32 [n, R, 9], where columns 7 and 8 are the motion to the frame before, in metres, scores and labels
        [n, R]; padded with zeros to the largest number of boxes, 1 at least.

    Raises:
        ValueError: for boxes without velocity.
    """
    most = max(1, *(len(frame.boxes) for frame in frames))
    boxes, scores, labels = (np.zeros((len(frames), most, *shape), np.float32) for shape in ((9,), (), ()))
    for i, frame in enumerate(frames):
        if frame.boxes.shape[1:] != (9,):
            raise ValueError(f"predicted boxes must be [R, 9], with velocity, got {list(frame.boxes.shape)}")
        count = len(frame.boxes)
        boxes[i, :count] = in_pose(frame.boxes, frame.pose, frames[0].pose) if i else frame.boxes
        boxes[i, :count, 7:] *= -SECONDS_PER_FRAME
        scores[i, :count], labels[i, :count] = frame.scores, frame.labels
    return boxes, scores, labels


def in_pose(boxes: Array, pose: Array, to_pose: Array) -> Array:
    """Boxes of a frame with one pose in the frame of another; headings are turned by the yaw and not wrapped.

    Args:
        boxes: [R, 9].
        pose: [4, 4], from their frame to the world.
        to_pose: [4, 4], from the other frame to the world.
    """
    pose, to_pose = (np.asarray(matrix, np.float64) for matrix in (pose, to_pose))
    turn = np.linalg.inv(to_pose[:3, :3]) @ pose[:3, :3]
    found = boxes.astype(np.float64)
    found[:, :3] = moved(found[:, :3], pose, to_pose)
    found[:, 6] += np.arctan2(pose[1, 0], pose[0, 0]) - np.arctan2(to_pose[1, 0], to_pose[0, 0])
    found[:, 7:] = found[:, 7:] @ turn[:2, :2].T
    return found
