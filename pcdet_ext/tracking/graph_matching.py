"""Matches out of affinities between tracks and detections."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from pcdet_ext.structures import Array

IMPOSSIBLE = 1e18


def matches(affinity: Array, allowed: Array, threshold: float, optimal: bool = False) -> tuple[Array, Array, Array]:
    """Pairs of tracks and detections.

    Args:
        affinity: float [T, N], from 0 to 1.
        allowed: bool [T, N].
        threshold: affinity above which a pair may be one.
        optimal: take the pairs with the largest total; otherwise each detection takes the best free track in turn.

    Returns:
        Pairs int64 [K, 2] (track, detection), then tracks and detections that are left over; those whose optimal pair
        was undone come last.
    """
    valid = allowed & (affinity > threshold)
    pairs = _optimal(affinity, valid) if optimal else _greedy(affinity, valid)
    good = valid[pairs[:, 0], pairs[:, 1]]
    undone = pairs[~good]
    left = []
    for side, count in enumerate(affinity.shape):
        never = np.setdiff1d(np.arange(count), pairs[:, side])
        left.append(np.concatenate([never, undone[:, side]]))
    return pairs[good], left[0], left[1]


def _optimal(affinity: Array, valid: Array) -> Array:
    rows, columns = linear_sum_assignment(np.where(valid, -affinity.astype(np.float64), IMPOSSIBLE))
    return np.stack([rows, columns], axis=1).astype(np.int64)


def _greedy(affinity: Array, valid: Array) -> Array:
    free, pairs = np.ones(len(affinity), bool), []
    for detection in range(affinity.shape[1]):
        candidates = np.flatnonzero(valid[:, detection] & free)
        if len(candidates):
            track = int(candidates[affinity[candidates, detection].argmax()])
            free[track] = False
            pairs.append((track, detection))
    return np.array(pairs, np.int64).reshape(-1, 2)
