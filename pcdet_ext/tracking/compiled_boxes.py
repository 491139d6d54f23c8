"""Overlaps of upright boxes in float64, compiled with numba the first time and kept on disk.

numba is slow to import, so this module is imported where boxes are compared and not before.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pcdet_ext.evaluation.compiled_rectangles import corners as rectangle
from pcdet_ext.structures import Array

IOU, GIOU, PUBLISHED_IOU = 0, 1, 2
MOST_CORNERS = 16
GUARD = 1e-5  # in the published denominator of the 3-D overlap, cubic metres


@njit(cache=True)
def corners(box: Array) -> Array:
    """Corners [4, 2] of a box (x, y, z, dx, dy, dz, heading) from above, counter-clockwise."""
    return rectangle(box[0], box[1], box[3], box[4], box[6])


@njit(cache=True)
def common_area(a: Array, b: Array) -> float:
    """Area of the intersection of two convex polygons [4, 2], counter-clockwise (Sutherland and Hodgman 1974)."""
    polygon, other = np.empty((MOST_CORNERS, 2)), np.empty((MOST_CORNERS, 2))
    polygon[:4] = a
    count = 4
    for edge in range(4):
        x0, y0 = b[edge]
        dx, dy = b[(edge + 1) % 4, 0] - x0, b[(edge + 1) % 4, 1] - y0
        kept = 0
        for i in range(count):
            px, py = polygon[i]
            qx, qy = polygon[(i + 1) % count]
            side_p, side_q = dx * (py - y0) - dy * (px - x0), dx * (qy - y0) - dy * (qx - x0)
            if side_p >= 0:
                other[kept, 0], other[kept, 1] = px, py
                kept += 1
            if (side_p > 0 and side_q < 0) or (side_p < 0 and side_q > 0):
                share = side_p / (side_p - side_q)
                other[kept, 0], other[kept, 1] = px + share * (qx - px), py + share * (qy - py)
                kept += 1
        polygon, other, count = other, polygon, kept
        if count == 0:
            return 0.0
    return polygon_area(polygon, count)


@njit(cache=True)
def polygon_area(points: Array, count: int) -> float:
    """Area of the polygon of the first points [N, 2], counter-clockwise."""
    doubled = 0.0
    for i in range(1, count - 1):
        ax, ay = points[i, 0] - points[0, 0], points[i, 1] - points[0, 1]
        bx, by = points[i + 1, 0] - points[0, 0], points[i + 1, 1] - points[0, 1]
        doubled += ax * by - ay * bx
    return doubled / 2


@njit(cache=True)
def hull_area(a: Array, b: Array) -> float:
    """Area of the convex hull of two sets of corners [4, 2] (Andrew's monotone chain, 1979)."""
    points = np.empty((8, 2))
    for n in range(8):
        x, y = a[n] if n < 4 else b[n - 4]
        i = n
        while i > 0 and (points[i - 1, 0] > x or (points[i - 1, 0] == x and points[i - 1, 1] > y)):
            points[i, 0], points[i, 1] = points[i - 1, 0], points[i - 1, 1]
            i -= 1
        points[i, 0], points[i, 1] = x, y
    hull = np.empty((MOST_CORNERS, 2))
    count = 0
    for turn in range(2):
        first = count
        for n in range(8):
            x, y = points[n] if turn == 0 else points[7 - n]
            while count >= first + 2:
                ax, ay = hull[count - 1, 0] - hull[count - 2, 0], hull[count - 1, 1] - hull[count - 2, 1]
                if ax * (y - hull[count - 2, 1]) - ay * (x - hull[count - 2, 0]) > 0:
                    break
                count -= 1
            hull[count, 0], hull[count, 1] = x, y
            count += 1
        count -= 1  # the last point of each half is the first of the other
    return polygon_area(hull, count)


@njit(cache=True)
def overlap(a: Array, b: Array, corners_a: Array, corners_b: Array, kind: int) -> float:
    """IoU or generalised IoU (Rezatofighi et al. 2019) of two boxes in 3-D.

    Boxes so small that they have no volume in float64 have no overlap: their IoU is 0, the generalised one -1.
    PUBLISHED_IOU is SimpleTrack's: the common height of two boxes of which one spans the other is too large there.

    Args:
        a: float64 [7], the one box.
        b: float64 [7], the other.
        corners_a: float64 [4, 2], the corners of its footprint.
        corners_b: float64 [4, 2], those of the other.
        kind: one of the constants of this module.
    """
    reach = (np.hypot(a[3], a[4]) + np.hypot(b[3], b[4])) / 2
    flat = 0.0
    if np.hypot(a[0] - b[0], a[1] - b[1]) <= reach * (1 + 1e-9):
        flat = common_area(corners_a, corners_b)
    up, down = a[2] + a[5] / 2 - (b[2] - b[5] / 2), b[2] + b[5] / 2 - (a[2] - a[5] / 2)
    volumes = a[3] * a[4] * a[5] + b[3] * b[4] * b[5]
    common = flat * max(0.0, min(up, down, a[5], b[5]))
    if kind == PUBLISHED_IOU:
        common = flat * max(0.0, min(up, down))
    if kind != GIOU:
        return common / (volumes - common + GUARD)
    union = volumes - common
    around = hull_area(corners_a, corners_b) * max(up, down, a[5], b[5])
    if union <= 0 or around <= 0:
        return -1.0
    return common / union - (around - union) / around


@njit(cache=True)
def overlaps(first: Array, second: Array, kind: int) -> Array:
    """Overlaps of all pairs of boxes.

    Args:
        first: float64 [N, 7].
        second: float64 [M, 7].
        kind: see `overlap`.

    Returns:
        float64 [N, M].
    """
    table = np.empty((len(first), len(second)))
    others = np.empty((len(second), 4, 2))
    for j in range(len(second)):
        others[j] = corners(second[j])
    for i in range(len(first)):
        own = corners(first[i])
        for j in range(len(second)):
            table[i, j] = overlap(first[i], second[j], own, others[j], kind)
    return table


@njit(cache=True)
def overlap_of_rows(first: Array, second: Array, kind: int) -> Array:
    """Overlaps of the boxes in equal rows.

    Args:
        first: float64 [N, 7].
        second: float64 [N, 7].
        kind: see `overlap`.

    Returns:
        float64 [N].
    """
    found = np.empty(len(first))
    for i in range(len(first)):
        found[i] = overlap(first[i], second[i], corners(first[i]), corners(second[i]), kind)
    return found


@njit(cache=True)
def flat_iou_of_rows(first: Array, second: Array) -> Array:
    """IoU from above, float64 [N], of boxes [N, 7] row by row."""
    found = np.empty(len(first))
    for i in range(len(first)):
        common = common_area(corners(first[i]), corners(second[i]))
        union = first[i, 3] * first[i, 4] + second[i, 3] * second[i, 4] - common
        found[i] = common / union if union > 0 else 0.0
    return found


@njit(cache=True)
def without_overlapping(boxes: Array, label: Array, order: Array, limit: float, kind: int) -> Array:
    """The boxes that stay when each removes worse ones of its class; one without a size goes too.

    Args:
        boxes: float64 [N, 7].
        label: int64 [N].
        order: int64 [N], rows, the best first.
        limit: overlap above which the worse box goes.
        kind: see `overlap`.

    Returns:
        Rows int64 [K], in the given order.
    """
    kept = np.empty(len(order), np.int64)
    points = np.empty((len(boxes), 4, 2))
    for i in range(len(boxes)):
        points[i] = corners(boxes[i])
    count = 0
    for i in order:
        good = boxes[i, 3] > 0 and boxes[i, 4] > 0 and boxes[i, 5] > 0
        for k in range(count):
            j = kept[k]
            if good and label[i] == label[j] and overlap(boxes[j], boxes[i], points[j], points[i], kind) > limit:
                good = False
        if good:
            kept[count] = i
            count += 1
    return kept[:count]
