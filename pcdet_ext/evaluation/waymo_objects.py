"""What the Waymo metrics compare, and by which settings: boxes of many frames, types, cutoffs of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pcdet_ext.structures import Array

TYPES = ("UNKNOWN", "VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")
EVALUATED_TYPES = (1, 2, 3, 4)
Breakdown = Literal["OBJECT_TYPE", "RANGE", "VELOCITY", "SIZE", "ONE_SHARD", "ALL_BUT_SIGN"]


def benchmark_cutoffs() -> Array:
    """The 101 scores from which predictions count: 0, 0.01, …, 0.99 and 1, float32."""
    return np.append(np.arange(100) * 0.01, 1.0).astype(np.float32)


@dataclass(frozen=True)
class Config:
    """What is measured; the defaults are those of the benchmark.

    Args:
        breakdowns: what the results are divided by.
        levels: difficulties of ground truth up to which misses count.
        matcher: "hungarian" finds the matches of the largest total overlap, "score_first" goes by falling score.
        iou_thresholds: overlap from which a prediction matches, by type, from type 0 on.
        score_cutoffs: float32 scores, or None for those of the benchmark; empty: estimated from the predictions.
        num_cutoffs: how many are estimated.
        recall_step: widest gap in recall that is integrated over without a point between.
        min_precision: precision below which it counts as 0.
        min_heading_accuracy: pairs whose heading agrees less, from 0 (opposite) to 1, are left out of all counts.
    """

    breakdowns: tuple[Breakdown, ...] = ("OBJECT_TYPE", "RANGE")
    levels: tuple[int, ...] = (1, 2)
    matcher: Literal["hungarian", "score_first"] = "hungarian"
    iou_thresholds: tuple[float, ...] = (0.0, 0.7, 0.5, 0.5, 0.5)
    score_cutoffs: Array | None = None
    num_cutoffs: int = 0
    recall_step: float = 0.05
    min_precision: float = 0.0
    min_heading_accuracy: float = -1.0


@dataclass(frozen=True, eq=False)
class Objects:
    """Boxes of many frames, in the frame of the vehicle.

    frame: int64 [N], any number that is the same for boxes of one frame; type: int64 [N], a position in `TYPES`; boxes:
    float32 [N, 7] as (x, y, z, length, width, height, heading). Of predictions: score float32 [N], in_no_label_zone
    bool [N]. Of ground truth: difficulty int64 [N] (1 or 2), speed float32 [N, 2] in metres per second.
    """

    frame: Array
    type: Array
    boxes: Array
    score: Array
    in_no_label_zone: Array
    difficulty: Array
    speed: Array

    def __len__(self) -> int:
        return len(self.frame)

    def select(self, keep: Array) -> Objects:
        """The boxes that `keep` (bool [N] or int64 [K]) picks."""
        return Objects(**{name: column[keep] for name, column in vars(self).items()})

    @staticmethod
    def predictions(frame: Array, type: Array, boxes: Array, score: Array, zones: Array | None = None) -> Objects:  # noqa: A002
        """Detected boxes.

        Args:
            frame: int64 [N], number of each box's frame.
            type: int64 [N], what it is.
            boxes: [N, 7] (x, y, z, dx, dy, dz, heading), z at the centre.
            score: float32 [N].
            zones: bool [N], whether it lies in a zone without labels; none by default.
        """
        count = len(frame)
        flags = np.zeros(count, bool) if zones is None else zones
        return Objects(frame, type, boxes, score, flags, np.zeros(count, np.int64), np.zeros((count, 2), np.float32))

    @staticmethod
    def ground_truth(
        frame: Array,
        type: Array,  # noqa: A002
        boxes: Array,
        difficulty: Array,
        speed: Array | None = None,
    ) -> Objects:
        """Labelled boxes.

        Args:
            frame: int64 [N], number of each box's frame.
            type: int64 [N], what it is.
            boxes: [N, 7] (x, y, z, dx, dy, dz, heading), z at the centre.
            difficulty: int64 [N], the level.
            speed: float32 [N, 2] in metres per second, zero by default.
        """
        count = len(frame)
        speed = np.zeros((count, 2), np.float32) if speed is None else speed
        return Objects(frame, type, boxes, np.ones(count, np.float32), np.zeros(count, bool), difficulty, speed)
