"""Range images as points: what a rotating laser measured, pixel by pixel, in the frame of the vehicle.

A range image is float32 [H, W, C] with the channels range (metres), intensity, elongation and no-label zone (1 inside
one, -1 outside). Sun et al., CVPR 2020; the arithmetic here is in float64, that of the official tools in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdet_ext.data.geometry import transform
from pcdet_ext.structures import Array

CHANNELS = 4
POSE_CHANNELS = 6  # roll, pitch, yaw, x, y, z


@dataclass(frozen=True, eq=False)
class Laser:
    """How a laser is mounted.

    extrinsic: float64 [4, 4], laser to vehicle; inclinations: float64 [H] of its beams in ascending order, radians, or
    empty where they are evenly spread from `lowest` to `highest`.
    """

    extrinsic: Array
    inclinations: Array
    lowest: float
    highest: float

    def row_inclinations(self, height: int) -> Array:
        """float64 [height]: inclination of each row; row 0 is the highest. Raises ValueError for another height."""
        if not len(self.inclinations):
            share = (np.arange(height) + 0.5) / height
            return (share * (self.highest - self.lowest) + self.lowest)[::-1]
        if len(self.inclinations) != height:
            raise ValueError(f"range image of {height} rows, but the laser has {len(self.inclinations)} beams")
        return np.asarray(self.inclinations, np.float64)[::-1]

    def column_azimuths(self, width: int) -> Array:
        """float64 [width]: azimuth of each column in the frame of the laser."""
        share = (width - np.arange(width) - 0.5) / width
        return (share * 2 - 1) * np.pi - np.arctan2(self.extrinsic[1, 0], self.extrinsic[0, 0])


def image_points(image: Array, laser: Laser, pixel_poses: Array | None = None, pose: Array | None = None) -> Array:
    """Points float32 [N, 6] of the pixels with a range, row by row: x, y, z, intensity, elongation, no-label zone.

    Args:
        image: range image [H, W, 4].
        laser: how its laser is mounted.
        pixel_poses: [H, W, 6], roll, pitch, yaw, x, y, z of the vehicle in the world when each pixel was measured, or
            None where the vehicle counts as standing.
        pose: float64 [4, 4], vehicle to world, of the frame in which the points are wanted; needed with pixel_poses.

    Raises:
        ValueError: for shapes that do not fit together.
    """
    if image.ndim != 3 or image.shape[2] != CHANNELS:
        raise ValueError(f"range image must be [H, W, {CHANNELS}], got {list(image.shape)}")
    rows, columns = np.nonzero(image[..., 0] > 0)
    pixels = image[rows, columns].astype(np.float64)
    inclination = laser.row_inclinations(image.shape[0])[rows]
    azimuth = laser.column_azimuths(image.shape[1])[columns]
    flat = np.cos(inclination)
    direction = np.stack([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(inclination)], axis=1)
    points = transform(direction * pixels[:, :1], np.asarray(laser.extrinsic, np.float64))
    if pixel_poses is not None:
        if pose is None or pixel_poses.shape != (*image.shape[:2], POSE_CHANNELS):
            raise ValueError(
                f"poses of pixels must be {[*image.shape[:2], POSE_CHANNELS]}, got {list(pixel_poses.shape)}"
            )
        points = _moved(points, pixel_poses[rows, columns].astype(np.float64), np.asarray(pose, np.float64))
    return np.concatenate([points, pixels[:, 1:]], axis=1).astype(np.float32)


def _moved(points: Array, poses: Array, pose: Array) -> Array:
    """Points [N, 3], each in its own vehicle frame (poses [N, 6]), in the vehicle frame of one pose [4, 4]."""
    # The difference of positions first: they may be kilometres, and the points are a few metres around them.
    world = turned_by_angles(points, *poses[:, :3].T) + (poses[:, 3:] - pose[:3, 3])
    back = np.zeros((3, 4))
    back[:, :3] = np.linalg.inv(pose[:3, :3])
    return transform(world, back)


def turned_by_angles(points: Array, roll: Array, pitch: Array, yaw: Array) -> Array:
    """Turn each point by angles of its own: about x by its roll, then about y by its pitch, then about z by its yaw.

    Args:
        points: floating-point [N, 3].
        roll: [N], in radians.
        pitch: [N], likewise.
        yaw: [N], likewise.

    Returns:
        [N, 3].
    """
    x, y, z = points.T
    cos, sin = np.cos(roll), np.sin(roll)
    y, z = cos * y - sin * z, sin * y + cos * z
    cos, sin = np.cos(pitch), np.sin(pitch)
    x, z = cos * x + sin * z, cos * z - sin * x
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1)
