"""Tracking on result files of Waymo data: a prepared folder says when and where the frames were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.config import ConfigError
from pcdet_ext.data.index import FOLDER, FrameInfo, index_path, read_index
from pcdet_ext.data.waymo import WaymoDataset
from pcdet_ext.data.waymo.frames import TYPES as NAMES
from pcdet_ext.evaluation.waymo_boxes import Boxes, Name, joined, usable, write_boxes
from pcdet_ext.evaluation.waymo_evaluator import RESULTS
from pcdet_ext.evaluation.waymo_messages import write_objects
from pcdet_ext.evaluation.waymo_truth import read_side
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array, Detections
from pcdet_ext.tracking.base import Tracker
from pcdet_ext.tracking.trajectory_drives import DriveFrame

CLASSES = NAMES[1:]  # the first one is unknown
POINT_FEATURES = ("x", "y", "z", "intensity", "elongation", "timestamp")
RANGE = (-75.2, -75.2, -2.0, 75.2, 75.2, 4.0)
SWEEPS = 5


@dataclass(frozen=True, eq=False)
class WaymoDrives:
    """Detections of the frames of a prepared split.

    dataset: reads their points; drives: frames of each sequence in their order, by position in the data set.
    """

    dataset: WaymoDataset
    drives: Sequence[Sequence[tuple[int, FrameInfo, Detections]]]

    @staticmethod
    def read(root: Path, split: str, results: Path) -> WaymoDrives:
        """Read results of any code base.

        Args:
            root: a prepared folder of Waymo data.
            split: whose frames are tracked, for example "val".
            results: a Parquet file or an `Objects` message, or a folder with one of them as `pcdet test` writes it.

        Raises:
            DataError: a file is missing or damaged, a frame has no pose, or results are of frames that are not there.
        """
        dataset = WaymoDataset(
            root=root,
            split=split,
            classes=CLASSES,
            point_cloud_range=RANGE,
            point_features=POINT_FEATURES,
            max_sweeps=SWEEPS,
            near=0.0,
            tanh=("intensity",),
        )
        infos = list(enumerate(dataset.frames))
        found = _by_frame(_file(results), [info for _, info in infos])
        ordered = sorted(infos, key=lambda pair: (pair[1].sequence_id, _time(pair[1])))
        drives = [
            [(i, info, found[_name(info)]) for i, info in drive]
            for _, drive in groupby(ordered, key=lambda pair: pair[1].sequence_id)
        ]
        return WaymoDrives(dataset, drives)

    def points(self, place: int) -> Tensor:
        """Points float32 [P, 6] of a frame and the four before it, with their age in seconds."""
        return torch.from_numpy(np.ascontiguousarray(self.dataset[place].points))

    def tracked(self, tracker: Tracker, with_points: bool) -> Boxes:
        """Boxes of tracks in all frames, with numbers that are one object's throughout its sequence."""
        parts = []
        for drive in self.drives:
            tracker.reset()
            for place, info, detections in drive:
                points = self.points(place) if with_points else None
                found = tracker.update(detections, info.pose, _time(info), points).numpy()
                parts.append(_boxes(info, found))
        return joined(parts) if parts else Boxes.of([], np.zeros(0, np.int64), np.zeros((0, 7)))

    def training_drives(self) -> list[list[DriveFrame]]:
        """The drives with annotations, to train TrajectoryFormer on. Raises DataError for a frame without them."""
        return [[self._training_frame(*frame) for frame in drive] for drive in self.drives]

    def _training_frame(self, place: int, info: FrameInfo, detections: Detections) -> DriveFrame:
        if info.boxes is None or info.track_ids is None or info.pose is None:
            raise DataError(f"{self.dataset.root}: frame {info.frame_id} has no annotated tracks to learn from")
        boxes = torch.from_numpy(np.asarray(detections.boxes, np.float32))
        return DriveFrame(
            boxes=boxes[:, :7],
            velocity=boxes[:, 7:9].nan_to_num(0.0),
            score=torch.from_numpy(np.asarray(detections.scores, np.float32)),
            label=torch.from_numpy(np.asarray(detections.labels, np.int64)),
            pose=torch.from_numpy(np.array(info.pose, np.float64)),
            annotations=torch.from_numpy(np.array(info.boxes[:, :7], np.float32)),
            objects=info.track_ids,
            points=partial(self.points, place),
        )


def is_prepared(root: Path, split: str) -> bool:
    """Whether a folder is prepared Waymo data with this split."""
    path = index_path(root / FOLDER, split)
    return path.is_file() and read_index(path).layout == WaymoDataset.LAYOUT


def write(path: Path, found: Boxes) -> None:
    """Write tracks as an `Objects` message (.bin) or a Parquet file (.parquet)."""
    found = found.select(np.flatnonzero(usable(found)))
    (write_objects if path.suffix == ".bin" else write_boxes)(path, found)


def check_output(path: Path) -> None:
    """Raises ConfigError for a file that `write` cannot write."""
    if path.suffix not in (".bin", ".parquet"):
        raise ConfigError(f"{path}: tracks of Waymo data are an Objects message (.bin) or a Parquet file (.parquet)")


def _file(results: Path) -> Path:
    there = [results / name for name in RESULTS if (results / name).is_file()]
    return there[0] if there else results


def _by_frame(path: Path, infos: Sequence[FrameInfo]) -> dict[Name, Detections]:
    """The detections of each frame, with velocities in the axes of the vehicle."""
    found = read_side(path, scores=True)
    poses = {_name(info): info.pose for info in infos}
    rows: dict[Name, list[int]] = {name: [] for name in poses}
    for row, name in enumerate(found.frames):
        if name not in rows:
            raise DataError(f"{path}: frame {name[1]} of segment {name[0]!r} is not in the prepared split")
        rows[name].append(row)
    return {name: _detections(found, np.array(own, np.int64), poses[name]) for name, own in rows.items()}


def _detections(found: Boxes, rows: Array, pose: Array | None) -> Detections:
    rows = rows[found.type[rows] > 0]
    velocity = found.speed[rows] if pose is None else found.speed[rows] @ pose[:2, :2]
    boxes = np.concatenate([found.boxes[rows], velocity], axis=1).astype(np.float32)
    return Detections(boxes, found.score[rows], found.type[rows] - 1, CLASSES)


def _boxes(info: FrameInfo, found: Detections) -> Boxes:
    boxes = np.asarray(found.boxes, np.float64)
    velocity = np.nan_to_num(boxes[:, 7:9])
    numbers = () if found.track_ids is None else found.track_ids.tolist()
    return Boxes.of(
        [_name(info)] * len(boxes),
        np.asarray(found.labels, np.int64) + 1,
        boxes[:, :7],
        score=np.asarray(found.scores, np.float32),
        speed=velocity if info.pose is None else velocity @ info.pose[:2, :2].T,
        object_ids=[str(number) for number in numbers],
    )


def _name(info: FrameInfo) -> Name:
    extra: Mapping[str, object] = info.extra
    return str(extra["context"]), int(str(extra["timestamp_micros"]))


def _time(info: FrameInfo) -> float:
    return _name(info)[1] * 1e-6
