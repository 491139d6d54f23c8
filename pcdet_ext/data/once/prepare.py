"""Preparation of ONCE."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from pcdet_ext.data.once.sequences import DATA, POINT_FEATURES, Frame, read_points, read_sequence, sequences_of
from pcdet_ext.data.prepare import FRAME_SOURCES, RawFrame
from pcdet_ext.files import DataError
from pcdet_ext.structures import Sample, Targets

NO_LABELS = "annos: the frame has none"

_log = logging.getLogger(__name__)


class OnceFrames:
    """The frames of ONCE, for preparation (see `FrameSource`).

    Args:
        root: the folder with `data` and `ImageSets`.
        unlabelled: whether frames without labels are kept in sequences that have labels; those of sequences without any
            (test, raw_small and others) always are.
    """

    LAYOUT: ClassVar[str] = "once"

    def __init__(self, root: str | Path, unlabelled: bool = False) -> None:
        self.root, self.unlabelled = Path(root), unlabelled

    def find(self, split: str) -> Sequence[Frame]:
        """The frames of a split, sequence by sequence."""
        frames: list[Frame] = []
        left_out = 0
        for name in sequences_of(self.root, split):
            own = self._sequence(name)
            kept = own if self.unlabelled else _labelled(own)
            left_out += len(own) - len(kept)
            frames += kept
        if left_out:
            _log.warning(
                "%s: %d frames of %s have no labels and are left out, beside %d others; unlabelled=true keeps them",
                self.root / DATA,
                left_out,
                split,
                len(frames),
            )
        if not frames:
            raise DataError(f"{self.root}: the sequences of split {split!r} have no frames")
        return frames

    def _sequence(self, name: str) -> list[Frame]:
        """The frames of a sequence; where its file cannot be read, a single one that says why."""
        try:
            return read_sequence(self.root, name)
        except DataError as error:
            return [Frame(self.root, name, "", problem=str(error))]

    def read(self, frame: Frame) -> RawFrame:
        """One of them."""
        if frame.problem:
            raise DataError(frame.problem)
        targets = None
        if frame.boxes is not None:
            targets = Targets.of_names(frame.boxes.astype(np.float32), frame.names)
        sample = Sample(
            points=read_points(frame.points),
            point_features=POINT_FEATURES,
            frame_id=frame.frame_id,
            targets=targets,
            sequence_id=frame.sequence,
            pose=frame.pose,
            timestamp=frame.timestamp,
        )
        return RawFrame(sample, {"name": frame.name}, notes=(NO_LABELS,) if targets is None else ())


@FRAME_SOURCES.register
def once(root: str, unlabelled: bool = False) -> OnceFrames:
    """ONCE as released: JSON files of sequences, and points in .bin files."""
    return OnceFrames(root, unlabelled)


def _labelled(frames: list[Frame]) -> list[Frame]:
    """The frames with labels, or with a problem; all where no frame has labels."""
    labelled = [frame for frame in frames if frame.boxes is not None or frame.problem]
    return labelled if any(frame.boxes is not None for frame in frames) else frames
