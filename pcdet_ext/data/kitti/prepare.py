"""Preparation of folders in the KITTI layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from pcdet_ext.data.kitti.calibration import Calibration
from pcdet_ext.data.kitti.files import POINT_FEATURES, Frame, find_frames, read_points
from pcdet_ext.data.kitti.images import KINDS, read_image_size
from pcdet_ext.data.kitti.labels import boxed, labels_to_boxes, read_labels
from pcdet_ext.data.prepare import FRAME_SOURCES, RawFrame, Summary, prepare
from pcdet_ext.evaluation.kitti_labels import Labels, reasons_not_to_count
from pcdet_ext.structures import Sample

OTHER_SIZE = "image size: P2 is not for images of this size, its principal point lies outside; see data.image_size"
MAX_TILT = np.deg2rad(10)  # of a camera about which nothing is to be said


class KittiFrames:
    """The frames of a folder in the KITTI layout, for preparation (see `FrameSource`)."""

    LAYOUT: ClassVar[str] = "kitti"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def find(self, split: str) -> Sequence[Frame]:
        """The frames of a split; see `find_frames`."""
        return find_frames(self.root, split)

    def read(self, frame: Frame) -> RawFrame:
        """One frame with what its index needs."""
        calibration = Calibration.read(frame.calibration)
        size, notes = _image_size(frame, calibration)
        if calibration.tilt > MAX_TILT:
            notes += (
                "calibration: camera tilted by over 10° against the LiDAR, in whose frame boxes are kept upright",
            )
        sample = Sample(read_points(frame.points), POINT_FEATURES, frame.frame_id)
        raw = RawFrame(sample, {"folder": frame.folder, "image_size": size}, notes=(*notes, *calibration.notes))
        return raw if frame.folder == "testing" else _with_labels(raw, frame, calibration)


@FRAME_SOURCES.register
def kitti(root: str) -> KittiFrames:
    """KITTI's object-detection layout."""
    return KittiFrames(root)


def prepare_kitti(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    database: Sequence[str] | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> list[Summary]:
    """Prepare a folder in the KITTI layout.

    root: the data folder; the other arguments as in `pcdet_ext.data.prepare.prepare`.
    """
    return prepare(KittiFrames(root), splits, database, out, workers, on_error, progress)


def _with_labels(raw: RawFrame, frame: Frame, calibration: Calibration) -> RawFrame:
    labels = read_labels(frame.labels, with_scores=False)
    rows = boxed(labels)
    return RawFrame(
        raw.sample.replace(targets=labels_to_boxes(labels, calibration)),
        raw.extra,
        reasons=reasons_not_to_count(rows),
        unboxed=_without_box(labels),
        notes=(*raw.notes, *labels.notes),
    )


def _without_box(labels: Labels) -> tuple[str, ...]:
    objects = labels.objects()
    return objects.select(objects.dimensions.min(axis=1, initial=np.inf) <= 0).names


def _image_size(frame: Frame, calibration: Calibration) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """(height, width) of the frame's image or None, and what is to be said about it."""
    size = None if frame.image is None else read_image_size(frame.image)
    if size is not None:
        return size, () if calibration.sees_its_axis(size) else (OTHER_SIZE,)
    lacking = "no image" if frame.image is None else f"{frame.image.suffix} image that is no {KINDS}"
    size = calibration.known_image_size()
    if size is None:
        return None, (f"image size: {lacking}; data.image_size must state it where only seen points are kept",)
    if calibration.image_size is not None:
        return size, ()
    return size, (f"image size: {lacking}; {size[1]} × {size[0]}, as KITTI's own camera with this P2 has it",)
