"""Detections in nuScenes' own format: boxes in the world, with attributes, as its server and devkit take them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.data.nuscenes.frames import local_boxes
from pcdet_ext.data.nuscenes.poses import Pose, product
from pcdet_ext.evaluation.nuscenes import Boxes
from pcdet_ext.evaluation.nuscenes_files import MAX_BOXES
from pcdet_ext.files import DataError, atomic_write
from pcdet_ext.structures import Array, Detections

META = {"use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
MOVING = 0.2  # m/s, above which an object moves
MOVING_ATTRIBUTE = {
    **dict.fromkeys(("car", "construction_vehicle", "bus", "truck", "trailer"), "vehicle.moving"),
    **dict.fromkeys(("bicycle", "motorcycle"), "cycle.with_rider"),
    "pedestrian": "pedestrian.moving",
}
RESTING_ATTRIBUTE = {
    **dict.fromkeys(("car", "construction_vehicle", "truck", "trailer"), "vehicle.parked"),
    **dict.fromkeys(("bicycle", "motorcycle"), "cycle.without_rider"),
    "bus": "vehicle.stopped",
    "pedestrian": "pedestrian.standing",
}
# Barriers and cones have no attribute; published tools write this one, and the metric does not look at it.
OTHER_ATTRIBUTE = "cycle.with_rider"


@dataclass(frozen=True, eq=False)
class Rows:
    """Detections of one sample in the world, float64.

    translation: [N, 3]; size: [N, 3] width, length, height; rotation: [N, 4] quaternion; velocity: [N, 2]; score: [N];
    name, attribute: one text each.
    """

    translation: Array
    size: Array
    rotation: Array
    velocity: Array
    score: Array
    name: tuple[str, ...]
    attribute: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.score)

    def is_finite(self) -> bool:
        """Whether all numbers are, but for velocities that are not known (NaN)."""
        known = np.where(np.isnan(self.velocity), 0.0, self.velocity)
        return all(bool(np.isfinite(v).all()) for v in (self.translation, self.size, self.rotation, known, self.score))

    def to_json(self, token: str) -> list[dict[str, Any]]:
        """The entries of a submission."""
        numbers = (self.translation, self.size, self.rotation, self.velocity, self.score)
        columns = [*(values.tolist() for values in numbers), self.name, self.attribute]
        keys = ("translation", "size", "rotation", "velocity", "detection_score", "detection_name", "attribute_name")
        return [
            {"sample_token": token, **dict(zip(keys, values, strict=True))} for values in zip(*columns, strict=True)
        ]


def world_rows(found: Detections, sensor: Pose, ego: Pose) -> Rows:
    """Detections of a frame as rows of a submission.

    Args:
        found: NumPy arrays, in the frame of the lidar.
        sensor: place of the lidar on the vehicle.
        ego: place of the vehicle in the world.
    """
    boxes = np.asarray(found.boxes, np.float64)
    heading = boxes[:, 6] / 2
    upright = np.column_stack([np.cos(heading), np.zeros((len(boxes), 2)), np.sin(heading)])
    velocity = np.zeros((len(boxes), 3))
    if boxes.shape[1] == 9:
        velocity[:, :2] = boxes[:, 7:]
    velocity = (velocity @ sensor.turn.T) @ ego.turn.T
    names = tuple(found.names)
    return Rows(
        translation=(boxes[:, :3] @ sensor.turn.T + sensor.translation) @ ego.turn.T + ego.translation,
        size=boxes[:, [4, 3, 5]],
        rotation=product(ego.rotation, product(sensor.rotation, upright)),
        velocity=velocity[:, :2],
        score=np.asarray(found.scores, np.float64),
        name=names,
        attribute=tuple(map(attribute, names, np.hypot(velocity[:, 0], velocity[:, 1]).tolist())),
    )


def attribute(name: str, speed: float) -> str:
    """The attribute of an object of a class at a speed in m/s; one that is not known (NaN) counts as rest."""
    chosen = MOVING_ATTRIBUTE if speed > MOVING else RESTING_ATTRIBUTE
    return chosen.get(name, OTHER_ATTRIBUTE)


def best(found: Detections) -> Detections:
    """The 500 detections with the highest scores, in their order: a submission may not have more of a sample."""
    if len(found) <= MAX_BOXES:
        return found
    order = np.argsort(-np.asarray(found.scores), kind="stable")[:MAX_BOXES]
    return found.select(np.sort(order))


def submission(samples: Mapping[str, Rows], tokens: Iterable[str]) -> dict[str, Any]:
    """A submission's content: the rows by sample token; samples among `tokens` without rows have no detection."""
    results = {token: samples[token].to_json(token) if token in samples else [] for token in tokens}
    return {"meta": META, "results": results}


def write_submission(path: Path, samples: Mapping[str, Rows], tokens: Iterable[str]) -> None:
    """Write a submission; see `submission`.

    Args:
        path: the JSON file.
        samples: rows by the token of their sample.
        tokens: all samples of the split; those without rows have an empty list.

    Raises:
        DataError: a number is not finite, except a velocity that is not known, which the official tools read as NaN;
            nothing is written.
    """
    wrong = [token for token, rows in samples.items() if not rows.is_finite()]
    if wrong:
        raise DataError(f"{path}: not written: sample {wrong[0]} has numbers that are not finite")
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(submission(samples, tokens)), encoding="utf-8")


def boxes_of(samples: Sequence[Rows]) -> Boxes:
    """Rows of many samples as what the metric takes; their places in the sequence number the samples."""
    counts = [len(rows) for rows in samples]

    def column(name: str, width: int) -> Array:
        shape = (0, width) if width else (0,)
        return np.concatenate([np.zeros(shape), *(getattr(rows, name) for rows in samples)])

    return Boxes(
        sample=np.repeat(np.arange(len(samples)), counts),
        name=np.array([name for rows in samples for name in rows.name], np.str_),
        attribute=np.array([name for rows in samples for name in rows.attribute], np.str_),
        translation=column("translation", 3),
        size=column("size", 3),
        rotation=column("rotation", 4),
        velocity=column("velocity", 2),
        score=column("score", 0),
        num_points=np.full(sum(counts), -1),
    )


def local_detections(boxes: Boxes, classes: Sequence[str], pose: Array, frame_id: str) -> Detections:
    """Boxes of one sample, in the world, as detections in the frame of its lidar.

    Args:
        boxes: in the world.
        classes: come first among the class names; further ones follow.
        pose: float64 [4, 4], lidar to world.
        frame_id: of the sample.

    Returns:
        NumPy arrays, boxes float32 [N, 9].
    """
    names = (*classes, *sorted(set(boxes.name.tolist()) - set(classes)))
    number = {name: i for i, name in enumerate(names)}
    velocity = np.column_stack([boxes.velocity, np.zeros(len(boxes))]) @ pose[:3, :3]
    local = local_boxes(boxes.translation, boxes.size, boxes.rotation, pose)
    return Detections(
        np.column_stack([local, velocity[:, :2]]).astype(np.float32),
        boxes.score.astype(np.float32),
        np.array([number[name] for name in boxes.name.tolist()], np.int64),
        names,
        frame_id,
    )
