"""Voxelisation written with basic operators, for one frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pcdet_ext.export.basics import (
    cell_coords,
    cells_of_points,
    count_up,
    inverse_of,
    rows,
    runs_of,
    unique,
)
from pcdet_ext.export.operators import argsort, scatter_rows
from pcdet_ext.ops.voxelize import _grid


def voxelize(
    points: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float], max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The form of `pcdet_ext.ops.voxelize` for export. Arguments as in that function."""
    grid = _grid(point_cloud_range, voxel_size)
    cells = cells_of_points(points, grid)
    inside = rows(cells >= 0)
    points, cells = points[inside], cells[inside]
    runs = runs_of(cells)
    appearance = argsort(runs.order[runs.first])
    number = inverse_of(appearance)[runs.place]
    place_in_run = count_up(cells) - runs.first[runs.place[runs.order]]
    slot = scatter_rows(torch.zeros_like(cells), runs.order, place_in_run, "none")
    chosen = appearance[:max_voxels]
    kept = rows((number < max_voxels) & (slot < max_points))
    place = number[kept] * max_points + slot[kept]
    empty = points.new_zeros(chosen.shape[0] * max_points, points.shape[1])
    voxels = scatter_rows(empty, place, points[kept], "none").view(-1, max_points, points.shape[1])
    held = runs.counts[chosen].clamp(max=max_points).int()
    return voxels, cell_coords(runs.distinct[chosen], grid)[:, 1:], held


def dynamic_voxelize(
    points: Tensor,
    batch_index: Tensor,
    point_cloud_range: Sequence[float],
    voxel_size: Sequence[float],
    order: str = "zyx",
    pillars: bool = False,
) -> tuple[Tensor, Tensor]:
    """The form of `pcdet_ext.ops.dynamic_voxelize` for export. Arguments as in that function; all points are of frame
    0.
    """
    grid = _grid(point_cloud_range, voxel_size, order == "xyz", pillars)
    cells = cells_of_points(points, grid)
    inside = rows(cells >= 0)
    distinct, voxel, _ = unique(cells[inside])
    outside = torch.ones_like(cells) * -1
    return cell_coords(distinct, grid), scatter_rows(outside, inside, voxel, "none")
