"""Drives as TrajectoryFormer sees them: detections of each frame, poses, annotated objects, and points on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.structures import Array
from pcdet_ext.tracking.trajectory_data import DetectionBlocks
from pcdet_ext.tracking.trajectory_geometry import PERIOD, to_global, to_vehicle

MOST_DETECTIONS = 128  # of a frame, those with the highest scores


@dataclass(frozen=True, eq=False)
class DriveFrame:
    """One frame, in the axes of its vehicle.

    boxes: float32 [M, 7]; velocity: float32 [M, 2]; score: float32 [M]; label: int64 [M], of the detections; pose:
    float64 [4, 4], of the vehicle; annotations: float32 [G, 7]; objects: int64 [G], the same for one object in all
    frames; points: gives float32 [P, 6], see `trajectory_points.sampled_points`.
    """

    boxes: Tensor
    velocity: Tensor
    score: Tensor
    label: Tensor
    pose: Tensor
    annotations: Tensor
    objects: Array
    points: Callable[[], Tensor]


def blocks_at(drive: Sequence[DriveFrame], place: int, length: int) -> DetectionBlocks:
    """Detections of the last frames, in the axes of the vehicle at one of them.

    Args:
        drive: frames in their order.
        place: of the frame, from 0.
        length: blocks besides that of the frame itself; those before the drive are empty.
    """
    now = drive[place]
    frames: list[tuple[DriveFrame | None, float]] = [(now, 0.0), (drive[max(place - 1, 0)], PERIOD if place else 0.0)]
    frames += [(drive[place - i], 0.0) if i <= place else (None, 0.0) for i in range(1, length)]
    parts = [_moved(frame, now.pose, ahead) for frame, ahead in frames]
    most = max(len(part) for part in parts)
    table = torch.stack([torch.nn.functional.pad(part, (0, 0, 0, most - len(part))) for part in parts])[None]
    return DetectionBlocks(table[..., :7], table[..., 7:9], table[..., 9], table[..., 10])


def _moved(frame: DriveFrame | None, pose: Tensor, ahead: float) -> Tensor:
    """The best detections [K, 11] (box, velocity, score, label) of a frame, so many seconds later, under a pose."""
    if frame is None:
        return torch.zeros(0, 11)
    best = frame.score.argsort(descending=True, stable=True)[:MOST_DETECTIONS]
    boxes, velocity = to_global(frame.boxes[best], frame.velocity[best], frame.pose)
    boxes = torch.cat([boxes[:, :2] + ahead * velocity, boxes[:, 2:]], 1)
    columns = (*to_vehicle(boxes, velocity, pose), frame.score[best, None], frame.label[best, None].float())
    return torch.cat(columns, 1)


def futures_at(drive: Sequence[DriveFrame], place: int, frames: int) -> Tensor:
    """Annotated boxes of a frame's objects in the next frames, in its vehicle's axes.

    Args:
        drive: frames with poses and annotated objects.
        place: which frame.
        frames: how many next ones.

    Returns:
        float32 [frames, G, 7]; a box is empty where its object is not annotated, or the drive has ended.
    """
    now = drive[place]
    found = torch.zeros(frames, len(now.annotations), 7)
    for i in range(min(frames, len(drive) - place - 1)):
        later = drive[place + 1 + i]
        _, own, other = np.intersect1d(now.objects, later.objects, return_indices=True)
        boxes = later.annotations[other]
        moved, none = to_global(boxes, torch.zeros(len(boxes), 2), later.pose)
        found[i, own] = to_vehicle(moved, none, now.pose)[0]
    return found
