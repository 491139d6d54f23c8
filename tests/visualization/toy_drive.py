"""A drive of six frames as a data set of no known format: sweeps with ages, poses, tracks, results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import ConfigError
from pcdet_ext.data.base import DATASETS
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.structures import Detections, Sample

FEATURES = ("x", "y", "z", "intensity", "timestamp")
FRAMES = 6
SEQUENCE_LENGTH = 4  # frames of the first sequence; the others are of the second one
SPEED = 5.0  # metres per frame that the sensor drives along the world's x, turning by a tenth of a radian per frame
SWEEPS = 3
CLASSES = ("Car", "Bike")


def pose(number: int) -> np.ndarray:
    """Sensor to world."""
    cos, sin = np.cos(0.1 * number), np.sin(0.1 * number)
    return np.array([[cos, -sin, 0, SPEED * number], [sin, cos, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]])


def car_in_world(number: int) -> np.ndarray:
    """Where the car (track 7) is; the bike (track 9) stands still and is not in every frame."""
    return np.array([10.0 + 8 * number, 4.0, 1.0])


BIKE_IN_WORLD = np.array([20.0, -6.0, 1.0])


def boxes(number: int) -> np.ndarray:
    """Boxes [M, 9] in the LiDAR frame; the bike is missing in frame 2, and its velocity is not known."""
    world = [car_in_world(number), BIKE_IN_WORLD][: 1 if number == 2 else 2]
    local = (np.stack(world) - pose(number)[:3, 3]) @ pose(number)[:3, :3]
    velocity = np.array([[8.0, 0.0], [np.nan, np.nan]])[: len(world)]
    size = np.array([[4.0, 2.0, 1.5, 0.3], [1.8, 0.6, 1.7, 1.0]])[: len(world)]
    return np.column_stack([local, size, velocity]).astype(np.float32)


def info(number: int) -> FrameInfo:
    rows = boxes(number)
    return FrameInfo(
        frame_id=f"{'ab'[number >= SEQUENCE_LENGTH]}{number:03d}c",
        num_points=60,
        dropped=0,
        sequence_id="first" if number < SEQUENCE_LENGTH else "second",
        boxes=rows,
        names=["Car", "Bike"][: len(rows)],
        difficulty=np.zeros(len(rows), np.int64),
        points_in_box=np.full(len(rows), 5),
        track_ids=np.array([7, 9])[: len(rows)],
        timestamp=number / 10,
        pose=pose(number),
    )


@DATASETS.register
class ToyDrive:
    """The frames; `results` are JSON: {frame id: [[track id, score, nine numbers], …]}."""

    def __init__(self, classes: Sequence[str] = CLASSES, split: str = "val", training: bool = False, seed: int = 0):
        if split != "val":
            raise ConfigError(f"there is no split {split!r}")
        self.classes, self.point_features, self.notes = tuple(classes), FEATURES, ()
        self.frames = [info(number) for number in range(FRAMES)]

    def __len__(self) -> int:
        return FRAMES

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        points = np.zeros((60, 5), np.float32)
        points[:, :2], points[:, 2] = rng.uniform(-30, 30, (60, 2)), rng.normal(-1, 0.3, 60)
        points[:, 4] = np.repeat(np.arange(SWEEPS), 20) * 0.05
        frame = self.frames[index]
        return Sample(points, FEATURES, frame.frame_id, frame.targets(), frame.sequence_id, pose=np.array(frame.pose))

    def set_epoch(self, epoch: int) -> None:
        pass

    def evaluator(self, options: Mapping[str, Any] | None = None) -> Any:
        raise ConfigError("none")

    def read_results(self, path: str | Path) -> dict[str, Detections]:
        found = {}
        for frame_id, rows in json.loads(Path(path).read_text()).items():
            table = np.array(rows, np.float32).reshape(-1, 11)
            labels, tracks = np.zeros(len(table), np.int64), table[:, 0].astype(np.int64)
            found[frame_id] = Detections(table[:, 2:], table[:, 1], labels, self.classes, frame_id, tracks)
        return found
