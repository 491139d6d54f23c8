"""Geometry of points and boxes in NumPy, as the data side needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pcdet_ext.rigid import from_box_frames
from pcdet_ext.structures import Array

PIECE = 16_384  # points, a few hundred kilobytes

_CORNERS = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)], np.float32)


def transform(xyz: Array, matrix: Array) -> Array:
    """Points [N, 3+] through a matrix [3 or 4, 4], such as a pose: float64 [N, 3].

    Column by column: NumPy hands a matrix product of many rows to a BLAS library, whose waiting threads take several
    times the processor time of the product itself, in every loader worker. Piece by piece, so that what is computed on
    the way stays in the cache.
    """
    moved = np.empty((3, len(xyz)))
    for piece in pieces(len(xyz)):
        x, y, z = np.array(xyz[piece, :3].T, np.float64, order="C")
        for row, (a, b, c, offset) in zip(moved, matrix[:3], strict=True):
            row[piece] = a * x + b * y + c * z + offset
    return moved.T


def pieces(count: int) -> Iterator[slice]:
    """Slices of so many points that go through the processor's cache, one after the other."""
    return (slice(start, start + PIECE) for start in range(0, count, PIECE))


def turned(xy: Array, angle: float) -> Array:
    """Vectors [N, 2] turned by `angle` radians, counter-clockwise, in their own dtype; see `transform`."""
    cos, sin = np.array([np.cos(angle), np.sin(angle)], xy.dtype)
    return np.stack([cos * xy[:, 0] - sin * xy[:, 1], sin * xy[:, 0] + cos * xy[:, 1]], axis=1)


def inside_boxes(points: Array, boxes: Array, margin: float = 0.0) -> Array:
    """Which points lie in which boxes; the border belongs to the box.

    Args:
        points: floating-point [N, 3+], x, y and z in metres first.
        boxes: floating-point [M, 7+] (x, y, z, dx, dy, dz, heading), z at the centre.
        margin: metres by which each box is widened on its four upright sides.

    Returns:
        bool [M, N].
    """
    inside = np.zeros((len(boxes), len(points)), bool)
    for row, box in zip(inside, boxes, strict=True):
        # The exact test is for the few points in the square around the box only.
        reach = np.hypot(box[3], box[4]) / 2 + 2 * margin
        near = np.flatnonzero((np.abs(points[:, 0] - box[0]) <= reach) & (np.abs(points[:, 1] - box[1]) <= reach))
        x, y, z = (points[near, :3] - box[:3]).T
        cos, sin = np.cos(box[6]), np.sin(box[6])
        along, across = np.abs(x * cos + y * sin), np.abs(y * cos - x * sin)
        row[near] = (along <= box[3] / 2 + margin) & (across <= box[4] / 2 + margin) & (np.abs(z) <= box[5] / 2)
    return inside


def footprints(boxes: Array) -> Array:
    """Corners [M, 4, 2] of boxes [M, 7+] seen from above."""
    return from_box_frames(_CORNERS, boxes)


def points_in_range(
    points: Array, point_cloud_range: Sequence[float], use_z: bool = False, closed: bool = False
) -> Array:
    """Which points lie in a range.

    Args:
        points: floating-point [N, 3+], x, y and z in metres first.
        point_cloud_range: x, y and z minimum, then their maximum, in metres.
        use_z: whether z counts as well as x and y.
        closed: whether the maximum itself is inside, as in OpenPCDet, whose voxels leave such points out after all.

    Returns:
        bool [N].
    """
    low, high = np.asarray(point_cloud_range, points.dtype).reshape(2, 3)
    inside = np.ones(len(points), bool)
    for axis in range(3 if use_z else 2):
        column = points[:, axis]
        inside &= (column >= low[axis]) & (column <= high[axis] if closed else column < high[axis])
    return inside


def finite_points(points: Array) -> tuple[Array, int]:
    """The points [N, F] without a NaN or infinite value, and how many were dropped."""
    finite = np.isfinite(points)
    if finite.all():  # the usual case, found without looking at each row
        return points, 0
    keep = finite.all(axis=1)
    return points[keep], int((~keep).sum())


def boxes_in_range(
    boxes: Array, point_cloud_range: Sequence[float], min_corners: int | None = None, closed: bool = False
) -> Array:
    """Which boxes lie in a range: by their centre, or by their corners.

    Args:
        boxes: floating-point [M, 7+] (x, y, z, dx, dy, dz, heading), z at the centre.
        point_cloud_range: x, y and z minimum, then their maximum, in metres.
        min_corners: how many of the 8 corners must be in the range of x and y; None: the centre must be in all of it.
        closed: whether the maximum itself is inside, see `points_in_range`.

    Returns:
        bool [M].
    """
    if min_corners is None:
        return points_in_range(boxes, point_cloud_range, use_z=True, closed=closed)
    corners = footprints(boxes).reshape(-1, 2)
    count = 2 * points_in_range(corners, point_cloud_range, closed=closed).reshape(-1, 4).sum(axis=1)
    return count >= min_corners


def overlap_from_above(a: Array, b: Array, margin: float = 0.0) -> Array:
    """Which boxes overlap when they are seen from above; touching is no overlap.

    Two rectangles are apart when they are on one of their four side directions (separating axis theorem).

    Args:
        a: floating-point [N, 7+] (x, y, z, dx, dy, dz, heading).
        b: floating-point [M, 7+], likewise.
        margin: metres of distance along an axis of either box that still count as overlap.

    Returns:
        bool [N, M].
    """
    offset = b[None, :, :2] - a[:, None, :2]
    half_a, half_b = a[:, None, 3:5] / 2, b[None, :, 3:5] / 2
    turn = b[None, :, 6] - a[:, None, 6]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    reach_b = [half_b[..., 0] * cos + half_b[..., 1] * sin, half_b[..., 0] * sin + half_b[..., 1] * cos]
    reach_a = [half_a[..., 0] * cos + half_a[..., 1] * sin, half_a[..., 0] * sin + half_a[..., 1] * cos]
    overlap = np.ones(offset.shape[:2], bool)
    for heading, half, reach in ((a[:, None, 6], half_a, reach_b), (b[None, :, 6], half_b, reach_a)):
        along = offset[..., 0] * np.cos(heading) + offset[..., 1] * np.sin(heading)
        across = offset[..., 1] * np.cos(heading) - offset[..., 0] * np.sin(heading)
        for axis, distance in enumerate((along, across)):
            overlap &= np.abs(distance) < half[..., axis] + reach[axis] + margin
    return overlap


def wrap_angle(angle: Array) -> Array:
    """Angles brought into [-π, π)."""
    return angle - np.floor(angle / (2 * np.pi) + 0.5) * (2 * np.pi)
