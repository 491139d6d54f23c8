"""What learnt encoders share: the layers on rows (points) that know their voxel. State-dict keys are OpenPCDet's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.folding import scale_and_shift
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.ops import grid_size, segment_reduce


class PointFeatureLayer(nn.Module):
    """Linear layer, batch norm and ReLU on points, then the maximum over each voxel (PointPillars, section 2.1).

    The next layer reads of each point its own activation and, behind it, the maximum of its voxel; a layer that is not
    the last is therefore half as wide as `out_channels`.

    Args:
        in_channels: features of a point.
        out_channels: of the layer, with the maximum.
        use_norm: whether there is a batch norm instead of a bias.
        last: whether it is the last layer, of which only the maximum is taken.

    Raises:
        ValueError: the width of a layer before the last is odd.
    """

    def __init__(self, in_channels: int, out_channels: int, use_norm: bool = True, last: bool = False) -> None:
        super().__init__()
        if not last and out_channels % 2:
            raise ValueError(f"num_filters before the last must be even, got {out_channels}")
        width = out_channels if last else out_channels // 2
        self.linear = nn.Linear(in_channels, width, bias=not use_norm)
        self.norm = SparseBatchNorm(width) if use_norm else None
        self.last = last

    def forward(
        self, rows: Tensor, index: Tensor, num_voxels: int, pooled: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One layer. What all points of a voxel have in common is computed once per voxel.

        Args:
            rows: features of the points [R, C].
            index: int64 [R], the voxel of each row, every one of the `num_voxels` at least once.
            num_voxels: M.
            pooled: features of the voxels [M, D] that each point has behind its own, or None.

        Returns:
            Activations of the points [R, width], and the maximum of each voxel [M, width]. In evaluation mode the last
            layer gives the points' share of the activations alone, which nobody reads.
        """
        weight, bias = self._affine()
        rows = rows.double() if weight.dtype == torch.float64 else rows  # points are float32, whatever the model is
        own, common = weight[:, : rows.shape[1]], weight[:, rows.shape[1] :]
        if self.last and not self.training:  # ReLU and what a voxel adds to all of its points keep the order of points
            points = nn.functional.linear(rows, own)
            highest = segment_reduce(points, index, num_voxels, reduce="max")
            highest = highest if bias is None else highest + bias
            return points, torch.relu(highest if pooled is None else highest + nn.functional.linear(pooled, common))
        points = nn.functional.linear(rows, own, bias)
        points = points if pooled is None else points + nn.functional.linear(pooled, common)[index]
        points = torch.relu(points if self.norm is None or not self.training else self.norm(points))
        return points, segment_reduce(points, index, num_voxels, reduce="max")

    def _affine(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the linear layer, in evaluation mode with the batch norm in them."""
        weight, bias = self.linear.weight, self.linear.bias
        if self.norm is None or self.training:
            return weight, bias
        scale, shift = scale_and_shift(self.norm)
        return (weight.double() * scale[:, None]).to(weight.dtype), shift.to(weight.dtype)


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
    """What the learnt encoders share: features of the points and the stack of layers.

    Args:
        in_channels: columns of a point, at least x, y and z.
        point_cloud_range: x, y and z minimum, then their maximum, in metres.
        voxel_size: along x, y and z, in metres.
        num_filters: width of each layer.
        with_distance: whether the distance of a point from the origin is a feature.
        use_absolute_xyz: whether x, y and z themselves are features.
        use_norm: whether layers have a batch norm instead of a bias.
        offsets: how many offsets (x, y, z) of a point are features: from the voxel's centre, and from its points' mean.

    Raises:
        ValueError: there are too few columns or no layers, or a width is impossible.
    """

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
        """Features [M, num_filters[-1]] of the voxels from those of their points [R, C]."""
        pooled: Tensor | None = None
        for layer in self.pfn_layers:
            rows, pooled = layer(rows, index, num_voxels, pooled)
        return cast(Tensor, pooled)
