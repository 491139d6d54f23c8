"""What learnt encoders share: the layers on rows (points) that know their voxel. State-dict keys are OpenPCDet's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.ops import grid_size, segment_reduce


class PointFeatureLayer(nn.Module):
    """Linear layer, batch norm and ReLU on points, then the maximum over each voxel (PointPillars, section 2.1).

    A layer that is not the last gives points [R, out_channels]: half of the width is the point's own activation, half
    its voxel's maximum. The last one gives voxels [M, out_channels].
    """

    def __init__(self, in_channels: int, out_channels: int, use_norm: bool = True, last: bool = False) -> None:
        super().__init__()
        if not last and out_channels % 2:
            raise ValueError(f"num_filters before the last must be even, got {out_channels}")
        width = out_channels if last else out_channels // 2
        self.linear = nn.Linear(in_channels, width, bias=not use_norm)
        self.norm = SparseBatchNorm(width) if use_norm else None
        self.last = last

    def forward(self, rows: Tensor, index: Tensor, num_voxels: int) -> Tensor:
        """rows: [R, C]; index: int64 [R], the voxel of each row, every one of the `num_voxels` at least once."""
        double = self.linear.weight.dtype == torch.float64
        rows = self.linear(rows.double() if double else rows)  # points are float32, whatever the model is
        rows = torch.relu(rows if self.norm is None else self.norm(rows))
        pooled = segment_reduce(rows, index, num_voxels, reduce="max")
        return pooled if self.last else torch.cat([rows, pooled[index]], dim=1)


class VoxelGeometry(nn.Module):
    """Range, voxel size and grid, and the voxel centres they imply.

    keep_point_index: keep which voxel each point is in (`SparseVoxels.point_index`), for heads that read points.
    """

    keep_point_index = False

    def __init__(self, point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> None:
        super().__init__()
        self.point_cloud_range = tuple(float(v) for v in point_cloud_range)
        self.voxel_size = tuple(float(v) for v in voxel_size)
        self.grid = grid_size(self.point_cloud_range, self.voxel_size)[::-1]

    def _centres(self, coords: Tensor, dtype: torch.dtype) -> Tensor:
        """Centres (x, y, z) [N, 3] in metres of voxels (batch, z, y, x) [N, 4]."""
        size = torch.tensor(self.voxel_size, dtype=dtype, device=coords.device)
        first = [low + step / 2 for low, step in zip(self.point_cloud_range, self.voxel_size, strict=False)]
        return coords[:, [3, 2, 1]].to(dtype) * size + torch.tensor(first, dtype=dtype, device=coords.device)


class PointNet(VoxelGeometry):
    """What the learnt encoders share: features of the points and the stack of layers."""

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        num_filters: Sequence[int],
        with_distance: bool,
        use_absolute_xyz: bool,
        use_norm: bool,
        offsets: int,
    ) -> None:
        super().__init__(point_cloud_range, voxel_size)
        if in_channels < 3:
            raise ValueError(f"in_channels must be at least 3 (x, y, z), got {in_channels}")
        if not num_filters:
            raise ValueError("num_filters must name the width of at least one layer")
        if min(num_filters) < 1:
            raise ValueError(f"num_filters must be at least 1, got {list(num_filters)}")
        self.with_distance = with_distance
        self.use_absolute_xyz = use_absolute_xyz
        widths = [in_channels - (0 if use_absolute_xyz else 3) + 3 * offsets + with_distance, *num_filters]
        last = len(num_filters) - 1
        self.pfn_layers = nn.ModuleList(
            PointFeatureLayer(widths[i], widths[i + 1], use_norm, last=i == last) for i in range(len(num_filters))
        )
        self.out_channels = widths[-1]

    def _describe(self, points: Tensor, index: Tensor, coords: Tensor, mean: Tensor | None) -> Tensor:
        """Features of points [R, F] of the voxels index [R]: raw, offset from `mean` [M, 3], from the centre, range."""
        xyz = points[:, :3]
        raw = points if self.use_absolute_xyz else points[:, 3:]
        centre_offset = xyz - self._centres(coords, points.dtype)[index]
        parts = [centre_offset, raw] if mean is None else [raw, xyz - mean[index], centre_offset]
        if self.with_distance:
            parts.append(xyz.norm(dim=1, keepdim=True))
        return torch.cat(parts, dim=1)

    def _run(self, rows: Tensor, index: Tensor, num_voxels: int) -> Tensor:
        for layer in self.pfn_layers:
            rows = layer(rows, index, num_voxels)
        return rows
