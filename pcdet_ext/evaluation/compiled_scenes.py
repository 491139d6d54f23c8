"""The loops of the metrics of maps and plans, compiled with numba the first time and kept on disk."""

from __future__ import annotations

import numpy as np
from numba import njit

from pcdet_ext.evaluation.compiled_rectangles import corners
from pcdet_ext.structures import Array


@njit(cache=True)
def count_above(found: Array, truth: Array, thresholds: Array) -> Array:
    """How many cells reach how many thresholds.

    Args:
        found: float32 [C, K], probabilities; NaN reaches no threshold.
        truth: uint8 [C, K], 0 or 1.
        thresholds: float32 [T], ascending.

    Returns:
        int64 [C, 2, T + 1], by class, truth, and number of thresholds reached.
    """
    counts = np.zeros((found.shape[0], 2, len(thresholds) + 1), np.int64)
    for c in range(found.shape[0]):
        for k in range(found.shape[1]):
            value, reached = found[c, k], 0
            for threshold in thresholds:
                reached += value >= threshold
            counts[c, truth[c, k], reached] += 1
    return counts


@njit(cache=True)
def touch(a: Array, b: Array, yaw_a: float, yaw_b: float) -> bool:
    """Whether two rectangles have a point in common, on their borders too (by the theorem of separating axes).

    Args:
        a: corners float64 [4, 2] of the one.
        b: corners float64 [4, 2] of the other.
        yaw_a, yaw_b: their headings in radians.
    """
    for axis in range(4):
        yaw = yaw_a if axis < 2 else yaw_b
        x, y = (np.cos(yaw), np.sin(yaw)) if axis % 2 == 0 else (-np.sin(yaw), np.cos(yaw))
        low_a = low_b = np.inf
        high_a = high_b = -np.inf
        for i in range(4):
            place_a, place_b = a[i, 0] * x + a[i, 1] * y, b[i, 0] * x + b[i, 1] * y
            low_a, high_a = min(low_a, place_a), max(high_a, place_a)
            low_b, high_b = min(low_b, place_b), max(high_b, place_b)
        if high_a < low_b or high_b < low_a:
            return False
    return True


@njit(cache=True)
def collisions(egos: Array, size: Array, starts: Array, boxes: Array) -> Array:
    """Whether each vehicle's rectangle touches a box of its own list.

    Args:
        egos: float64 [K, 3], centre and heading.
        size: float64 [2], length and width.
        starts: int64 [K + 1], rows of each one's boxes.
        boxes: float64 [B, 5] (x, y, length, width, yaw).

    Returns:
        bool [K].
    """
    found = np.zeros(len(egos), np.bool_)
    reach = np.hypot(size[0], size[1]) / 2
    for k in range(len(egos)):
        own = corners(egos[k, 0], egos[k, 1], size[0], size[1], egos[k, 2])
        for j in range(starts[k], starts[k + 1]):
            x, y, length, width, yaw = boxes[j]
            gap = np.hypot(x - egos[k, 0], y - egos[k, 1])
            if gap > (reach + np.hypot(length, width) / 2) * (1 + 1e-9):
                continue
            if touch(own, corners(x, y, length, width, yaw), egos[k, 2], yaw):
                found[k] = True
                break
    return found


@njit(cache=True)
def forecast_hits(
    sample: Array,
    centers: Array,
    modes: Array,
    starts: Array,
    objects: Array,
    paths: Array,
    lengths: Array,
    limit: float,
) -> int:
    """How many detections find the nearest free object of their sample, and where it ends up.

    Only a detection for which both are near enough takes the object; an object without a future is never found.

    Args:
        sample: int64 [D], sample of each detection, the best detection first.
        centers: float64 [D, 2], metres.
        modes: float32 [D, M, T, 2], forecast places.
        starts: int64 [S + 1], rows of each sample's objects.
        objects: float64 [G, 2], centres.
        paths: float64 [G, T, 2], true places.
        lengths: int64 [G], how many of them are known.
        limit: metres, for the centre and for the last place.
    """
    free = np.ones(len(objects), np.bool_)
    hits = 0
    for i in range(len(sample)):
        nearest, best = np.inf, -1
        for j in range(starts[sample[i]], starts[sample[i] + 1]):
            if free[j]:
                gap = np.hypot(objects[j, 0] - centers[i, 0], objects[j, 1] - centers[i, 1])
                if gap < nearest:
                    nearest, best = gap, j
        if not nearest < limit or lengths[best] == 0:
            continue
        last = lengths[best] - 1
        for m in range(modes.shape[1]):
            dx = modes[i, m, last, 0] - paths[best, last, 0]
            dy = modes[i, m, last, 1] - paths[best, last, 1]
            if np.sqrt(dx * dx + dy * dy) < limit:
                hits += 1
                free[best] = False
                break
    return hits
