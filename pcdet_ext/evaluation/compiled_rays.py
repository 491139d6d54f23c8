"""The loops of the occupancy metrics, compiled with numba the first time and kept on disk."""

from __future__ import annotations

import numpy as np
from numba import njit

from pcdet_ext.structures import Array

MOST_STEPS = 1000
OUTSIDE = -1.0  # distance, in voxels, of a ray that never enters the grid


@njit(cache=True)
def cast_rays(
    labels: Array,
    free: int,
    starts: Array,
    ends: Array,
    wanted: Array,
) -> tuple[Array, Array]:
    """The voxel in which each ray ends, and how far along the ray leaves it.

    It is the first that is not free, else the last one inside the grid, else voxel 0 at the distance -1. A start
    outside the grid is in the voxel that truncation gives; the ray may enter the grid later. The walk is that of
    Amanatides and Woo, "A Fast Voxel Traversal Algorithm for Ray Tracing", 1987.

    Args:
        labels: uint8 [X, Y, Z].
        free: the label of empty voxels.
        starts: float32 [O, 3], in voxels from the grid's lower corner.
        ends: float32 [O, R, 3].
        wanted: bool [O, R], rays to cast.

    Returns:
        Voxels int64 [O, R], row-major numbers, and distances float32 [O, R] in voxels.
    """
    size_x, size_y, size_z = labels.shape
    flat = labels.reshape(-1)
    voxel = np.zeros(wanted.shape, np.int64)
    distance = np.full(wanted.shape, np.float32(OUTSIDE))
    for o in range(wanted.shape[0]):
        ox, oy, oz = np.float64(starts[o, 0]), np.float64(starts[o, 1]), np.float64(starts[o, 2])
        for r in range(wanted.shape[1]):
            if not wanted[o, r]:
                continue
            # The direction is rounded to float32, as in the published kernel; all that follows is not.
            way_x, way_y, way_z = (
                ends[o, r, 0] - starts[o, 0],
                ends[o, r, 1] - starts[o, 1],
                ends[o, r, 2] - starts[o, 2],
            )
            length = np.float32(np.sqrt(way_x * way_x + way_y * way_y + way_z * way_z))
            dx, dy, dz = np.float64(way_x / length), np.float64(way_y / length), np.float64(way_z / length)
            x, y, z = int(ox), int(oy), int(oz)
            step_x, step_y, step_z = 1 if dx >= 0 else -1, 1 if dy >= 0 else -1, 1 if dz >= 0 else -1
            leave_x = (x + (step_x > 0) - ox) / dx if dx != 0 else np.inf
            leave_y = (y + (step_y > 0) - oy) / dy if dy != 0 else np.inf
            leave_z = (z + (step_z > 0) - oz) / dz if dz != 0 else np.inf
            delta_x = step_x / dx if dx != 0 else np.inf
            delta_y = step_y / dy if dy != 0 else np.inf
            delta_z = step_z / dz if dz != 0 else np.inf
            place, last, along = (x * size_y + y) * size_z + z, 0, OUTSIDE
            jump_x, jump_y = step_x * size_y * size_z, step_y * size_z
            entered = False
            for _ in range(MOST_STEPS):
                inside = 0 <= x < size_x and 0 <= y < size_y and 0 <= z < size_z
                if entered and not inside:
                    break
                here = place
                if leave_x < leave_y and leave_x < leave_z:
                    leave = leave_x
                    x += step_x
                    place += jump_x
                    leave_x += delta_x
                elif not leave_x < leave_y and leave_y < leave_z:
                    leave = leave_y
                    y += step_y
                    place += jump_y
                    leave_y += delta_y
                else:
                    leave = leave_z
                    z += step_z
                    place += step_z
                    leave_z += delta_z
                if inside:
                    entered, last, along = True, here, leave
                    if flat[here] != free:
                        break
            voxel[o, r], distance[o, r] = last, along
    return voxel, distance


@njit(cache=True)
def count_voxels(truth: Array, found: Array, lidar: Array, camera: Array, classes: int) -> Array:
    """Confusion matrices int64 [3, C, C] (truth, found) of all voxels, those of the LiDAR's mask, and of the cameras'.

    Args:
        truth: uint8 [N], classes; voxels of a class that is not below `classes` do not count.
        found: uint8 [N], predicted classes, all below `classes`.
        lidar: uint8 [N], not 0 for voxels that the LiDAR sees.
        camera: uint8 [N], the same for the cameras.
        classes: C.
    """
    counts = np.zeros((3, classes, classes), np.int64)
    for i in range(len(truth)):
        if truth[i] < classes:
            counts[0, truth[i], found[i]] += 1
            if lidar[i]:
                counts[1, truth[i], found[i]] += 1
            if camera[i]:
                counts[2, truth[i], found[i]] += 1
    return counts
