"""Preparation of Waymo data in any of its layouts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from pcdet_ext.data.prepare import FRAME_SOURCES, RawFrame, Summary, prepare
from pcdet_ext.data.waymo.dataset import OWN_FEATURES, POINT_FEATURES, with_age
from pcdet_ext.data.waymo.frames import Frame
from pcdet_ext.data.waymo.layouts import open_layout
from pcdet_ext.data.waymo.sequences import EarlierFrame, join
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array, Sample

# Of frames that follow each other, only so many give objects of a class to the database: they are the same objects.
DATABASE_STEPS = {"Vehicle": 4, "Pedestrian": 2}


@dataclass(frozen=True)
class FrameWithPast:
    """A frame and the ones before it from which objects of the database get points, the nearest first."""

    frame: Frame
    earlier: tuple[Frame, ...] = ()


class WaymoFrames:
    """The frames of a folder with Waymo data, for preparation (see `FrameSource`).

    max_sweeps: objects of the database get points of so many frames, the one that they are labelled in and those
    before.
    Raises DataError where the folder has no layout that is known.
    """

    LAYOUT: ClassVar[str] = "waymo"

    def __init__(self, root: str | Path, max_sweeps: int = 1) -> None:
        if max_sweeps < 1:
            raise ValueError(f"max_sweeps must be at least 1, got {max_sweeps}")
        self.root = Path(root)
        self.count = max_sweeps
        self._layout = open_layout(root)
        self._recent: OrderedDict[Frame, Array] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "max_sweeps": self.count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a process of its own opens files of its own

    def find(self, split: str) -> Sequence[FrameWithPast | DataError]:
        """The frames of a split; before them, the errors of recordings that cannot be opened."""
        damaged: list[DataError] = []
        frames = self._layout.find(split, damaged)
        return [*damaged, *(FrameWithPast(own, _past(frames, i, self.count - 1)) for i, own in enumerate(frames))]

    def read(self, frame: FrameWithPast | DataError) -> RawFrame:
        """One frame with what its index needs. Raises DataError for a damaged one, and what `find` gave as an error."""
        if isinstance(frame, DataError):
            raise frame
        own, layout = frame.frame, self._layout
        labels = layout.labels(own)
        sample = Sample(
            self._points(own),
            OWN_FEATURES,
            own.frame_id,
            None if labels is None else labels.targets(layout.track_numbers(own)),
            sequence_id=own.sequence,
            pose=layout.pose(own),
            timestamp=own.timestamp_micros * 1e-6,
        )
        cut = None if labels is None else thinned(labels.names, own.position)
        raw = RawFrame(sample, own.extra(), cut=cut, exclusive=True)
        if self.count == 1:
            return raw
        return replace(raw, object_points=partial(self._joined, frame), object_features=POINT_FEATURES)

    def _joined(self, frame: FrameWithPast) -> Array:
        """Points of a frame and those before it, with their age."""
        own, layout = frame.frame, self._layout
        clouds = [self._points(past) for past in reversed(frame.earlier)][::-1]  # files are read forward
        past = [
            EarlierFrame(cloud, layout.pose(f), own.number - f.number)
            for f, cloud in zip(frame.earlier, clouds, strict=True)
        ]
        joined, age, _ = join(self._points(own), layout.pose(own), past)
        return with_age(joined, age, POINT_FEATURES)

    def _points(self, frame: Frame) -> Array:
        """Points [N, 5] of a frame; the last ones are kept, since the following frames need them again."""
        if frame not in self._recent:
            self._recent[frame] = self._layout.points(frame)[:, : len(OWN_FEATURES)]
        self._recent.move_to_end(frame)
        while len(self._recent) > self.count + 1:
            self._recent.popitem(last=False)
        return self._recent[frame]


@FRAME_SOURCES.register
def waymo(root: str, max_sweeps: int = 1) -> WaymoFrames:
    """The Waymo Open Dataset: Parquet components, or waymo_processed_data*."""
    return WaymoFrames(root, max_sweeps)


def prepare_waymo(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    database: Sequence[str] | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
    max_sweeps: int = 1,
) -> list[Summary]:
    """Prepare a folder with Waymo data.

    root, max_sweeps: see `WaymoFrames`; the other arguments as in `pcdet_ext.data.prepare.prepare`.
    """
    return prepare(WaymoFrames(root, max_sweeps), splits, database, out, workers, on_error, progress)


def _past(frames: Sequence[Frame], position: int, count: int) -> tuple[Frame, ...]:
    """Up to `count` frames of the same sequence before one, nearest first; at the start the first one again."""
    first = position
    while first > 0 and position - first < count and frames[first - 1].sequence == frames[position].sequence:
        first -= 1
    return tuple(frames[max(position - i, first)] for i in range(1, count + 1))


def thinned(names: Sequence[str], position: int) -> Array:
    """bool [M]: which objects of a frame go into the database, by their classes and the frame's place in the split."""
    return np.array([position % DATABASE_STEPS.get(name, 1) == 0 for name in names], bool)
