"""What every tracker does, and how boxes come into the frame that stands still."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from pcdet_ext.config import Registry
from pcdet_ext.data.geometry import wrap_angle
from pcdet_ext.rigid import check_rigid
from pcdet_ext.structures import Array, Detections

TRACKERS = Registry("tracker")


@runtime_checkable
class Tracker(Protocol):
    """Associates the detections of one frame after the other with tracks.

    The frames of a sequence come in their order; `reset` is called before the first frame of the next sequence. A frame
    that is missing makes the time between two frames longer, and one that comes late makes it negative: places are then
    predicted backwards.
    """

    def reset(self) -> None:
        """Forget all tracks: the next frame is the first one of a sequence, and numbers start anew."""

    def update(
        self, detections: Detections, pose: Array | None, timestamp: float, points: Array | Tensor | None = None
    ) -> Detections:
        """Take a frame.

        Args:
            detections: of the frame, boxes [M, 7] or with velocities [M, 9]. Those whose place, size, heading or score
                is not finite are left out; a velocity that is not finite is not known.
            pose: float64 [4, 4], from the frame of the boxes to one that stands still; None where they are in such.
            timestamp: of the frame, seconds.
            points: of the frame, [P, 3 or more], in the frame of the detections; only some trackers look at them.

        Returns:
            The boxes of the tracks that are there in this frame, in the frame of the detections, with track_ids.

        Raises:
            ValueError: boxes have another shape, a label is none of the classes, the pose is not a rotation and a
                translation, or the time is not finite.
        """


@dataclass(frozen=True, eq=False)
class StillBoxes:
    """Boxes in a frame that stands still.

    box: float64 [N, 7], x, y, z, dx, dy, dz, heading; velocity: float64 [N, 2], metres per second, NaN where unknown;
    label: int64 [N]; score: float64 [N].
    """

    box: Array
    velocity: Array
    label: Array
    score: Array

    def __len__(self) -> int:
        return len(self.box)

    def select(self, keep: Array) -> StillBoxes:
        """The boxes that `keep` (bool [N] or int64 [K]) picks."""
        return StillBoxes(self.box[keep], self.velocity[keep], self.label[keep], self.score[keep])

    @staticmethod
    def of(detections: Detections, pose: Array | None) -> StillBoxes:
        """Detections that are finite, moved by a pose.

        Raises ValueError for a matrix that is no pose, and as `check_detections`.
        """
        found = detections.numpy()
        check_detections(found)
        boxes = np.asarray(found.boxes, np.float64)
        velocity = boxes[:, 7:9] if boxes.shape[1] == 9 else np.full((len(boxes), 2), np.nan)
        velocity = np.where(np.isfinite(velocity), velocity, np.nan)
        still = StillBoxes(boxes[:, :7], velocity, np.asarray(found.labels), np.asarray(found.scores, np.float64))
        still = still.select(np.isfinite(still.box).all(1) & np.isfinite(still.score))
        return still if pose is None else still.moved(check_rigid(pose))

    def moved(self, pose: Array) -> StillBoxes:
        """Boxes under a pose: headings turned by its yaw and put into [-π, π), velocities turned by its rotation."""
        turn = pose[:3, :3]
        box = self.box.copy()
        box[:, :3] = self.box[:, :3] @ turn.T + pose[:3, 3]
        box[:, 6] = wrap_angle(self.box[:, 6] + np.arctan2(turn[1, 0], turn[0, 0]))
        return replace(self, box=box, velocity=self.velocity @ turn[:2, :2].T)


@dataclass(frozen=True, eq=False)
class TrackedBoxes:
    """The boxes of tracks in one frame, which stand still.

    number: int64 [K], of each box's track; row: int64 [K], the detection that it was found as, -1 for none; boxes:
    where it is, its velocity, label and score.
    """

    number: Array
    row: Array
    boxes: StillBoxes


class BoxTracker(ABC):
    """A tracker that works on boxes which stand still."""

    @abstractmethod
    def reset(self) -> None:
        """See `Tracker.reset`."""

    @abstractmethod
    def associate(self, boxes: StillBoxes, class_names: Sequence[str], timestamp: float) -> TrackedBoxes:
        """As `update`, for boxes that stand still.

        Args:
            boxes: detections of the frame.
            class_names: what their labels mean.
            timestamp: of the frame, seconds.
        """

    def update(
        self, detections: Detections, pose: Array | None, timestamp: float, points: Array | Tensor | None = None
    ) -> Detections:
        """Take a frame. Arguments as in `Tracker.update`; points are not looked at.

        Boxes of 9 numbers have the velocity of the track.
        """
        found = self.associate(StillBoxes.of(detections, pose), detections.class_names, timestamp)
        boxes = found.boxes if pose is None else found.boxes.moved(np.linalg.inv(check_rigid(pose)))
        width = detections.boxes.shape[1]
        columns = np.concatenate([boxes.box, boxes.velocity], axis=1)[:, :width]
        return replace(
            detections.numpy(),
            boxes=columns.astype(np.float32),
            scores=boxes.score.astype(np.float32),
            labels=boxes.label,
            track_ids=found.number,
        )


def check_detections(found: Detections) -> None:
    """Check NumPy detections that are to be tracked.

    Raises:
        ValueError: boxes are not [M, 7] or [M, 9], or a label is none of the classes.
    """
    boxes, labels = np.asarray(found.boxes), np.asarray(found.labels)
    if boxes.ndim != 2 or boxes.shape[1] not in (7, 9):
        raise ValueError(f"boxes must be [M, 7] or [M, 9], got {list(boxes.shape)}")
    if labels.dtype.kind not in "iu" and labels.size:
        raise ValueError(f"labels must be whole numbers, positions in class_names, got {labels.dtype}: {labels[:3]}")
    known = (labels >= 0) & (labels < len(found.class_names))
    if not known.all():
        wrong = labels[np.argmin(known)]
        raise ValueError(f"labels must be positions in the {len(found.class_names)} class_names, got {wrong}")
