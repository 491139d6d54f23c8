"""Encoders: from points to features of the occupied voxels or pillars.

Two families. Hard voxels hold at most `max_points` points each, and a frame at most `max_voxels` of them (VoxelNet,
Zhou & Tuzel 2018; PointPillars, Lang et al. 2019). Dynamic ones keep every point (MVF, Zhou et al. 2019). Both run the
same layers on rows (points) that know their voxel. State-dict keys are those of OpenPCDet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from pcdet_ext.config import Registry
from pcdet_ext.models.layers.lookup import rows_of
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.ops import dynamic_voxelize, grid_size, segment_reduce, voxelize
from pcdet_ext.structures import PointBatch, SparseVoxels

ENCODERS = Registry("encoder")


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


class _Geometry(nn.Module):
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


class _PointNet(_Geometry):
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


class _HardVoxels:
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
        if max_points < 1 or len(caps) != 2 or min(caps) < 1:
            raise ValueError(
                "max_points must be positive, and max_voxels a positive number or a pair (training, testing); "
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
class PillarVFE(_PointNet, _HardVoxels):
    """Hard voxels through point feature layers (PointPillars, Lang et al., CVPR 2019).

    in_channels: columns of a point; point_cloud_range: (x, y, z minimum, then maximum) and voxel_size: (x, y, z), in
    metres; max_points: of a voxel; max_voxels: of a frame, a number or a pair (training, testing); num_filters: width
    of each layer; with_distance: adds the range of a point; use_absolute_xyz: keeps x, y, z themselves.

    count_padding: the published implementation lets the zero rows that pad a voxel take part in the batch statistics
    and in the maximum, so its features depend on `max_points`; its checkpoints need True.
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
        """The same from voxels [M, P, F], their coords [M, 4] (batch, z, y, x) and numbers of points [M]."""
        count, capacity = voxels.shape[:2]
        filled = torch.arange(capacity, device=voxels.device) < num_points[:, None]
        mean = voxels[..., :3].sum(dim=1) / num_points.clamp(min=1)[:, None]
        index = torch.arange(count, device=voxels.device).repeat_interleave(capacity)
        if self.count_padding:
            rows = self._describe(voxels.flatten(0, 1), index, coords, mean)
            rows = torch.where(filled.view(-1, 1), rows, 0.0)
        else:
            index = index[filled.view(-1)]
            rows = self._describe(voxels[filled], index, coords, mean)
        return SparseVoxels(self._run(rows, index, count), coords, self.grid, batch_size)


@ENCODERS.register
class MeanVFE(_Geometry, _HardVoxels):
    """The mean of the points of each hard voxel, no parameters. Arguments as those of PillarVFE."""

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
        """The same from voxels [M, P, F] padded with zeros, their coords [M, 4] and numbers of points [M]."""
        mean = voxels.sum(dim=1) / num_points.clamp(min=1)[:, None].to(voxels.dtype)
        return SparseVoxels(mean, coords, self.grid, batch_size)


class _DynamicVoxels:
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


class _DynamicPointNet(_PointNet, _DynamicVoxels):
    """Dynamic voxels through point feature layers.

    in_channels: columns of a point; point_cloud_range: (x, y, z minimum, then maximum) and voxel_size: (x, y, z), in
    metres; num_filters: width of each layer; with_distance: adds the range of a point; use_absolute_xyz: keeps x, y, z
    themselves; x_major: rows ascend by (batch, x, y, z), as published implementations give them, instead of in the
    order of `dynamic_voxelize`.

    Two quirks of the published FlatFormer: clamp: points outside of the range count for the nearest cell instead of
    being left out; drop_first: in each frame the voxel of the lowest (z, y, x) vanishes with its points.
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
class DynamicVoxelVFE(_DynamicPointNet):
    __doc__ = _DynamicPointNet.__doc__


@ENCODERS.register
class DynamicPillarVFE(_DynamicPointNet):
    __doc__ = f"Pillars of the whole height; z is not checked against the range.\n\n{_DynamicPointNet.__doc__}"
    pillars = True


@ENCODERS.register
class DynamicPillarVFESimple2D(_DynamicPointNet):
    __doc__ = (
        "Pillars whose points carry the offset from the centre, but none from their mean (PillarNet, Shi et al., "
        f"ECCV 2022).\n\n{_DynamicPointNet.__doc__}"
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


@ENCODERS.register
class DynamicMeanVFE(_Geometry, _DynamicVoxels):
    """The mean of the points of each dynamic voxel, no parameters. Arguments as those of DynamicVoxelVFE."""

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
