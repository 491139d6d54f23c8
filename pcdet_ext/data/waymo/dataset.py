"""Frames of a prepared folder with Waymo data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcdet_ext.config import ConfigError, Node, construct
from pcdet_ext.data.base import DATASETS, FrameDataset
from pcdet_ext.data.geometry import wrap_angle
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.data.waymo.frames import STORED_FEATURES, Frame
from pcdet_ext.data.waymo.layouts import open_layout
from pcdet_ext.data.waymo.results import detections_by_frame
from pcdet_ext.data.waymo.sequences import NEAR, SECONDS_PER_FRAME, EarlierFrame, join
from pcdet_ext.evaluation.waymo_boxes import Boxes, Name, type_number
from pcdet_ext.evaluation.waymo_evaluator import RESULTS, WaymoEvaluator
from pcdet_ext.evaluation.waymo_objects import Breakdown
from pcdet_ext.evaluation.waymo_truth import read_side
from pcdet_ext.structures import Array, Detections, Sample

OWN_FEATURES = STORED_FEATURES[:5]
# timestamp: seconds before the frame at which a point was measured; frame: 0 in the frame itself, -1 in the one before.
TIME_FEATURES = ("timestamp", "frame")
POINT_FEATURES = (*OWN_FEATURES, *TIME_FEATURES)
OUTSIDE_ZONES = -1  # what points outside all no-label zones have in their column


@DATASETS.register
@dataclass(kw_only=True, eq=False, repr=False)
class WaymoDataset(FrameDataset):
    """Frames of a prepared folder with Waymo data; what every data set has is described at `FrameDataset`.

    `min_points` counts what the labels say of an object, and in training alone.

    Args:
        max_sweeps: a sample has the points of so many frames, its own among them, moved to where the vehicle is now;
            at the start of a sequence the first frame takes the place of what is missing.
        near: points of the frames before with |x| and |y| below it, in metres, are left out.
        no_label_zones: whether points in zones without labels are kept, as published.
    """

    max_sweeps: int = 1
    near: float = NEAR
    no_label_zones: bool = True

    LAYOUT: ClassVar[str] = "waymo"
    POINT_FEATURES: ClassVar[tuple[str, ...]] = OWN_FEATURES
    FURTHER_FEATURES: ClassVar[tuple[str, ...]] = TIME_FEATURES

    def __post_init__(self) -> None:
        if self.max_sweeps < 1 or not self.near >= 0:
            raise ValueError(f"max_sweeps must be at least 1 and near at least 0, got {self.max_sweeps}, {self.near}")
        super().__post_init__()
        if not self.training:
            self.min_points = 0
        self._layout = open_layout(self.root)

    def read(self, info: FrameInfo) -> Sample:
        """A frame with the points of all its frames, and the labelled boxes of the index."""
        pose = _pose(info, self.root)
        past = self._past(info)
        # Each file once, and forward: at the start of a sequence a frame stands for those missing before it.
        frames = {frame.frame_id: frame for frame in (*reversed(past), info)}
        points = {frame_id: self._points(frame) for frame_id, frame in frames.items()}
        number = _number(info)
        earlier = [
            EarlierFrame(points[other.frame_id], _pose(other, self.root), number - _number(other)) for other in past
        ]
        joined, age, _ = join(points[info.frame_id], pose, earlier, self.near)
        wanted = tuple(self.point_features or ())
        features = (*OWN_FEATURES, *(name for name in TIME_FEATURES if name in wanted))
        return Sample(
            with_age(joined, age, features),
            features,
            info.frame_id,
            info.targets(),
            sequence_id=info.sequence_id,
            pose=pose,
            timestamp=info.timestamp,
        )

    def evaluator(self, options: Mapping[str, Any] | None = None) -> WaymoEvaluator:
        """AP and APH of the frames, at both levels, for all classes of the data set.

        options: `breakdowns`, what the numbers are divided by (default: OBJECT_TYPE and RANGE).
        Raises ConfigError for other options.
        """

        def waymo_metric(breakdowns: Sequence[Breakdown] = ("OBJECT_TYPE", "RANGE")) -> WaymoEvaluator:
            return WaymoEvaluator(self.classes, self._truth, self._found, breakdowns)

        options = options if isinstance(options, Node) else Node(options or {}, "test.metric")
        return construct(waymo_metric, options)

    def read_results(self, path: str | Path) -> Mapping[str, Detections]:
        """Results in a Parquet file or an `Objects` message (.bin), or one of these in a folder; see `Dataset`."""
        path = Path(path)
        if path.is_dir():
            path = next((path / name for name in RESULTS if (path / name).is_file()), path / RESULTS[0])
        return detections_by_frame(read_side(path, scores=True), self.classes, self._frame_ids())

    def _frame_ids(self) -> dict[Name, str]:
        frames = ((info.frame_id, info.extra) for info in self.all_frames)
        return {(extra["context"], extra["timestamp_micros"]): frame_id for frame_id, extra in frames}

    def _info_of(self, sample: Sample) -> FrameInfo:
        return self.all_frames[self.all_frames.find(sample.frame_id)]

    def _truth(self, sample: Sample) -> Boxes | None:
        """All labelled boxes of a frame, whatever the range and the classes of the data set."""
        info = self._info_of(sample)
        if info.boxes is None:
            return None
        return Boxes.of(
            [_name(info)] * len(info.boxes),
            _types(info.names),
            info.boxes[:, :7].astype(np.float64),
            difficulty=info.difficulty,
            num_points=info.points_in_box,
        )

    def _found(self, sample: Sample, detections: Detections) -> Boxes:
        info = self._info_of(sample)
        boxes = np.asarray(detections.boxes, np.float64)
        boxes, velocity = boxes[:, :7].copy(), boxes[:, 7:]
        boxes[:, 6] = wrap_angle(boxes[:, 6])
        speed = np.zeros((len(boxes), 2))
        if velocity.shape[1] == 2 and info.pose is not None:
            speed = velocity @ info.pose[:2, :2].T  # in the world, as the files have it
        return Boxes.of(
            [_name(info)] * len(boxes),
            _types(detections.names),
            boxes,
            score=np.asarray(detections.scores, np.float32),
            speed=speed,
        )

    def _past(self, info: FrameInfo) -> list[FrameInfo]:
        """The frames before one, nearest first."""
        count = self.max_sweeps - 1
        found = self.previous(info, count)
        return (found + [found[-1] if found else info] * count)[:count]

    def _points(self, info: FrameInfo) -> Array:
        """Points [N, 5] of one frame."""
        frame = Frame.of(info.extra)
        points = self.check_points(self._layout.points(frame), info, self._layout.file(frame))
        if not self.no_label_zones:
            points = points[points[:, STORED_FEATURES.index("no_label_zone")] == OUTSIDE_ZONES]
        return points[:, : len(OWN_FEATURES)]


def _types(names: Sequence[str]) -> Array:
    """int64 [N]: numbers of classes, in the files, by their names in any case."""
    numbers = {name: type_number(name, "classes") for name in set(names)}
    return np.array([numbers[name] for name in names], np.int64)


def _name(info: FrameInfo) -> Name:
    return str(info.extra["context"]), int(info.extra["timestamp_micros"])


def with_age(points: Array, age: Array, features: Sequence[str]) -> Array:
    """Points with further columns.

    Args:
        points: float32 [N, 5], the columns of a range image.
        age: int64 [N], how many frames ago each was seen.
        features: names of all columns, those of the points first.

    Returns:
        float32 [N, F].
    """
    columns = {"timestamp": age * SECONDS_PER_FRAME, "frame": -age}
    further = [columns[name].astype(np.float32)[:, None] for name in features[len(OWN_FEATURES) :]]
    return np.concatenate([points, *further], axis=1)


def _number(info: FrameInfo) -> int:
    """Position of a frame in its sequence."""
    return int(info.extra["number"])


def _pose(info: FrameInfo, root: str | Path) -> Array:
    if info.pose is None:
        raise ConfigError(f"{root}: frame {info.frame_id} has no pose in the index; prepare the data again")
    return info.pose
