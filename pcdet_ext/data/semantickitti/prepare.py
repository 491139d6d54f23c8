"""Preparation of folders in SemanticKITTI's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcdet_ext.data.index import FrameTable, index_path, read_index
from pcdet_ext.data.prepare import FRAME_SOURCES, RawFrame
from pcdet_ext.data.semantickitti.dataset import ids_of
from pcdet_ext.data.semantickitti.labels import LabelMap, read_labels
from pcdet_ext.data.semantickitti.sequences import POINT_FEATURES, Frame, Motion, find_frames, read_points
from pcdet_ext.structures import Array, Sample

NO_LABELS = "labels: the sequence has none"
LISTED = 10  # label files with unknown ids that are named


class SemanticKittiFrames:
    """The frames of a folder in SemanticKITTI's layout, for preparation (see `FrameSource`)."""

    LAYOUT: ClassVar[str] = "semantickitti"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def find(self, split: str) -> Sequence[tuple[Frame, Array | None, float | None]]:
        """The frames of a split (see `sequences_of`), each with its pose and its time, where these are known."""
        frames = find_frames(self.root, split)
        motions = {name: Motion.read(self.root, name) for name in dict.fromkeys(f.sequence for f in frames)}
        return [(frame, *motions[frame.sequence].of(frame.name)) for frame in frames]

    def read(self, frame: tuple[Frame, Array | None, float | None]) -> RawFrame:
        """One frame with what its index needs: how many points have each label id, beside what all formats have."""
        return self._read(*frame)

    def _read(self, frame: Frame, pose: Array | None, time: float | None) -> RawFrame:
        points = read_points(frame.points)
        extra: dict[str, Any] = {"name": frame.name, "point_labels": frame.labelled, "ids": {}}
        if frame.labelled:
            ids, _ = read_labels(frame.labels, len(points))
            numbers, counts = np.unique(ids, return_counts=True)
            extra["ids"] = {str(number): count for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)}
        sample = Sample(points, POINT_FEATURES, frame.frame_id, None, frame.sequence, pose=pose, timestamp=time)
        return RawFrame(sample, extra, notes=() if frame.labelled else (NO_LABELS,))

    def finish(self, out: Path, splits: Sequence[str]) -> str:
        """How many points the splits have of each of the published classes, and where ids are that the map lacks."""
        label_map = LabelMap.of()
        lines = []
        for split in splits:
            index = read_index(index_path(out, split))
            ids = ids_of(index)
            owner = {number: name for name, numbers in label_map.ids.items() for number in numbers}
            counts: dict[str, int] = {}
            for number, points in ids.items():
                name = owner.get(number, "not counted" if number in label_map.ignored else f"id {number}")
                counts[name] = counts.get(name, 0) + points
            text = ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1]))
            lines.append(f"{split}: points by class: {text or 'none is labelled'}")
            lines += self._unknown(index, {*owner, *label_map.ignored})
        return "\n".join(lines)

    def _unknown(self, index: FrameTable, known: set[int]) -> list[str]:
        """A line for each label file with ids that the published map lacks, the first few of them."""
        found = []
        for sequence, extra in zip(index.sequence_ids, index.extras(), strict=True):
            unknown = {number: points for number, points in extra["ids"].items() if int(number) not in known}
            if unknown:
                path = Frame(self.root, sequence, extra["name"], labelled=True).labels
                text = ", ".join(f"{number} ({points} points)" for number, points in unknown.items())
                found.append(f"  {path}: unknown label id {text}")
        rest = [f"  and in {len(found) - LISTED} more label files"] if len(found) > LISTED else []
        hint = ["  training needs them in data.label_ids or data.ignored_ids"] if found else []
        return found[:LISTED] + rest + hint


@FRAME_SOURCES.register
def semantickitti(root: str) -> SemanticKittiFrames:
    """SemanticKITTI's layout: sequences with labels of points."""
    return SemanticKittiFrames(root)
