"""Kalman filters of many boxes at once: constant velocity, places, sizes and headings measured.

Weng et al., "3D Multi-Object Tracking: A Baseline and New Evaluation Metrics", IROS 2020; as SimpleTrack sets it up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pcdet_ext.structures import Array

MEASURED = 7  # x, y, z, dx, dy, dz, heading; the velocity follows
SIZE = 10
HEADING = 6
FIRST_VARIANCE = np.array([10.0] * MEASURED + [10_000.0] * 3)


@dataclass(frozen=True, eq=False)
class Filters:
    """The state of N boxes.

    mean: float64 [N, 10], x, y, z, dx, dy, dz, heading, vx, vy, vz; covariance: float64 [N, 10, 10]; time: float64 [N],
    seconds, of the last measurement.
    """

    mean: Array
    covariance: Array
    time: Array

    def __len__(self) -> int:
        return len(self.mean)

    @staticmethod
    def at(boxes: Array, time: float) -> Filters:
        """New filters of boxes float64 [N, 7], which do not move."""
        mean = np.concatenate([boxes, np.zeros((len(boxes), SIZE - MEASURED))], axis=1)
        covariance = np.tile(np.diag(FIRST_VARIANCE), (len(boxes), 1, 1))
        return Filters(mean, covariance, np.full(len(boxes), float(time)))

    def select(self, keep: Array) -> Filters:
        """The filters that `keep` (bool [N] or int64 [K]) picks."""
        return Filters(self.mean[keep], self.covariance[keep], self.time[keep])

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
        """After boxes float64 [K, 7] were measured for some rows int64 [K], at a time.

        The uncertainty is carried over the whole time since the last measurement in one step. A heading measured the
        other way round turns that of the state by half a turn first.
        """
        if not len(rows):
            return self
        move = np.tile(np.eye(SIZE), (len(rows), 1, 1))
        move[:, [0, 1, 2], [7, 8, 9]] = (time - self.time[rows])[:, None]
        mean = self.predicted(time)[rows]
        covariance = move @ self.covariance[rows] @ move.transpose(0, 2, 1) + np.eye(SIZE)
        seen = measured.copy()
        seen[:, HEADING] = wrapped(measured[:, HEADING])
        mean[:, HEADING] = _turned(mean[:, HEADING], seen[:, HEADING])
        noise = np.eye(MEASURED)
        gain = covariance[:, :, :MEASURED] @ np.linalg.inv(covariance[:, :MEASURED, :MEASURED] + noise)
        mean += (gain @ (seen - mean[:, :MEASURED])[..., None])[..., 0]
        mean[:, HEADING] = wrapped(mean[:, HEADING])
        rest = np.tile(np.eye(SIZE), (len(rows), 1, 1))
        rest[:, :, :MEASURED] -= gain
        covariance = rest @ covariance @ rest.transpose(0, 2, 1) + gain @ noise @ gain.transpose(0, 2, 1)
        return self._with(rows, mean, covariance, time)

    def _with(self, rows: Array, mean: Array, covariance: Array, time: float) -> Filters:
        new = Filters(self.mean.copy(), self.covariance.copy(), self.time.copy())
        new.mean[rows], new.covariance[rows], new.time[rows] = mean, covariance, time
        return replace(new)


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
