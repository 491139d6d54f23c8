"""What the layouts of Waymo data have in common: names of frames, points and labels of one, and where it lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pcdet_ext.evaluation.waymo_objects import TYPES as OFFICIAL_TYPES
from pcdet_ext.files import DataError
from pcdet_ext.rigid import is_rigid
from pcdet_ext.structures import Array, Targets

# Columns of the points that both layouts have; no_label_zone is 1 inside a zone without labels, -1 outside.
STORED_FEATURES = ("x", "y", "z", "intensity", "elongation", "no_label_zone")
# Class names by the number that files have.
TYPES = ("unknown", *(name.capitalize() for name in OFFICIAL_TYPES[1:]))
DIFFICULTIES = (0, 1, 2)  # 0: not said
FARTHEST = 10_000.0  # metres: no laser sees so far, and no object is so large
MOST_TURNED = 2 * np.pi + 1e-3  # radians
LARGEST_POSITION = 1e8  # metres: the world is not larger


@dataclass(frozen=True)
class Frame:
    """One frame of a sequence.

    sequence: the recording's name in its layout; number: position of the frame in it; context, timestamp_micros: its
    name in the official tools; folder: where it lies, relative to the data folder; position: in the split.
    """

    sequence: str
    number: int
    context: str
    timestamp_micros: int
    folder: str
    position: int = 0

    @property
    def frame_id(self) -> str:
        """Unique in a data set: sequence and number."""
        return f"{self.sequence}_{self.number:03d}"

    def extra(self) -> dict[str, Any]:
        """What an index must hold to make the frame again."""
        return {key: value for key, value in asdict(self).items() if key != "position"}

    @staticmethod
    def of(extra: Mapping[str, Any]) -> Frame:
        """The frame from what `extra` gave."""
        return Frame(**{key: extra[key] for key in ("sequence", "number", "context", "timestamp_micros", "folder")})


@dataclass(frozen=True, eq=False)
class Labels:
    """The labelled objects of a frame; those of unknown type are left out.

    names: class of each; boxes: float64 [M, 9], with velocity, in the vehicle's frame; difficulty: int64 [M], 1 or 2 as
    the labellers say, 0 where they do not; num_points: int64 [M], LiDAR points inside as counted by the labellers;
    object_ids: text that is the same for one object throughout a sequence.
    """

    names: tuple[str, ...]
    boxes: Array
    difficulty: Array
    num_points: Array
    object_ids: tuple[str, ...]

    def targets(self, numbers: Mapping[str, int]) -> Targets:
        """As targets; numbers: track id of each object id."""
        return Targets.of_names(
            self.boxes.astype(np.float32),
            self.names,
            difficulty=self.difficulty,
            num_points=self.num_points,
            track_ids=np.array([numbers[name] for name in self.object_ids], np.int64),
        )


class Layout(Protocol):
    """A folder with Waymo data in one of its layouts."""

    root: Path

    def find(self, split: str, damaged: list[DataError] | None = None) -> list[Frame]:
        """The frames of a split. Raises DataError where there are none.

        damaged: takes the errors of recordings and frames that cannot be found out about; without it they are raised.
        """

    def file(self, frame: Frame) -> Path:
        """Where the points of a frame are, to be named in messages."""

    def points(self, frame: Frame) -> Array:
        """float32 [N, 6] with the columns `STORED_FEATURES`. Raises DataError naming what is missing or damaged."""

    def pose(self, frame: Frame) -> Array:
        """float64 [4, 4], vehicle to world."""

    def labels(self, frame: Frame) -> Labels | None:
        """The labelled objects, None where the frame is not labelled."""

    def track_numbers(self, frame: Frame) -> Mapping[str, int]:
        """A number for each object id of the frame's sequence, the same in all its frames."""


def vehicle_velocity(speed: Array, pose: Array) -> Array:
    """Velocities [M, 2] in the vehicle's frame of velocities [M, 2+] in the world, of which x and y count."""
    rotation = np.asarray(pose, np.float64)[:3, :3]
    return np.linalg.solve(rotation, np.pad(speed[:, :2], ((0, 0), (0, 1))).T).T[:, :2]


def checked_labels(labels: Labels, where: str) -> Labels:
    """The labels, where they can be those of a frame.

    Raises DataError for boxes that are not finite, have no size, or are larger, farther or more turned than objects
    are; for difficulties other than 0, 1 and 2, numbers of points below 0, and an object that is there twice.
    """
    boxes, ids = labels.boxes, labels.object_ids
    usual = (np.abs(boxes[:, :6]) <= FARTHEST).all(axis=1) & (boxes[:, 3:6] > 0).all(axis=1)
    usual &= (np.abs(boxes[:, 6]) <= MOST_TURNED) & ~(np.abs(boxes[:, 7:]) > FARTHEST).any(axis=1)  # NaN: not known
    _check_each(usual, ids, boxes, f"{where}: box", "finite, of positive size, in metres and radians")
    _check_each(np.isin(labels.difficulty, DIFFICULTIES), ids, labels.difficulty, f"{where}: difficulty", "0, 1 or 2")
    _check_each(labels.num_points >= 0, ids, labels.num_points, f"{where}: number of points", "at least 0")
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{where}: object {twice[0]} is there {ids.count(twice[0])} times")
    return labels


def _check_each(good: Array, ids: Sequence[str], values: Array, what: str, wanted: str) -> None:
    if not good.all():
        first = int(np.argmin(good))
        raise DataError(f"{what} of object {ids[first]} must be {wanted}, is {values[first].tolist()}")


def check_pose(pose: Array, where: str) -> Array:
    """A pose float64 [4, 4]. Raises DataError where it is no rotation and translation."""
    if not ((np.abs(pose) <= LARGEST_POSITION).all() and is_rigid(pose)):
        raise DataError(f"{where} must be finite, a rotation and a translation, is {pose.tolist()}")
    return pose


def whole_numbers(values: Array, what: str) -> Array:
    """int64 of numbers that are whole. Raises DataError for others, and for none (NaN)."""
    if values.dtype.kind == "f":
        wrong = values[~((np.abs(values) < 2**53) & (values == np.floor(values)))]
        if len(wrong):
            raise DataError(f"{what} must be a whole number, is {wrong[0]}")
    return values.astype(np.int64)


def numbered(object_ids: Sequence[str]) -> dict[str, int]:
    """A number for each different id, in the order in which they first come."""
    return {name: i for i, name in enumerate(dict.fromkeys(object_ids))}
