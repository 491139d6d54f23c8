"""Descriptors of the voxels of a cloud: convolutions for the surface near by, attention in LSH windows for more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.grouping.orders import ZOrder
from pcdet_ext.grouping.partitions import LSHWindows
from pcdet_ext.models.layers.mixer_block import MixerBlock
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.layers.sparse_conv import SubMConv3d
from pcdet_ext.ops import dynamic_voxelize, segment_reduce
from pcdet_ext.ops.voxelize import grid_size
from pcdet_ext.structures import PointBatch, SparseVoxels

SURFACE = 11  # numbers that tell how the points lie in a voxel
LAYERS = ((8.0, 0.0), (8.0, 0.5), (16.0, 0.0), (16.0, 0.5))  # width in cells and shift of the windows of each layer


@dataclass(frozen=True, eq=False)
class DescribedPoints:
    """The mean points of the occupied voxels of some clouds, with their descriptors.

    points: float32 [N, 3], metres; descriptors: float32 [N, D], of unit length; frame: int64 [N], the cloud of each.
    """

    points: Tensor
    descriptors: Tensor
    frame: Tensor

    def of_frame(self, number: int) -> DescribedPoints:
        """Those of one cloud."""
        mine = self.frame == number
        return DescribedPoints(self.points[mine], self.descriptors[mine], self.frame[mine])


class RegistrationNetwork(nn.Module):
    """Describes each occupied voxel by the shape of what is around it, wherever in the cloud that is.

    Each layer is a convolution of 3³ voxels, which also tells a voxel where its neighbours are, and attention with a
    bias of relative positions inside windows of locality-sensitive hashing (`LSHWindows`), whose borders move by half a
    window from layer to layer. Nothing in it knows absolute positions but the height above the sensor, so that a cloud
    that was taken elsewhere gets the same descriptors up to borders of voxels and windows; turns are learnt.

    Args:
        point_cloud_range: (x, y, z minimum, then maximum) in metres.
        voxel_size: edge of a voxel in metres.
        channels: of all layers.
        num_heads: of the attention.
        group_size: slots of a set in a window.
        layers: for each layer the width of its windows in voxels and the share of it by which they are shifted.
        descriptor_size: D.

    Attributes:
        settings: these arguments as plain values, from which the same network can be made again.

    Raises:
        ValueError: for sizes that do not fit.
    """

    def __init__(
        self,
        point_cloud_range: Sequence[float] = (-51.2, -51.2, -4.0, 51.2, 51.2, 12.0),
        voxel_size: float = 0.5,
        channels: int = 32,
        num_heads: int = 4,
        group_size: int = 32,
        layers: Sequence[Sequence[float]] = LAYERS,
        descriptor_size: int = 32,
    ) -> None:
        super().__init__()
        if not layers or any(len(layer) != 2 for layer in layers):
            raise ValueError(f"layers must be one or more pairs of a width and a shift, got {list(layers)}")
        self.point_cloud_range, self.voxel_size = tuple(point_cloud_range), float(voxel_size)
        self.settings = {
            "point_cloud_range": list(self.point_cloud_range),
            "voxel_size": self.voxel_size,
            "channels": channels,
            "num_heads": num_heads,
            "group_size": group_size,
            "layers": [list(layer) for layer in layers],
            "descriptor_size": descriptor_size,
        }
        x, y, z = grid_size(self.point_cloud_range, (self.voxel_size,) * 3)
        self.grid = (z, y, x)
        self.embed = nn.Linear(SURFACE, channels)
        self.order = ZOrder()
        self.partitions = [
            LSHWindows(group_size, width=float(width), seed=i // 2, border_shift=float(shift))
            for i, (width, shift) in enumerate(layers)
        ]
        self.convs = ModuleListOf(SubMConv3d(channels, channels) for _ in layers)
        self.norms = ModuleListOf(SparseBatchNorm(channels) for _ in layers)
        mixer = {"name": "OctreeAttention", "num_heads": num_heads, "group_size": group_size}
        feed_forward = {"name": "MLP", "ffn_channels": 2 * channels}
        self.blocks = ModuleListOf(MixerBlock(channels, mixer, feed_forward) for _ in layers)
        self.describe = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, descriptor_size))

    def forward(self, batch: PointBatch) -> DescribedPoints:
        """The voxels of the clouds of a batch, whose points have the columns x, y, z first; others are not read."""
        points, voxels = self._voxels(batch)
        x = self.embed(voxels.features)
        for conv, norm, partition, block in zip(self.convs, self.norms, self.partitions, self.blocks, strict=True):
            x = x + torch.relu(norm(conv(voxels.with_features(x)).features))
            x = block(x, partition(voxels, self.order))
        descriptors = F.normalize(self.describe(x), dim=1)
        return DescribedPoints(points, descriptors, voxels.coords[:, 0].long())

    def _voxels(self, batch: PointBatch) -> tuple[Tensor, SparseVoxels]:
        """The mean point of each voxel, and the voxels with what `SURFACE` counts.

        That is where the mean lies in the voxel (3), how the points spread around it (6), the logarithm of their
        number, and the height above the sensor, all in voxels.
        """
        size = self.voxel_size
        xyz = batch.points[:, :3].contiguous()
        coords, index = dynamic_voxelize(xyz, batch.batch_index, self.point_cloud_range, (size,) * 3)
        mean = segment_reduce(xyz, index, len(coords), "mean")
        low = torch.tensor(self.point_cloud_range[:3], device=xyz.device)
        centre = low + size * (coords[:, 1:].flip(1) + 0.5)
        away = (xyz - mean[index.clamp(min=0)]) / size if len(mean) else xyz
        products = torch.stack([away[:, i] * away[:, j] for i in range(3) for j in range(i, 3)], 1)
        spread = segment_reduce(products, index, len(coords), "mean")
        number = torch.bincount(index[index >= 0], minlength=len(coords)).to(xyz.dtype)
        surface = [(mean - centre) / size, 10 * spread, number.log()[:, None], 0.1 * mean[:, 2:] / size]
        return mean, SparseVoxels(torch.cat(surface, 1), coords, self.grid, batch.batch_size)
