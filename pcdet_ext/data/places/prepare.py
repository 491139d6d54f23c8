"""Preparation of a folder for place recognition: its clouds are checked and indexed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.custom.clouds import find_columns
from pcdet_ext.data.custom.layout import read_settings
from pcdet_ext.data.places.files import TABLE, Frame, read_frames
from pcdet_ext.data.places.tuples import pairs_within
from pcdet_ext.data.prepare import FRAME_SOURCES, RawFrame
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Sample

REVISIT = 10.0  # metres within which the report counts two frames of different runs as a revisit


class PlaceFrames:
    """The frames of a folder for place recognition, for preparation (see `FrameSource`).

    Raises DataError for a table that cannot be used, and for clouds whose columns are not clear.
    """

    LAYOUT: ClassVar[str] = "places"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.frames = read_frames(self.root)
        for frame in self.frames:
            if not (self.root / frame.cloud).is_file():
                raise MissingFileError(f"{self.root / frame.cloud}: no such file, named in {self.root / TABLE}")
        self.columns = find_columns([self.root / frame.cloud for frame in self.frames], read_settings(self.root))

    def find(self, split: str) -> Sequence[Frame]:
        """The frames of a split, in the order of the table. Raises DataError where there is none."""
        found = [frame for frame in self.frames if frame.split == split]
        if not found:
            splits = list(dict.fromkeys(frame.split for frame in self.frames))
            raise DataError(f"{self.root / TABLE}: no frame is of split {split!r}{suggest(split, splits)}")
        return found

    def read(self, frame: Frame) -> RawFrame:
        """One frame with what its index needs."""
        points = self.columns.read(self.root / frame.cloud)
        sample = Sample(
            points,
            self.columns.features,
            frame.frame_id,
            sequence_id=frame.run,
            pose=frame.pose(),
            timestamp=frame.timestamp,
        )
        extra = {
            "cloud": frame.cloud,
            "columns": self.columns.to_json(),
            "heading": frame.heading,
            "view": frame.view,
        }
        return RawFrame(sample, extra)

    def finish(self, out: Path, splits: Sequence[str]) -> str:
        """What the splits hold: runs, and how many frames are near one of another run."""
        return "\n".join(self._report(split) for split in splits)

    def _report(self, split: str) -> str:
        frames = self.find(split)
        xy = np.array([(frame.x, frame.y) for frame in frames])
        runs = [frame.run for frame in frames]
        revisited = {i for pair in pairs_within(xy, REVISIT).tolist() if len({runs[i] for i in pair}) > 1 for i in pair}
        counts = ", ".join(f"{run} {count}" for run, count in Counter(runs).items())
        return (
            f"{split}: {len(set(runs))} runs ({counts}); {len(revisited)} of {len(frames)} frames are within "
            f"{REVISIT:g} m of a frame of another run"
        )


@FRAME_SOURCES.register
def places(root: str) -> PlaceFrames:
    """Clouds with positions, for place recognition."""
    return PlaceFrames(root)
