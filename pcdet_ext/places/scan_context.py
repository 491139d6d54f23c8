"""Scan context (Kim and Kim, IROS 2018): the heights around a sensor in polar cells, compared in every rotation.

The descriptor of a cloud is a matrix of rings and sectors that holds in each cell the height of its highest point. Two
of them are as far apart as their columns (sectors) on average, by the cosine, in the rotation that makes them most
alike. Nothing is learned. The ring key, with which the paper searches for candidates, is left out: all frames are
compared, which finds at least as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdet_ext.structures import Array

CHUNK = 16  # queries that are compared at once


@dataclass(frozen=True)
class ScanContext:
    """What makes a descriptor, with the numbers of the paper.

    rings, sectors: cells outwards and around; radius: metres of the outermost ring; sensor_height: metres that are
    added to the heights of points, so that the ground is at 0, which is also what an empty cell has.
    Raises ValueError for numbers that are not positive.
    """

    rings: int = 20
    sectors: int = 60
    radius: float = 80.0
    sensor_height: float = 2.0

    def __post_init__(self) -> None:
        if min(self.rings, self.sectors) < 1 or self.radius <= 0:
            raise ValueError(f"rings, sectors and radius must be above 0, got {self}")

    def describe(self, points: Array) -> Array:
        """The descriptor float32 [rings, sectors] of points [N, 3+]."""
        away = np.hypot(points[:, 0], points[:, 1])
        inside = (away < self.radius) & (away > 0)
        ring = (away[inside] / self.radius * self.rings).astype(np.int64)
        turn = np.arctan2(points[inside, 1], points[inside, 0]) % (2 * np.pi)
        sector = np.minimum((turn / (2 * np.pi) * self.sectors).astype(np.int64), self.sectors - 1)
        heights = np.zeros((self.rings, self.sectors), np.float32)
        np.maximum.at(heights, (ring, sector), points[inside, 2].astype(np.float32) + np.float32(self.sensor_height))
        return heights

    def distances(self, queries: Array, database: Array) -> Array:
        """float64 [Q, N] between descriptors, each [rings, sectors] or flat: 0 for the same, 1 without likeness."""
        shape = (-1, self.rings, self.sectors)
        a, a_there = _columns(queries.reshape(shape))
        b, b_there = _columns(database.reshape(shape))
        parts = [
            _apart(a[i : i + CHUNK], a_there[i : i + CHUNK], b, b_there, self.sectors) for i in range(0, len(a), CHUNK)
        ]
        return np.concatenate([np.zeros((0, len(b))), *parts])


def _columns(contexts: Array) -> tuple[Array, Array]:
    """Fourier transforms along the sectors: of unit columns, [N, rings, F], and of which are not empty, [N, F]."""
    length = np.sqrt((contexts.astype(np.float64) ** 2).sum(1, keepdims=True))
    there = length > 0
    unit = np.divide(contexts, length, out=np.zeros(contexts.shape), where=there)
    return np.fft.rfft(unit, axis=2), np.fft.rfft(there[:, 0].astype(np.float64), axis=1)


def _apart(a: Array, a_there: Array, b: Array, b_there: Array, sectors: int) -> Array:
    """Distances [Q, N]; a correlation along the sectors has the sums of all rotations at once."""
    cosine = np.fft.irfft(np.einsum("qrf,nrf->qnf", a.conj(), b, optimize=True), sectors, axis=2)
    both = np.rint(np.fft.irfft(a_there.conj()[:, None] * b_there[None], sectors, axis=2))
    alike = np.divide(cosine, both, out=np.zeros(cosine.shape), where=both > 0)
    return 1 - alike.max(2)
