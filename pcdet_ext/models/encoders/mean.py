"""Voxels whose features are the means of their points; nothing is learnt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pcdet_ext.models.encoders.dynamic import DynamicVoxels
from pcdet_ext.models.encoders.hard import HardVoxels
from pcdet_ext.models.encoders.point_net import VoxelGeometry
from pcdet_ext.models.encoders.registry import ENCODERS
from pcdet_ext.ops import segment_reduce
from pcdet_ext.structures import PointBatch, SparseVoxels


@ENCODERS.register
class MeanVFE(VoxelGeometry, HardVoxels):
    """The mean of the points of each hard voxel, without parameters. Arguments as those of `PillarVFE`."""

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        max_points: int = 5,
        max_voxels: int | tuple[int, int] = (16000, 40000),
    ) -> None:
        super().__init__(point_cloud_range, voxel_size)
        self._set_caps(max_points, max_voxels)
        self.out_channels = in_channels

    def forward(self, batch: PointBatch) -> SparseVoxels:
        """Mean features [M, in_channels] of the voxels of a batch."""
        return self._with_point_index(self.encode(*self._voxelize(batch), batch.batch_size), batch)

    def encode(self, voxels: Tensor, coords: Tensor, num_points: Tensor, batch_size: int) -> SparseVoxels:
        """Features of voxels that are made already.

        Args:
            voxels: float32 [M, P, F], points of each voxel, padded with zeros.
            coords: int32 [M, 4] (batch, z, y, x).
            num_points: integer [M], points of each voxel.
            batch_size: number of frames.
        """
        mean = voxels.sum(dim=1) / num_points.clamp(min=1)[:, None].to(voxels.dtype)
        return SparseVoxels(mean, coords, self.grid, batch_size)


@ENCODERS.register
class DynamicMeanVFE(VoxelGeometry, DynamicVoxels):
    """The mean of the points of each dynamic voxel, without parameters. Arguments as those of `DynamicVoxelVFE`."""

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        x_major: bool = False,
    ) -> None:
        super().__init__(point_cloud_range, voxel_size)
        self.out_channels = in_channels
        self.x_major = x_major

    def forward(self, batch: PointBatch) -> SparseVoxels:
        """Mean features [N, in_channels] of the occupied voxels of a batch."""
        points, index, coords, of_points = self._assign(batch)
        mean = segment_reduce(points, index, len(coords), reduce="mean")
        kept = of_points if self.keep_point_index else None
        return SparseVoxels(mean, coords, self.grid, batch.batch_size, point_index=kept)
