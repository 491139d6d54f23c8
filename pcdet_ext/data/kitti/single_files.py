"""Single frames from files that lie in KITTI's layout, prepared or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcdet_ext.data.kitti.calibration import Calibration
from pcdet_ext.data.kitti.labels import labels_to_boxes, read_labels
from pcdet_ext.data.kitti.results import read_detections
from pcdet_ext.data.points import XYZ, read_cloud
from pcdet_ext.structures import Detections, Sample


def read_frame_files(
    points: Path | None,
    labels: Path | None = None,
    calibration: Path | None = None,
    results: Path | None = None,
    features: Sequence[str] | None = None,
) -> tuple[Sample, Detections | None]:
    """A frame from files; labels and calibration that are not given are looked for beside the others.

    Args:
        points: any point file, or None for boxes alone.
        labels: a label file.
        calibration: needed as soon as there are labels or results.
        results: a result file, a label file with scores.
        features: the columns of the points, see `points.read_cloud`.

    Raises:
        ValueError: naming the file that is missing.
        DataError: naming the file that is damaged.
    """
    anchor = points or labels or results
    if anchor is None:
        raise ValueError("nothing to show: give a point file, a label file or a result file")
    labels = labels or _sibling(points, "label_2", ".txt")
    cloud, columns = read_cloud(points, features) if points else (np.zeros((0, len(XYZ)), np.float32), XYZ)
    sample = Sample(cloud, columns, anchor.stem)
    if labels is None and results is None:
        return sample, None
    calibration = calibration or _sibling(points or labels, "calib", ".txt")
    if calibration is None:
        raise ValueError(f"{labels or results}: no calibration file found beside it; name it with --calib")
    calib = Calibration.read(calibration)
    truth = None if labels is None else labels_to_boxes(read_labels(labels, with_scores=False), calib)
    sought = () if truth is None else truth.class_names  # a file does not say which classes its detector knows
    found = None if results is None else read_detections(results, calib, sought)
    return sample.replace(targets=truth, calibration=calib), found


def _sibling(path: Path | None, folder: str, suffix: str) -> Path | None:
    """The file of the same frame in a neighbouring folder, where there is one."""
    if path is None:
        return None
    candidate = path.resolve().parent.parent / folder / (path.stem + suffix)
    return candidate if candidate.exists() else None
