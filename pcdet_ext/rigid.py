"""Rigid motions in NumPy (poses made and checked), and boxes as rectangles that are turned and moved."""

from __future__ import annotations

import numpy as np

Array = np.ndarray  # that of `structures`, which loads torch

ROTATION_TOLERANCE = 0.01  # of products of a rotation's rows: files hold them in float32, or not quite exactly


def rigid_motion(rotation: Array, translation: Array) -> Array:
    """Homogeneous matrices float64 [..., 4, 4] of rotations [..., 3, 3] and translations [..., 3]."""
    motion = np.zeros((*np.shape(rotation)[:-2], 4, 4))
    motion[..., :3, :3], motion[..., :3, 3], motion[..., 3, 3] = rotation, translation, 1.0
    return motion


def upright_rotation(heading: float) -> Array:
    """Rotation float64 [3, 3] about the z axis, counter-clockwise by `heading` radians."""
    cos, sin = np.cos(heading), np.sin(heading)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def is_rotation(matrix: Array, tolerance: float = ROTATION_TOLERANCE) -> bool:
    """Whether a matrix [3, 3] is finite, and orthonormal up to a tolerance without being a reflection."""
    if not np.isfinite(matrix).all():
        return False
    off = np.abs(matrix @ matrix.T - np.eye(3)).max()
    return bool(off <= tolerance and np.linalg.det(matrix) > 0)


def is_rigid(pose: Array, tolerance: float = ROTATION_TOLERANCE) -> bool:
    """Whether a matrix [4, 4] is a rotation (see `is_rotation`) and a finite translation.

    Its last row is 0, 0, 0, 1: the zeros up to 1e-8, the one up to 1e-5.
    """
    last = np.allclose(pose[3], (0, 0, 0, 1))
    return bool(last and np.isfinite(pose).all() and is_rotation(pose[:3, :3], tolerance))


def check_rigid(pose: Array, tolerance: float = ROTATION_TOLERANCE) -> Array:
    """A pose as float64 [4, 4] with exactly the last row 0, 0, 0, 1.

    Args:
        pose: numbers [4, 4], from one frame to another.
        tolerance: how far the products of the rotation's rows may be from 0 and 1.

    Raises:
        ValueError: it has another shape, or is not a rotation and a finite translation with the last row 0, 0, 0, 1.
    """
    try:
        given = np.asarray([] if pose is None else pose)  # NumPy takes None for NaN
        if np.iscomplexobj(given):
            raise TypeError("complex numbers")
        matrix = given.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last: a tensor that is no plain array
        raise ValueError(f"pose must be a matrix [4, 4] of numbers, got {pose!r:.60}") from error
    if matrix.shape != (4, 4):
        got = "None" if pose is None else list(matrix.shape)
        raise ValueError(f"pose must be a matrix [4, 4] of numbers, got {got}")
    if not is_rigid(matrix, tolerance):
        raise ValueError(
            "pose must be a rotation and a translation, with the last row 0, 0, 0, 1 and all numbers finite, got "
            f"{matrix.tolist()}"
        )
    matrix[3] = 0, 0, 0, 1
    return matrix


def from_box_frames(places: Array, boxes: Array) -> Array:
    """Bring places in the frames of boxes (x forward, y left) to the frame that the boxes are in, seen from above.

    Args:
        places: [..., K, 2], relative to the half length and half width of a box: (1, 1) is its front left corner.
        boxes: [M, 7+] (x, y, z, dx, dy, dz, heading).

    Returns:
        [M, K, 2] in metres.
    """
    local = places * boxes[:, None, 3:5] / 2
    cos, sin = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    x, y = local[..., 0], local[..., 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1) + boxes[:, None, :2]
