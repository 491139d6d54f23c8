"""Rotations as quaternions (w, x, y, z), in which nuScenes and Argoverse 2 give them."""

from __future__ import annotations

import numpy as np

from pcdet_ext.structures import Array

SHORTEST, LONGEST = 1e-3, 1e3  # lengths that a quaternion may have, which should be 1


def no_rotations(quaternions: Array) -> Array:
    """int64 [K]: which of quaternions [N, 4] are too far from length 1, or from being finite, to be a rotation."""
    with np.errstate(over="ignore"):
        length = np.linalg.norm(quaternions, axis=1)
    return np.flatnonzero(~((length >= SHORTEST) & (length <= LONGEST)))


def why_no_rotation(quaternion: Array) -> str:
    """What is wrong with one of those [4], in words."""
    if not quaternion.any():
        return "a rotation of zeros is none"
    return f"rotation must be a quaternion of length 1, is {quaternion.tolist()}"


def rotation_matrices(quaternions: Array) -> Array:
    """Rotation matrices [N, 3, 3] of quaternions [N, 4], which need not have length 1."""
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0).reshape(-1, 3, 3)


def yaws(quaternions: Array) -> Array:
    """Heading float64 [N] in radians: direction of the rotated x axis in the ground plane."""
    matrices = rotation_matrices(quaternions)
    return np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
