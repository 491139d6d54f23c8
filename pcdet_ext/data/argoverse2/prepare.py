"""Preparation of Argoverse 2's sensor data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcdet_ext.data.argoverse2.logs import (
    ANNOTATIONS,
    FILE_FEATURES,
    LIDAR,
    Frame,
    Objects,
    read_log,
    read_points,
    split_folder,
    timestamps,
)
from pcdet_ext.data.prepare import FRAME_SOURCES, RawFrame
from pcdet_ext.evaluation.argoverse2_files import read_table
from pcdet_ext.files import DataError
from pcdet_ext.structures import Sample, Targets

NO_ANNOTATIONS = f"{ANNOTATIONS}: the log has none"
NO_POINTS = "no LiDAR point inside"
OBJECT_FEATURES = (*FILE_FEATURES, "timestamp")

_log = logging.getLogger(__name__)


class Argoverse2Frames:
    """The sweeps of Argoverse 2's sensor data set, for preparation (see `FrameSource`).

    root: the folder with the splits, or the one above their folder `sensor`.
    """

    LAYOUT: ClassVar[str] = "argoverse2"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def find(self, split: str) -> Sequence[Frame]:
        """The sweeps of a split, log by log; logs without any are left out, and it is said.

        An annotated time whose sweep is not there counts as a frame, and is an error when that is read.
        """
        folder = split_folder(self.root, split)
        below = folder.relative_to(self.root).as_posix()
        frames: list[Frame] = []
        empty = []
        for log in sorted(path for path in folder.iterdir() if path.is_dir()):
            times = timestamps(log)
            if not times:
                empty.append(log.name)
                continue
            frames += [Frame(self.root, below, log.name, time) for time in sorted({*times, *_annotated(log)})]
        if empty:
            _log.warning("%s: %d logs have no sweeps (LOG/%s/*.feather), as %s", folder, len(empty), LIDAR, empty[0])
        if not frames:
            raise DataError(f"{folder}: no log with sweeps (LOG/{LIDAR}/TIMESTAMP.feather)")
        return frames

    def read(self, frame: Frame) -> RawFrame:
        """One of them."""
        log = read_log(frame.log_folder)
        points = read_points(frame.points)
        objects = log.objects(frame.timestamp)
        sample = Sample(
            points=points,
            point_features=FILE_FEATURES,
            frame_id=frame.frame_id,
            targets=None if objects is None else targets_of(objects),
            sequence_id=frame.log,
            pose=log.pose(frame.timestamp),
            timestamp=frame.timestamp * 1e-9,
        )
        extra: dict[str, Any] = {"folder": frame.folder, "timestamp_ns": frame.timestamp}
        reasons = [] if objects is None else ["" if count else NO_POINTS for count in objects.num_points.tolist()]
        return RawFrame(
            sample,
            extra,
            reasons=reasons,
            notes=(NO_ANNOTATIONS,) if objects is None else (),
            object_points=np.insert(points, len(FILE_FEATURES), 0, axis=1),  # seconds of age
            object_features=OBJECT_FEATURES,
        )


@FRAME_SOURCES.register
def argoverse2(root: str) -> Argoverse2Frames:
    """Argoverse 2's sensor data set as released: Feather files, log by log."""
    return Argoverse2Frames(root)


def targets_of(objects: Objects) -> Targets:
    """Labels of a frame: every annotated object."""
    return Targets.of_names(
        objects.boxes.astype(np.float32),
        objects.names,
        num_points=objects.num_points,
        track_ids=objects.tracks,
    )


def _annotated(log: Path) -> list[int]:
    """The times of a log that have annotations; none where there is no file, or one that cannot be read.

    What is wrong with the file is said by the frames of the log, so that damaged ones can be left out.
    """
    try:
        table = read_table(log / ANNOTATIONS, ("timestamp_ns",))
    except DataError:
        return []
    found: list[int] = np.unique(table["timestamp_ns"]).tolist()
    return found
