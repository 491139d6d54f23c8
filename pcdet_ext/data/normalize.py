"""Bringing a cloud into the cube [-1, 1]³ or a cylinder in it, as octrees of whole clouds want it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CloudNormalization:
    """How whole clouds are brought into the cube: settings of `normalize_cloud`, or normalize=False to leave them.

    cylindrical: then into cylindrical coordinates, see `to_cylindrical`.
    """

    normalize: bool = True
    scale_factor: float | None = None
    unit_sphere: bool = False
    centre: bool = True
    cylindrical: bool = False

    def __call__(self, points: Tensor) -> Tensor:
        """Those of the points [P, 3] that are in the cube, or the cylinder in it, in its coordinates, [K, 3].

        Raises ValueError for a cloud of which nothing is left.
        """
        if self.normalize and len(points):
            points = normalize_cloud(points, self.scale_factor, self.unit_sphere, self.centre)
        keep = inside_unit_cube(points)
        if self.cylindrical:
            keep &= inside_unit_cylinder(points)
        if not bool(keep.any()):
            shape = "cylinder" if self.cylindrical else "cube"
            raise ValueError(f"none of the cloud's {len(points)} points is in the unit {shape}: nothing is left")
        return to_cylindrical(points[keep]) if self.cylindrical else points[keep]


def normalize_cloud(
    points: Tensor, scale_factor: float | None = None, unit_sphere: bool = False, centre: bool = True
) -> Tensor:
    """Move and scale a cloud (HOTFormerLoc, Griffiths et al., CVPR 2025).

    By default the middle of the bounding box moves to the origin and its longest side gets the length 2.

    Args:
        points: floating-point [P, 3] (x, y, z) in metres.
        scale_factor: metres that become 1, instead of a scale that follows from the cloud.
        unit_sphere: whether the mean moves to the origin instead, and the farthest point gets the distance 1.
        centre: False leaves the origin where it is.

    Returns:
        [P, 3] of the same dtype.

    Raises:
        ValueError: the cloud has no points, or the scale is not positive.
    """
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"points must be [P, 3] with at least one point, got {list(points.shape)}")
    if scale_factor is not None and scale_factor <= 0:
        raise ValueError(f"scale_factor must be positive, got {scale_factor}")
    low, high = points.amin(0), points.amax(0)
    if centre:
        points = points - (points.mean(0) if unit_sphere else (low + high) * 0.5)
    if scale_factor is not None:
        return points / scale_factor
    if unit_sphere:
        return points / points.norm(dim=1).max()
    return points * (2.0 / ((high - low).max() + 1e-6))


def inside_unit_cube(points: Tensor) -> Tensor:
    """Which points [P, 3] have all coordinates in [-1, 1]; bool [P]."""
    return (points.abs() <= 1).all(1)


def inside_unit_cylinder(points: Tensor) -> Tensor:
    """Which points [P, 3] are at most 1 from the z axis; bool [P]."""
    return points[:, 0].square().add(points[:, 1].square()).sqrt() <= 1


def to_cylindrical(points: Tensor) -> Tensor:
    """Points [P, 3] inside the unit cylinder as (distance from the z axis, angle, z), each in [-1, 1]; float32.

    The angle starts and ends at the negative x axis; it does not wrap.
    """
    distance = points[:, 0].square().add(points[:, 1].square()).sqrt()
    angle = torch.atan2(points[:, 1], points[:, 0])
    distance = 2 * distance.double().clamp(0, 1) - 1
    angle = (angle.double().clamp(-math.pi, math.pi) + math.pi) * (1 / math.pi) - 1
    return torch.stack([distance.float(), angle.float(), points[:, 2]], 1).clamp(-1, 1)
