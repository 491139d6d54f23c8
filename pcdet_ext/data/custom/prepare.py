"""Preparation of a folder of one's own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcdet_ext.data.custom.clouds import find_columns
from pcdet_ext.data.custom.dataset import read_joined
from pcdet_ext.data.custom.labels import Labels, read_labels
from pcdet_ext.data.custom.layout import LABELS, LISTS, POINTS, find_files, frames_of_split, read_settings
from pcdet_ext.data.custom.motion import FRAME_SECONDS, TIME, check_joinable, earlier_frames, motion_notes, read_motion
from pcdet_ext.data.custom.report import conclude
from pcdet_ext.data.prepare import FRAME_SOURCES, RawFrame
from pcdet_ext.files import MissingFileError
from pcdet_ext.structures import Array, Sample

UNUSED_VELOCITY = "labels: velocities are not used; `velocity: true` in dataset.yaml takes them"


class CustomFrames:
    """The frames of a folder of one's own data, for preparation (see `FrameSource`).

    Raises DataError or ConfigError where files contradict each other, and where it is not clear what they hold.
    """

    LAYOUT: ClassVar[str] = "custom"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.settings = read_settings(self.root)
        self.folder = find_files(self.root)
        self.columns = find_columns(self.folder.clouds.values(), self.settings)
        self.motion = read_motion(self.root, self.folder.frame_ids)
        self.earlier: Mapping[str, Sequence[str]] = {}
        if self.settings.max_sweeps > 1:
            check_joinable(self.motion, self.folder.frame_ids, self.root)
            count = self.settings.max_sweeps - 1
            self.earlier = earlier_frames(self.motion, self.folder.frame_ids, count, self.root.name)

    def find(self, split: str) -> Sequence[tuple[str, bool]]:
        """The frame ids of a split (see `frames_of_split`), each with whether its frames have labels.

        They have, unless the folder has none at all, or the split is called "test" and none of its frames has.
        """
        ids = frames_of_split(self.folder, split, self.settings.val_share)
        labelled = any(name in self.folder.labels for name in ids) if split == "test" else bool(self.folder.labels)
        return [(name, labelled) for name in ids]

    def read(self, frame: tuple[str, bool]) -> RawFrame:
        """One frame with what its index needs."""
        return self._read(*frame)

    def _read(self, frame: str, labelled: bool) -> RawFrame:
        cloud = self._cloud(frame)
        points = self.columns.read(cloud)
        labels = self._labels(frame) if labelled else None
        sample = Sample(
            points,
            self.columns.features,
            frame,
            None if labels is None else labels.targets(self.settings.velocity),
            self.motion.sequence(frame, self.root.resolve().name),
            pose=self.motion.pose(frame),
            timestamp=self.motion.timestamp(frame),
        )
        extra: dict[str, Any] = {
            "cloud": cloud.relative_to(self.root).as_posix(),
            "columns": self.columns.to_json(),
            "max_sweeps": self.settings.max_sweeps,
            "earlier": self._sweeps(frame),
            "extent": _extent(points),
        }
        ignored = labels is not None and labels.has_velocity and not self.settings.velocity
        notes = (UNUSED_VELOCITY,) if ignored else ()
        if self.settings.max_sweeps == 1:
            return RawFrame(sample, extra, notes=notes)
        joined = partial(read_joined, self.root, self.columns, points, extra["earlier"])
        return RawFrame(
            sample, extra, notes=notes, object_points=joined, object_features=(*self.columns.features, TIME)
        )

    def finish(self, out: Path, splits: Sequence[str]) -> str:
        """What the prepared splits hold, and a configuration to train with; see `report.conclude`."""
        notes = motion_notes(self.motion, self.folder.frame_ids)
        return conclude(self.root, out, splits, self.settings, self.columns, self.folder, notes)

    def _cloud(self, frame: str) -> Path:
        if frame not in self.folder.clouds:
            where = self.folder.labels.get(frame, self.root / LISTS)
            raise MissingFileError(f"{where}: frame {frame!r} has no point cloud {POINTS}/{frame}.*")
        return self.folder.clouds[frame]

    def _labels(self, frame: str) -> Labels:
        if frame not in self.folder.labels:
            raise MissingFileError(
                f"{self.folder.clouds[frame]}: has no label file {LABELS}/{frame}.txt (or .json); an empty .txt file "
                "says that there is no object"
            )
        return read_labels(self.folder.labels[frame], self.settings)

    @cached_property
    def _inverse(self) -> Mapping[str, Array]:
        return {name: np.linalg.inv(pose) for name, pose in self.motion.poses.items()}

    def _sweeps(self, frame: str) -> list[dict[str, Any]]:
        sweeps = []
        for i, name in enumerate(self.earlier.get(frame, ()), 1):
            if name not in self.folder.clouds:
                continue
            matrix = self._inverse[frame] @ self.motion.poses[name]
            times = self.motion.timestamps
            age = times[frame] - times[name] if times else i * FRAME_SECONDS
            cloud = self.folder.clouds[name].relative_to(self.root).as_posix()
            sweeps.append({"cloud": cloud, "matrix": matrix[:3].ravel().tolist(), "age": age})
        return sweeps


def _extent(points: Array) -> list[list[float]]:
    """Minimum and maximum of each column over the finite points; empty without any."""
    finite = points[np.isfinite(points).all(axis=1)]
    return [finite.min(axis=0).tolist(), finite.max(axis=0).tolist()] if len(finite) else []


@FRAME_SOURCES.register
def custom(root: str) -> CustomFrames:
    """A folder of clouds and label files."""
    return CustomFrames(root)
