"""Places of sensors and vehicle: a translation and a quaternion (w, x, y, z), as nuScenes gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pcdet_ext.evaluation.quaternions import rotation_matrices
from pcdet_ext.rigid import rigid_motion
from pcdet_ext.structures import Array


@dataclass(frozen=True, eq=False)
class Pose:
    """A frame inside another one: translation float64 [3] in metres, rotation float64 [4]."""

    translation: Array
    rotation: Array

    @staticmethod
    def of(values: Sequence[float]) -> Pose:
        """From seven numbers, the translation first."""
        return Pose(np.array(values[:3], np.float64), np.array(values[3:], np.float64))

    def values(self) -> list[float]:
        """Seven numbers, the translation first."""
        return [*self.translation.tolist(), *self.rotation.tolist()]

    @property
    def turn(self) -> Array:
        """Rotation matrix float64 [3, 3]."""
        return np.asarray(rotation_matrices(self.rotation[None])[0])

    @property
    def matrix(self) -> Array:
        """float64 [4, 4]: from this frame to the outer one."""
        return matrices(self.translation[None], self.rotation[None])[0]


def matrices(translations: Array, rotations: Array) -> Array:
    """Homogeneous matrices float64 [N, 4, 4] of translations [N, 3] and quaternions [N, 4]."""
    return rigid_motion(rotation_matrices(rotations), translations)


def inverse(matrix: Array) -> Array:
    """Of a rigid motion [4, 4], as Rᵀ and -Rᵀ t."""
    back = matrix[:3, :3].T
    return rigid_motion(back, -back @ matrix[:3, 3])


def product(a: Array, b: Array) -> Array:
    """Hamilton's product of quaternions [..., 4]: the rotation b, and a after it. The sign is as it comes out."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    parts = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return np.stack(parts, axis=-1)
