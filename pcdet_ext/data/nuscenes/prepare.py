"""Preparation of nuScenes."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcdet_ext.data.nuscenes.frames import Frame, Frames, Objects, Sweep
from pcdet_ext.data.nuscenes.points import POINT_FEATURES, count_points, joined_scans, read_joined, read_scan
from pcdet_ext.data.nuscenes.splits import scenes_of
from pcdet_ext.data.prepare import FRAME_SOURCES, RawFrame
from pcdet_ext.evaluation.nuscenes_tables import Tables, find_tables
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array, Sample, Targets

MAX_SWEEPS = 400  # scans of a whole scene: 20 seconds, 20 scans in each
RADAR_ONLY = "no LiDAR point inside, only radar"

_log = logging.getLogger(__name__)


class NuScenesFrames:
    """The key frames of a release, for preparation (see `FrameSource`).

    Args:
        root: the data folder, with the tables in `v1.0-*` and the scans in `samples` and `sweeps`; or in OpenPCDet's
            layout, with all of these in one more folder `v1.0-*`.
        version: the release, as v1.0-mini; by default the only one that is there.
        max_sweeps: scans that a frame is joined of, its own among them; at most 400, which a scene has.

    Raises:
        DataError: there are no tables, or those of several releases of which none is named.
        ValueError: max_sweeps is below 1 or above 400.
    """

    LAYOUT: ClassVar[str] = "nuscenes"

    def __init__(self, root: str | Path, version: str | None = None, max_sweeps: int = 10) -> None:
        if not 1 <= max_sweeps <= MAX_SWEEPS:
            raise ValueError(f"max_sweeps must lie in [1, {MAX_SWEEPS}], got {max_sweeps}")
        self.root, self.max_sweeps = Path(root), max_sweeps
        self.folder = find_tables(self.root, version)
        if self.folder == self.root:
            raise DataError(f"{root}: is the folder of the tables; name the one above it")
        self._tables: Tables | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the tables: what another process needs of them is in the frames."""
        return {**vars(self), "_tables": None}

    @property
    def data(self) -> Path:
        """The folder with `samples` and `sweeps`."""
        return self.folder.parent

    @property
    def tables(self) -> Tables:
        """The tables, which stay in memory once they are read."""
        if self._tables is None:
            self._tables = Tables(self.folder)
        return self._tables

    def find(self, split: str) -> Frames:
        """The key frames of a split, in the order of the table; scenes of which no file is there are left out."""
        scenes = set(scenes_of(self.data, self.folder.name, split, self.tables.scene.texts["name"]))
        absent = self._without_files(scenes)
        if absent:
            _log.warning("%s: %d scenes of %s have no files here, as %s", self.data, len(absent), split, absent[0])
        present = scenes - set(absent)
        rows = [i for i, name in enumerate(self.tables.scene_names) if name in present]
        if not rows:
            raise DataError(f"{self.data}: split {split!r} has no frame whose files are there")
        return Frames(self.tables, rows, self.max_sweeps)

    def _without_files(self, scenes: Collection[str]) -> list[str]:
        """Those scenes of which no scan is there, which happens where only a part of the release was fetched."""
        tables = self.tables
        names, files = tables.scene_names, tables.lidar.texts["filename"]
        first = {names[i]: int(key) for i, key in reversed([*enumerate(tables.key_frame.tolist())])}
        doubtful = {name for name in scenes if name in first and not (self.data / files[first[name]]).is_file()}
        if not doubtful:
            return []
        there = self._scans_there(files)
        samples = tables.sample.find(tables.lidar.texts["sample_token"])
        for file, sample in zip(files, samples.tolist(), strict=True):
            if sample >= 0 and file in there:
                doubtful.discard(names[sample])
        return sorted(doubtful)

    def _scans_there(self, files: Sequence[str]) -> set[str]:
        """Those of some files that exist; each of their few folders is looked into once."""
        folders = {os.path.dirname(file) for file in files}
        return {
            os.path.join(folder, entry.name)
            for folder in folders
            if (self.data / folder).is_dir()
            for entry in os.scandir(self.data / folder)
        }

    def read(self, frame: Frame) -> RawFrame:
        """One of them, with its sweeps."""
        if frame.problem:
            raise DataError(frame.problem)
        scan = read_scan(self.data, frame.file, frame.lidar_token)
        sample = Sample(
            points=joined_scans(scan, ()),
            point_features=POINT_FEATURES,
            frame_id=frame.token,
            targets=None if frame.objects is None else targets_of(frame.objects),
            sequence_id=frame.scene,
            pose=frame.pose,
            timestamp=frame.timestamp,
        )
        reasons = () if frame.objects is None else _reasons(frame.objects)
        frame = replace(frame, sweeps=tuple(self._counted(sweep) for sweep in frame.sweeps))
        joined = partial(self._joined, frame, scan)
        return RawFrame(
            sample,
            self.extra(frame),
            reasons=reasons,
            object_points=joined,
            object_features=POINT_FEATURES,
            exclusive=True,
        )

    def _counted(self, sweep: Sweep) -> Sweep:
        return replace(sweep, points=count_points(self.data, sweep.file, sweep.token))

    def _joined(self, frame: Frame, scan: Array) -> Array:
        key = Sweep(frame.file, frame.lidar_token)
        return read_joined(self.data, key, scan, frame.padded(self.max_sweeps - 1))

    def extra(self, frame: Frame) -> dict[str, Any]:
        """What the data set needs to read a frame again."""
        return {
            "tables": self.folder.relative_to(self.root).as_posix(),
            "file": frame.file,
            "lidar_token": frame.lidar_token,
            "sensor": frame.sensor.values(),
            "ego": frame.ego.values(),
            "max_sweeps": self.max_sweeps,
            "sweeps": [sweep.to_json() for sweep in frame.sweeps],
        }


@FRAME_SOURCES.register
def nuscenes(root: str, version: str | None = None, max_sweeps: int = 10) -> NuScenesFrames:
    """nuScenes as released (v1.0-trainval, v1.0-test, v1.0-mini), or in OpenPCDet's folders.

    Arguments as in `NuScenesFrames`.
    """
    return NuScenesFrames(root, version, max_sweeps)


def targets_of(objects: Objects) -> Targets:
    """Labels of a frame: every object that the lidar or a radar saw."""
    return Targets.of_names(
        objects.boxes.astype(np.float32),
        objects.names,
        num_points=objects.lidar_points,
        track_ids=objects.instances,
    )


def _reasons(objects: Objects) -> Sequence[str]:
    return [RADAR_ONLY if count == 0 else "" for count in objects.lidar_points.tolist()]
