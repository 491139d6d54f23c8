"""Rays of the occupancy metrics: their directions, where they start, and what they hit (RayIoU, Liu et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from pcdet_ext.structures import Array

SHAPE = (200, 200, 16)
VOXEL_SIZE = 0.4  # metres
LOWER = (-40.0, -40.0, -1.0)  # corner of the grid in the vehicle's frame, metres
FREE = 17  # label of empty voxels
AZIMUTHS = 360
STEEP = 10  # pitches below the horizon that are not evenly spaced
HIGHEST_PITCH = 0.21  # radians; pitches go on until one reaches it
MAX_ORIGINS = 8
NEAR = 39.0  # metres in x and in y that an origin may be away


@cache
def directions() -> Array:
    """Directions of the rays of one origin, float32 [14040, 3]: 39 pitches, each with 360 azimuths."""
    pitches = [-(math.pi / 2 - math.atan(k + 1)) for k in range(STEEP)]
    step = pitches[-1] - pitches[-2]
    while pitches[-1] < HIGHEST_PITCH:
        pitches.append(pitches[-1] + step)
    pitch = np.array(pitches)[:, None]
    azimuth = np.deg2rad(np.arange(AZIMUTHS))[None]
    parts = (np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch) + 0 * azimuth)
    return np.stack(parts, axis=2).reshape(-1, 3).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Pose:
    """Where a frame's LiDAR was.

    scene, token: names of the scene and of the frame; lidar_to_ego, ego_to_global: float64 [4, 4].
    """

    scene: str
    token: str
    lidar_to_ego: Array
    ego_to_global: Array


def origins(poses: Sequence[Pose], frame: int) -> Array:
    """From where rays are cast in a frame: places of the LiDAR over its whole scene, float64 [1 to 8, 3].

    In the frame of the vehicle at that frame; those more than 39 m away are left out, and of more than 8 as many are
    taken, evenly spread. The places are rounded to float32 in the LiDAR's frame first, as published.
    """
    own = poses[frame]
    back = np.linalg.inv(own.ego_to_global @ own.lidar_to_ego)
    places = np.zeros((0, 3))
    for j, other in enumerate(poses):
        if other.scene == own.scene:
            place = np.zeros(3) if j == frame else (back @ other.ego_to_global @ other.lidar_to_ego)[:3, 3]
            places = np.vstack([places, place.astype(np.float32).astype(np.float64)])
    places = places @ own.lidar_to_ego[:3, :3].T + own.lidar_to_ego[:3, 3]
    places = places[(np.abs(places[:, :2]) < NEAR).all(axis=1)]
    if len(places) > MAX_ORIGINS:
        places = places[np.round(np.linspace(0, len(places) - 1, MAX_ORIGINS)).astype(np.int64)]
    return places


@dataclass(frozen=True, eq=False)
class Hits:
    """What rays hit: voxel int64 [O, R], row-major number of the voxel; distance float32 [O, R], metres.

    A ray that never enters the grid has voxel 0 and distance -0.4 m, one that hits nothing the last voxel of its way.
    """

    voxel: Array
    distance: Array


def cast(labels: Array, starts: Array, wanted: Array | None = None, rays: Array | None = None) -> Hits:
    """Cast rays through a grid.

    Args:
        labels: uint8 [X, Y, Z] in the vehicle's frame, 17 for free voxels.
        starts: float64 [O, 3], metres.
        wanted: bool [O, R], which rays to cast, all by default; the others are as if they never entered the grid.
        rays: float32 [R, 3], directions, by default `directions()`.

    Returns:
        For each ray the first voxel that is not free, and the distance at which the ray leaves it.
    """
    from pcdet_ext.evaluation.compiled_rays import cast_rays

    rays = directions() if rays is None else rays
    size = np.float64(np.float32(VOXEL_SIZE))
    lower = np.array(LOWER)
    begin = ((starts - lower) / size).astype(np.float32)
    end = ((starts[:, None] + rays - lower) / size).astype(np.float32)
    wanted = np.ones(end.shape[:2], bool) if wanted is None else wanted
    voxel, distance = cast_rays(np.ascontiguousarray(labels), FREE, begin, end, wanted)
    return Hits(voxel, distance * np.float32(VOXEL_SIZE))
