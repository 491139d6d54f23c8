"""Single frames from files of a folder of one's own data, prepared or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcdet_ext.data.custom.clouds import find_columns
from pcdet_ext.data.custom.labels import read_labels
from pcdet_ext.data.custom.layout import (
    LABEL_SUFFIXES,
    LABELS,
    POINTS,
    SETTINGS,
    find_files,
    frame_id_of,
    read_settings,
)
from pcdet_ext.data.points import XYZ, read_cloud
from pcdet_ext.structures import Detections, Sample


def data_folder(path: Path) -> Path | None:
    """The folder of one's own data that a cloud or label file lies in, None where it lies in no such folder."""
    for parent in path.resolve().parents:
        root = parent.parent
        known = (root / LABELS).is_dir() or (root / SETTINGS).exists()
        if parent.name in (POINTS, LABELS) and (root / POINTS).is_dir() and known:
            return root
    return None


def read_frame_files(
    root: Path,
    points: Path | None,
    labels: Path | None = None,
    results: Path | None = None,
    features: Sequence[str] | None = None,
) -> tuple[Sample, Detections | None]:
    """A frame from files; labels that are not given are looked for in the data folder.

    Args:
        root: the data folder.
        points: a cloud in it, or None for boxes alone.
        labels: a label file.
        results: a result file.
        features: columns of the points, see `points.read_cloud`; None for those that the folder's clouds have.

    Raises:
        DataError: naming the file that is damaged.
    """
    settings = read_settings(root)
    cloud = np.zeros((0, len(XYZ)), np.float32)
    columns: tuple[str, ...] = XYZ
    name = (labels or results or root).stem
    if points is not None:
        name = frame_id_of(points.resolve(), root.resolve() / POINTS)
        labels = labels or _labels_of(root, name)
        if features is not None:
            cloud, columns = read_cloud(points, features)
        else:
            found = find_columns(find_files(root).clouds.values(), settings)
            cloud, columns = found.read(points), found.features
    truth = None if labels is None else read_labels(labels, settings)
    found_boxes = None if results is None else read_labels(results, with_scores=True).detections(name)
    targets = None if truth is None else truth.targets(truth.has_velocity)
    return Sample(cloud, tuple(columns), name, targets), found_boxes


def _labels_of(root: Path, name: str) -> Path | None:
    files = [root / LABELS / f"{name}{suffix}" for suffix in LABEL_SUFFIXES]
    return next((file for file in files if file.exists()), None)
