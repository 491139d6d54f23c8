"""Hard voxels: at most `max_points` points each, and at most `max_voxels` per frame (VoxelNet, Zhou & Tuzel 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pcdet_ext.models.encoders.point_net import PointNet
from pcdet_ext.models.encoders.registry import ENCODERS
from pcdet_ext.models.layers.lookup import rows_of
from pcdet_ext.ops import dynamic_voxelize, voxelize
from pcdet_ext.structures import PointBatch, SparseVoxels

MOST = (1 << 31) - 1  # points of a voxel, and voxels: indices of 32 bits


class HardVoxels:
    """Voxelisation with caps, frame by frame."""

    point_cloud_range: tuple[float, ...]
    voxel_size: tuple[float, ...]
    training: bool
    keep_point_index: bool

    def _with_point_index(self, voxels: SparseVoxels, batch: PointBatch) -> SparseVoxels:
        """The voxels with their `point_index`, where it is to be kept; points of voxels beyond the cap have none."""
        if not self.keep_point_index:
            return voxels
        coords, voxel = dynamic_voxelize(batch.points, batch.batch_index, self.point_cloud_range, self.voxel_size)
        row = rows_of(voxels, coords)
        index = torch.where(voxel >= 0, row[voxel.clamp(min=0)], -1) if len(row) else torch.full_like(voxel, -1)
        return replace(voxels, point_index=index)

    def _set_caps(self, max_points: int, max_voxels: int | Sequence[int]) -> None:
        caps = (max_voxels, max_voxels) if isinstance(max_voxels, int) else tuple(max_voxels)
        if len(caps) != 2 or not all(1 <= n <= MOST for n in (max_points, *caps)):
            raise ValueError(
                f"max_points must be from 1 to {MOST}, and max_voxels such a number or a pair (training, testing); "
                f"got {max_points} and {max_voxels}"
            )
        self.max_points = max_points
        self.max_voxels = caps

    def _voxelize(self, batch: PointBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Voxels [M, P, F] padded with zeros, their coords int32 [M, 4] and numbers of points [M]."""
        cap = self.max_voxels[0 if self.training else 1]
        voxels, coords, counts = [], [], []
        for frame in range(batch.batch_size):
            points = batch.points[batch.batch_index == frame]
            found = voxelize(points, self.point_cloud_range, self.voxel_size, self.max_points, cap)
            voxels.append(found[0])
            coords.append(nn.functional.pad(found[1], (1, 0), value=frame))
            counts.append(found[2])
        return torch.cat(voxels), torch.cat(coords), torch.cat(counts)


@ENCODERS.register
class PillarVFE(PointNet, HardVoxels):
    """Hard voxels through point feature layers (PointPillars, Lang et al., CVPR 2019).

    Args:
        in_channels: columns of a point.
        point_cloud_range: x, y and z minimum, then their maximum, in metres.
        voxel_size: along x, y and z, in metres.
        max_points: of a voxel.
        max_voxels: of a frame, a number or a pair (training, testing).
        num_filters: width of each layer.
        with_distance: whether the distance of a point from the origin is a feature.
        use_absolute_xyz: whether x, y and z themselves are features.
        use_norm: whether layers have a batch norm instead of a bias.
        count_padding: whether the zero rows that pad a voxel take part in the batch statistics and in the maximum, as
            in the published implementation, so that features depend on `max_points`; its checkpoints need it.
    """

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        max_points: int = 32,
        max_voxels: int | tuple[int, int] = (16000, 40000),
        num_filters: Sequence[int] = (64,),
        with_distance: bool = False,
        use_absolute_xyz: bool = True,
        use_norm: bool = True,
        count_padding: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            point_cloud_range,
            voxel_size,
            num_filters,
            with_distance,
            use_absolute_xyz,
            use_norm,
            offsets=2,
        )
        self._set_caps(max_points, max_voxels)
        self.count_padding = count_padding

    def forward(self, batch: PointBatch) -> SparseVoxels:
        """Features [M, num_filters[-1]] of the voxels of a batch."""
        return self._with_point_index(self.encode(*self._voxelize(batch), batch.batch_size), batch)

    def encode(self, voxels: Tensor, coords: Tensor, num_points: Tensor, batch_size: int) -> SparseVoxels:
        """Features of voxels that are made already.

        Args:
            voxels: float32 [M, P, F], points of each voxel, padded with zeros.
            coords: int32 [M, 4] (batch, z, y, x).
            num_points: integer [M], points of each voxel.
            batch_size: number of frames.
        """
        count, capacity = voxels.shape[:2]
        filled = torch.arange(capacity, device=voxels.device) < num_points[:, None]
        mean = voxels[..., :3].sum(dim=1) / num_points.clamp(min=1)[:, None]
        index = torch.arange(count, device=voxels.device).repeat_interleave(capacity)
        if self.count_padding and self.training:
            rows = self._describe(voxels.flatten(0, 1), index, coords, mean)
            rows = torch.where(filled.view(-1, 1), rows, 0.0)
        else:
            index = index[filled.view(-1)]
            rows = self._describe(voxels[filled], index, coords, mean)
            if self.count_padding:  # without batch statistics one zero row of a voxel is as good as several
                padded = num_points < capacity
                rows = torch.cat([rows, rows.new_zeros(count, rows.shape[1])[padded]])
                index = torch.cat([index, torch.arange(count, device=voxels.device)[padded]])
        return SparseVoxels(self._run(rows, index, count), coords, self.grid, batch_size)
