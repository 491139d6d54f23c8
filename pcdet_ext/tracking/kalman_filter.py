"""Kalman filters of many boxes at once: constant velocity, places, sizes and headings measured.

Weng et al., "3D Multi-Object Tracking: A Baseline and New Evaluation Metrics", IROS 2020; as SimpleTrack sets it up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdet_ext.structures import Array

MEASURED = 7  # x, y, z, dx, dy, dz, heading; the velocity follows
SIZE = 10
HEADING = 6
FIRST_VARIANCE, FIRST_SPEED_VARIANCE = 10.0, 10_000.0


@dataclass(frozen=True, eq=False)
class Filters:
    """The state of N boxes.

    A place is coupled with its own velocity alone, and a size or a heading with nothing, so that of the covariances
    [10, 10] only these are kept: variance, float64 [N, 7], of what is measured; coupling, float64 [N, 3], of places and
    velocities; speed_variance, float64 [N, 3]. mean: float64 [N, 10], x, y, z, dx, dy, dz, heading, vx, vy, vz; time:
    float64 [N], seconds, of the last measurement.
    """

    mean: Array
    variance: Array
    coupling: Array
    speed_variance: Array
    time: Array

    def __len__(self) -> int:
        return len(self.mean)

    @staticmethod
    def at(boxes: Array, time: float) -> Filters:
        """New filters of boxes float64 [N, 7], which do not move."""
        count = len(boxes)
        return Filters(
            mean=np.concatenate([boxes, np.zeros((count, SIZE - MEASURED))], axis=1),
            variance=np.full((count, MEASURED), FIRST_VARIANCE),
            coupling=np.zeros((count, 3)),
            speed_variance=np.full((count, 3), FIRST_SPEED_VARIANCE),
            time=np.full(count, float(time)),
        )

    def select(self, keep: Array) -> Filters:
        """The filters that `keep` (bool [N] or int64 [K]) picks."""
        return Filters(**{name: column[keep] for name, column in vars(self).items()})

    def joined(self, other: Filters) -> Filters:
        """These, and then others."""
        columns = vars(self).items()
        return Filters(**{name: np.concatenate([column, getattr(other, name)]) for name, column in columns})

    def predicted(self, time: float) -> Array:
        """Where the boxes are expected, float64 [N, 10]; nothing is changed by asking."""
        mean = self.mean.copy()
        mean[:, :3] += (time - self.time)[:, None] * self.mean[:, MEASURED:]
        mean[:, HEADING] = wrapped(mean[:, HEADING])
        return mean

    def updated(self, rows: Array, measured: Array, time: float) -> Filters:
        """The filters after boxes were measured.

        The uncertainty is carried over the whole time since the last measurement in one step, with a variance of 1
        added to everything; that of a measurement is 1 too. A heading measured the other way round turns that of the
        state by half a turn first.

        Args:
            rows: int64 [K], the filters that were measured.
            measured: float64 [K, 7].
            time: of the measurement, seconds.
        """
        if not len(rows):
            return self
        old, elapsed = self.select(rows), (time - self.time[rows])[:, None]
        mean = old.predicted(time)
        speed_variance = old.speed_variance + 1
        coupling = old.coupling + elapsed * old.speed_variance
        variance = old.variance + 1
        variance[:, :3] += elapsed * (old.coupling + coupling)
        seen = measured.copy()
        seen[:, HEADING] = wrapped(measured[:, HEADING])
        mean[:, HEADING] = _turned(mean[:, HEADING], seen[:, HEADING])
        error = seen - mean[:, :MEASURED]
        gain, speed_gain = variance / (variance + 1), coupling / (variance[:, :3] + 1)
        mean[:, :MEASURED] += gain * error
        mean[:, MEASURED:] += speed_gain * error[:, :3]
        mean[:, HEADING] = wrapped(mean[:, HEADING])
        new = Filters(
            mean=mean,
            variance=variance * (1 - gain),
            coupling=coupling * (1 - gain[:, :3]),
            speed_variance=speed_variance - speed_gain * coupling,
            time=np.full(len(rows), float(time)),
        )
        changed = Filters(**{name: column.copy() for name, column in vars(self).items()})
        for name, column in vars(changed).items():
            column[rows] = getattr(new, name)
        return changed


def wrapped(angle: Array) -> Array:
    """Angles brought nearer to [-π, π) by one full turn where they lie outside."""
    angle = np.where(angle >= np.pi, angle - 2 * np.pi, angle)
    return np.where(angle < -np.pi, angle + 2 * np.pi, angle)


def _turned(own: Array, seen: Array) -> Array:
    """Headings turned by half a turn, and then by a full one, so that they lie near the measured ones."""
    gap = np.abs(seen - own)
    half = (gap > np.pi / 2) & (gap < 1.5 * np.pi)
    own = np.where(half, own + np.pi, own)
    own = np.where(half & (own > np.pi), own - 2 * np.pi, own)
    own = np.where(half & (own < -np.pi), own + 2 * np.pi, own)
    far = np.abs(seen - own) >= 1.5 * np.pi
    return np.where(far, own + np.where(seen > 0, 2 * np.pi, -2 * np.pi), own)
