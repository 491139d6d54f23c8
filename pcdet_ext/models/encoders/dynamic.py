"""Dynamic voxels, which keep every point (MVF, Zhou et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pcdet_ext.models.encoders.point_net import PointNet
from pcdet_ext.models.encoders.registry import ENCODERS
from pcdet_ext.ops import dynamic_voxelize, segment_reduce
from pcdet_ext.structures import PointBatch, SparseVoxels


class DynamicVoxels:
    """Voxelisation that keeps every point inside the range."""

    point_cloud_range: tuple[float, ...]
    voxel_size: tuple[float, ...]
    grid: tuple[int, int, int]
    x_major: bool
    clamp = False  # points outside count for the cell at the border
    drop_first = False  # each frame lacks its first voxel
    pillars = False  # columns of the whole height: z is neither divided nor checked

    def _assign(self, batch: PointBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points inside [R, F], the voxel of each, int64 [R], the voxels' coords int32 [N, 4], and the voxel of every
        point of the batch, int64 [P], -1 outside."""
        order: Literal["xyz", "zyx"] = "xyz" if self.x_major else "zyx"
        points = self._clamped(batch.points) if self.clamp else batch.points
        coords, voxel = dynamic_voxelize(
            points, batch.batch_index, self.point_cloud_range, self.voxel_size, order, self.pillars
        )
        if self.drop_first:
            coords, voxel = _without_first(coords, voxel)
        inside = voxel >= 0
        return batch.points[inside], voxel[inside], coords, voxel

    def _clamped(self, points: Tensor) -> Tensor:
        """Points whose finite x, y, z are moved into the cells at the border, [P, 3]."""
        low, size = points.new_tensor(self.point_cloud_range[:3]), points.new_tensor(self.voxel_size)
        xyz = points[:, :3]
        inside = torch.clamp(xyz, low, low + (points.new_tensor(self.grid[::-1]) - 0.5) * size)
        return torch.where(xyz.isfinite(), inside, xyz)


def _without_first(coords: Tensor, voxel: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted coords [N, 4] without the first voxel of each frame, and the voxel of each point, -1 in those."""
    kept = coords[:, 0] == torch.nn.functional.pad(coords[:-1, 0], (1, 0), value=-1)[: len(coords)]
    number = torch.where(kept, kept.cumsum(0) - 1, -1)
    number = torch.cat([number, number.new_full((1,), -1)])  # the last is that of voxel -1
    return coords[kept], number[voxel]


class DynamicPointNet(PointNet, DynamicVoxels):
    """Dynamic voxels through point feature layers.

    Args:
        in_channels: columns of a point.
        point_cloud_range: x, y and z minimum, then their maximum, in metres.
        voxel_size: along x, y and z, in metres.
        num_filters: width of each layer.
        with_distance: whether the distance of a point from the origin is a feature.
        use_absolute_xyz: whether x, y and z themselves are features.
        use_norm: whether layers have a batch norm instead of a bias.
        x_major: whether rows ascend by (batch, x, y, z), as published implementations give them, instead of in the
            order of `dynamic_voxelize`.
        clamp: whether points outside of the range count for the nearest cell instead of being left out, a quirk of the
            published FlatFormer.
        drop_first: whether in each frame the voxel of the lowest (z, y, x) vanishes with its points, another one.

    Raises:
        ValueError: a width is impossible, or `x_major` and `drop_first` come together.
    """

    cluster_offset = True

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        num_filters: Sequence[int] = (64, 64),
        with_distance: bool = False,
        use_absolute_xyz: bool = True,
        use_norm: bool = True,
        x_major: bool = False,
        clamp: bool = False,
        drop_first: bool = False,
    ) -> None:
        offsets = 2 if self.cluster_offset else 1
        super().__init__(
            in_channels, point_cloud_range, voxel_size, num_filters, with_distance, use_absolute_xyz, use_norm, offsets
        )
        if x_major and drop_first:
            raise ValueError("drop_first goes by (z, y, x): x_major must be False with it")
        self.x_major, self.clamp, self.drop_first = x_major, clamp, drop_first
        if self.pillars:
            self.grid = (1, *self.grid[1:])

    def forward(self, batch: PointBatch) -> SparseVoxels:
        """Features [N, num_filters[-1]] of the occupied voxels of a batch."""
        points, index, coords, of_points = self._assign(batch)
        mean = None
        if self.cluster_offset:
            mean = segment_reduce(points[:, :3].contiguous(), index, len(coords), reduce="mean")
        rows = self._describe(points, index, coords, mean)
        features, kept = self._run(rows, index, len(coords)), of_points if self.keep_point_index else None
        return SparseVoxels(features, coords, self.grid, batch.batch_size, point_index=kept)


@ENCODERS.register
class DynamicVoxelVFE(DynamicPointNet):
    __doc__ = DynamicPointNet.__doc__


@ENCODERS.register
class DynamicPillarVFE(DynamicPointNet):
    __doc__ = f"Pillars of the whole height; z is not checked against the range.\n\n{DynamicPointNet.__doc__}"
    pillars = True


@ENCODERS.register
class DynamicPillarVFESimple2D(DynamicPointNet):
    __doc__ = (
        "Pillars whose points carry the offset from the centre, but none from their mean (PillarNet, Shi et al., "
        f"ECCV 2022).\n\n{DynamicPointNet.__doc__}"
    )
    pillars = True
    cluster_offset = False

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        num_filters: Sequence[int] = (32,),
        with_distance: bool = False,
        use_absolute_xyz: bool = True,
        use_norm: bool = True,
        x_major: bool = False,
    ) -> None:
        super().__init__(
            in_channels, point_cloud_range, voxel_size, num_filters, with_distance, use_absolute_xyz, use_norm, x_major
        )
