"""Steps that choose among the points of a sample, by their age or at random, and leave everything else as it is."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Draw a fixed number of points (PointRCNN, Shi et al., CVPR 2019).

    Where there are more points than wanted, all far ones are taken, if they are fewer than `number`, and the rest is
    drawn from the near ones. Where there are fewer, some are repeated.

    Args:
        points: floating-point [N, 3+], x, y and z in metres first.
        number: how many rows to return.
        rng: what draws.

    Returns:
        int64 [number]: rows of the points in a random order; empty where there is no point at all.
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


@AUGMENTATIONS.register
class PointJitter:
    """Move every point by normally distributed offsets of deviation `sigma` metres, by at most `clip` per axis."""

    def __init__(self, sigma: float = 0.01, clip: float = 0.05) -> None:
        if not 0 <= sigma < np.inf or not 0 <= clip < np.inf:
            raise ValueError(f"sigma and clip must be at least 0 and finite, got {sigma} and {clip}")
        self.sigma, self.clip = sigma, clip

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        points = sample.points.copy()
        points[:, :3] += rng.normal(0, self.sigma, (len(points), 3)).clip(-self.clip, self.clip)
        return sample.replace(points=points)


@AUGMENTATIONS.register
class PointDropout:
    """Leave out a share of the points at random, itself drawn between 0 and `most`."""

    def __init__(self, most: float = 0.1) -> None:
        if not 0 <= most < 1:
            raise ValueError(f"most must lie in [0, 1), got {most}")
        self.most = most

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return sample.select_points(rng.random(len(sample.points)) >= rng.uniform(0, self.most))


@AUGMENTATIONS.register
class BlockDropout:
    """With a probability leave out the points of a rectangle in x and y, as if something stood there or was gone.

    Args:
        probability: of leaving out any.
        share: least and largest share of the cloud's extent in x and y that the rectangle has, as areas.
    """

    def __init__(self, probability: float = 0.4, share: Sequence[float] = (0.02, 0.33)) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {probability}")
        if len(share) != 2 or not 0 < share[0] <= share[1] < 1:
            raise ValueError(f"share must be two shares in (0, 1), the smaller first, got {list(share)}")
        self.probability, self.least, self.most = probability, share[0], share[1]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability or not len(sample.points):
            return sample
        xy = sample.points[:, :2]
        low, size = xy.min(axis=0), np.ptp(xy, axis=0)
        area, ratio = rng.uniform(self.least, self.most), np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        part = np.minimum(np.sqrt([area * ratio, area / ratio]), 0.95)
        corner = low + rng.random(2) * (1 - part) * size
        inside = ((xy >= corner) & (xy <= corner + part * size)).all(axis=1)
        return sample.select_points(~inside)


@AUGMENTATIONS.register
class IntensityDropout:
    """Set the intensity of the points in some cells of a grid in x and y to 0, as on dark surfaces and on wet ones.

    A detector that is trained on these does not rely on the intensity alone.

    Args:
        share: of the cells whose intensity is lost; drawn for each frame between 0 and this.
        cell: edge of a cell in metres.

    Raises:
        ValueError: a number is outside its range.
    """

    def __init__(self, share: float = 0.5, cell: float = 4.0) -> None:
        if not 0 <= share <= 1 or not 0 < cell < np.inf:
            raise ValueError(f"share must lie in [0, 1] and cell be above 0 and finite, got {share} and {cell}")
        self.share, self.cell = share, cell

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "intensity" not in sample.point_features or not len(sample.points):
            return sample
        places = np.floor((sample.points[:, :2] + rng.uniform(0, self.cell, 2)) / self.cell).astype(np.int64)
        places -= places.min(0)
        cell = places[:, 0] * (places[:, 1].max() + 1) + places[:, 1]
        lost = rng.random(cell.max() + 1) < rng.uniform(0, self.share)
        points = sample.points.copy()
        points[lost[cell], sample.point_features.index("intensity")] = 0
        return sample.replace(points=points)
