"""Columns of points and of boxes that a configuration leaves out or changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.structures import Sample


def with_tanh(sample: Sample, columns: Sequence[str]) -> Sample:
    """The sample with tanh of some columns of its points, by name."""
    if not columns:
        return sample
    points = sample.points.copy()
    for name in columns:
        column = sample.point_features.index(name)
        points[:, column] = np.tanh(points[:, column])
    return sample.replace(points=points)


def check_tanh(columns: Sequence[str], point_features: Sequence[str]) -> None:
    """Raises ValueError where tanh is asked for of a column that is not among the points' others than x, y, z."""
    for name in columns:
        if name not in point_features[3:]:
            raise ValueError(
                f"tanh: {name!r} is none of {', '.join(point_features[3:])}{suggest(name, point_features)}"
            )


def with_velocity(sample: Sample, wanted: bool) -> Sample:
    """The sample with velocities that are all known, those that were not labelled being 0; or without any."""
    targets = sample.targets
    if targets is None or targets.boxes is None or targets.boxes.shape[1] == 7:
        return sample
    boxes = np.asarray(targets.boxes)
    boxes = np.concatenate([boxes[:, :7], np.nan_to_num(boxes[:, 7:])], axis=1) if wanted else boxes[:, :7]
    return sample.replace(targets=targets.replace(boxes=boxes))


def check_point_features(wanted: Sequence[str], available: Sequence[str]) -> None:
    """Raises ValueError unless the columns are x, y, z and then different others of those that are available."""
    unknown = [name for name in wanted if name not in available]
    if unknown:
        hint = suggest(unknown[0], available)
        raise ValueError(f"point_features must be among the columns of the points, {unknown[0]!r} is not{hint}")
    if list(wanted[:3]) != ["x", "y", "z"] or len(set(wanted)) < len(wanted):
        raise ValueError(f"point_features must be x, y, z and then different other columns, got {list(wanted)}")
