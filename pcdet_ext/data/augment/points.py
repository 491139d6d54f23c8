"""Steps that choose among the points of a sample, by their age or at random, and leave everything else as it is."""

from __future__ import annotations

import numpy as np

from pcdet_ext.data.augment.steps import AUGMENTATIONS
from pcdet_ext.structures import Array, Sample

FAR = 40.0  # metres from the sensor, from which on points are so few that all of them are kept
MOST_POINTS = 10**8  # of a sample that some memory holds
AGE_DECIMALS = 2  # to which the age of a point says which sweep it is of


def of_newest_sweeps(ages: Array, count: int) -> Array:
    """bool [N]: which points, by their age in seconds, are of the `count` newest sweeps; all where there are fewer."""
    ages = np.round(ages, AGE_DECIMALS)
    times = np.unique(ages)
    return ages <= times[min(count, len(times)) - 1] if len(times) else np.zeros(0, bool)


def sampled_rows(points: Array, number: int, rng: np.random.Generator) -> Array:
    """int64 [number]: rows of points [N, 3+] in a random order, exactly `number` unless there is no point at all.

    Of more points the far ones are all taken, where they are fewer than `number`, and the rest drawn from the near
    ones; fewer points are filled up with repeated ones (PointRCNN, Shi et al. 2019).
    """
    total = len(points)
    far = np.linalg.norm(points[:, :3], axis=1) >= FAR
    if total == 0:
        rows = np.zeros(0, np.int64)
    elif number >= total:
        again = rng.choice(total, number - total, replace=number > 2 * total)
        rows = np.concatenate([np.arange(total), again])
    elif number > far.sum():
        near = rng.choice(np.flatnonzero(~far), number - far.sum(), replace=False)
        rows = np.concatenate([near, np.flatnonzero(far)])
    else:
        rows = rng.choice(total, number, replace=False)
    rng.shuffle(rows)
    return rows


@AUGMENTATIONS.register
class PointSampling:
    """Draw exactly `number` points, repeating some where there are fewer; a cloud without points stays empty."""

    def __init__(self, number: int) -> None:
        if not 1 <= number <= MOST_POINTS:
            raise ValueError(f"number must lie in [1, {MOST_POINTS}], got {number}")
        self.number = number

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return sample.select_points(sampled_rows(sample.points, self.number, rng))


@AUGMENTATIONS.register
class NewestSweeps:
    """Keep the points of the `count` newest sweeps, which the column `timestamp` tells apart, and drop older ones."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.count = count

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "timestamp" not in sample.point_features:
            raise ValueError(f"NewestSweeps needs the column timestamp, points have {', '.join(sample.point_features)}")
        ages = sample.points[:, sample.point_features.index("timestamp")]
        return sample.select_points(of_newest_sweeps(ages, self.count))
