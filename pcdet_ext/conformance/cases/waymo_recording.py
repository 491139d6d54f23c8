"""The frames of a Waymo case, read in the published ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pcdet_ext.conformance.cases.data_common import FEATURES, changed
from pcdet_ext.conformance.golden import Case
from pcdet_ext.conformance.waymo_published import moved_as_published
from pcdet_ext.data.base import with_tanh
from pcdet_ext.data.waymo.dataset import OUTSIDE_ZONES
from pcdet_ext.data.waymo.frames import Frame, Labels
from pcdet_ext.data.waymo.processed import ProcessedLayout
from pcdet_ext.data.waymo.sequences import SECONDS_PER_FRAME, EarlierFrame, join
from pcdet_ext.structures import Array, Sample

# What the published configurations say that the cases start from.
BASE = {
    "POINT_CLOUD_RANGE": [-75.2, -75.2, -2, 75.2, 75.2, 4],
    "FILTER_EMPTY_BOXES_FOR_TRAIN": True,
    "DISABLE_NLZ_FLAG_ON_POINTS": True,
    "POINTS_TANH_DIM": [3],
    "SEQUENCE_CONFIG": None,
    "TRAIN_WITH_SPEED": False,
    "VOXEL_SIZE": [0.1, 0.1, 0.15],
    "MAX_POINTS_PER_VOXEL": 5,
    "MAX_NUMBER_OF_VOXELS": 150000,
    "MASK_Z": False,
}
PUBLISHED = {
    "waymo_dataset.yaml": BASE,
    "waymo_dataset_multiframe.yaml": {
        **BASE,
        "SEQUENCE_CONFIG": {"ENABLED": True, "SAMPLE_OFFSET": [-3, 0]},
        "TRAIN_WITH_SPEED": True,
    },
}


class Recording:
    """The processed frames beside a case, by id; with the published ways to read their points."""

    def __init__(self, case: Case, split: str = "train") -> None:
        self.layout = ProcessedLayout(case.path.parent / "waymo")
        self.frames = self.layout.find(split)
        self._by_id = {frame.frame_id: frame for frame in self.frames}
        self._by_place = {(frame.sequence, frame.number): frame for frame in self.frames}

    def frame(self, frame_id: str) -> Frame:
        """The frame of an id."""
        return self._by_id[frame_id]

    def points(self, frame: Frame, options: Mapping[str, Any]) -> Array:
        """Points [N, 5] of one frame."""
        points = self.layout.points(frame)
        if not options["DISABLE_NLZ_FLAG_ON_POINTS"]:
            points = points[points[:, 5] == OUTSIDE_ZONES]
        names = [FEATURES[column] for column in options["POINTS_TANH_DIM"] or [3]]
        return with_tanh(Sample(points[:, :5], FEATURES[:5], frame.frame_id), names).points

    def past(self, frame: Frame, offset: Sequence[int]) -> list[Frame]:
        """The frames of SAMPLE_OFFSET before a frame, nearest first; at the start the first one again."""
        first, last = offset
        numbers = np.clip(np.arange(frame.number + first, frame.number + last), 0, None)[::-1]
        return [self._by_place[frame.sequence, int(number)] for number in numbers]

    def joined(self, frame: Frame, options: Mapping[str, Any]) -> tuple[Array, Array, list[Frame]]:
        """Points [N, 6 or more] of a frame and those before, the number of each, and the frames before."""
        sequence = options["SEQUENCE_CONFIG"]
        past = self.past(frame, sequence["SAMPLE_OFFSET"])
        earlier = [EarlierFrame(self.points(f, options), self.layout.pose(f), frame.number - f.number) for f in past]
        pose = self.layout.pose(frame)
        points, age, counts = join(self.points(frame, options), pose, earlier, move=moved_as_published)
        columns = (age * SECONDS_PER_FRAME).astype(np.float32)[:, None]
        if sequence.get("ONEHOT_TIMESTAMP"):
            columns = np.repeat(np.eye(len(counts), dtype=np.float32), counts, axis=0)
        return np.concatenate([points, columns], axis=1), counts, past

    def cloud(self, frame: Frame, options: Mapping[str, Any]) -> Array:
        """The points that a sample starts from, of one frame or of several."""
        sequence = options["SEQUENCE_CONFIG"]
        several = sequence is not None and sequence.get("ENABLED", True)
        return self.joined(frame, options)[0] if several else self.points(frame, options)

    def poses(self, frames: Sequence[Frame]) -> Array:
        """float32 [4 n, 4]."""
        return np.concatenate([self.layout.pose(frame) for frame in frames]).astype(np.float32)

    def labels(self, frame: Frame) -> Labels:
        """The labelled objects."""
        labels = self.layout.labels(frame)
        if labels is None:
            raise ValueError(f"{frame.frame_id} has no labels")
        return labels


def options_of(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A published configuration with a case's changes; ValueError for a change of what it does not have."""
    return changed(PUBLISHED[name], overrides)
