"""The made-up nuScenes release that lies beside the numeric cases of data pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pcdet_ext.conformance.golden import Case
from pcdet_ext.data.nuscenes import Frame, Frames, NuScenesFrames, Sweep, joined_scans, read_scan, scenes_of
from pcdet_ext.structures import Array

INFO_SWEEPS = 10  # of the infos that the cases without a number were made with


@dataclass(frozen=True)
class Release:
    """The made-up data beside the cases."""

    source: NuScenesFrames
    splits: Mapping[str, Sequence[Frame]]

    def frame(self, token: str) -> Frame:
        """A key frame by its token."""
        return next(f for frames in self.splits.values() for f in frames if f.token == token)

    def points(self, frame: Frame, choice: Array) -> Array:
        """The published five columns of a key frame and of those of its sweeps that were drawn, in that order."""
        key = read_scan(self.source.data, frame.file, frame.lidar_token)
        stored = frame.padded(self.source.max_sweeps - 1)
        chosen = [(stored[i], self._scan(stored[i])) for i in choice.tolist()]
        return joined_scans(key, chosen)[:, :5]

    def _scan(self, sweep: Sweep) -> Array:
        return read_scan(self.source.data, sweep.file, sweep.token)


@cache
def _release(root: Path, version: str | None, max_sweeps: int) -> Release:
    source = NuScenesFrames(root, version, max_sweeps)
    tables, name = source.tables, source.folder.name
    if name == "v1.0-test":
        return Release(source, {"test": source.find("test")[:]})
    scenes = scenes_of(source.data, name, "train", tables.scene.texts["name"])
    others = [row for row, scene in enumerate(tables.scene_names) if scene not in scenes]  # as published, all of them
    return Release(source, {"train": source.find("train")[:], "val": Frames(tables, others, max_sweeps)[:]})


def release_of(case: Case, max_sweeps: int = INFO_SWEEPS) -> Release:
    """The data that a case is about."""
    return _release(case.path.parent / "nuscenes", case.config.get("version"), max_sweeps)
