"""Voxels that are the leaves of an octree, with the features that octree networks read (OctFormer, Wang, 2023)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.grouping.octree import MAX_DEPTH, Octree, build_octree, input_features
from pcdet_ext.models.encoders.point_net import VoxelGeometry
from pcdet_ext.models.encoders.registry import ENCODERS
from pcdet_ext.ranges import check_positive
from pcdet_ext.structures import PointBatch, SparseVoxels

LETTERS = ("L", "P", "F")


@ENCODERS.register
class OctreeVFE(VoxelGeometry):
    """The mean of the points of each leaf, no parameters. Octree backbones take over the octree itself.

    Points are scaled by two per side of the range to [-1, 1]³, in float32 as published, and fall into cells there.

    Args:
        in_channels: columns of a point.
        point_cloud_range: (x, y, z minimum, then maximum) in metres, a cube.
        voxel_size: (x, y, z) in metres, alike; the range has 2^depth of them along each axis.
        features: letters of `input_features` in any order. F: the means of all columns behind x, y and z, such as
            colours; P: the mean point in [-1, 1]; L: its place in the leaf.
        margin: points nearer to a face of the range are left out, as a share of half the side; above 0.
        full_depth: down to this depth all nodes exist.

    Raises:
        ValueError: for a range or voxels that make no octree, unknown letters, and colours that points do not have.
    """

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        features: str = "F",
        margin: float = 0.01,
        full_depth: int = 2,
    ) -> None:
        super().__init__(point_cloud_range, voxel_size)
        self.depth = _depth(self.grid, self.voxel_size)
        if not 1 <= full_depth <= self.depth:
            raise ValueError(
                f"full_depth must lie between 1 and the depth {self.depth} of the leaves, got {full_depth}"
            )
        unknown = [letter for letter in features.upper() if letter not in LETTERS]
        if unknown or not features:
            raise ValueError(f"features must be letters of {''.join(LETTERS)}, got {features!r}")
        if "F" in features.upper() and in_channels <= 3:
            raise ValueError(
                f"features {features!r} need columns behind x, y and z, the points have {in_channels} columns"
            )
        check_positive(1, margin=margin)
        self.features, self.margin, self.full_depth = features.upper(), margin, full_depth
        widths = {"L": 3, "P": 3, "F": in_channels - 3}
        self.out_channels = sum(widths[letter] for letter in set(self.features))

    def forward(self, batch: PointBatch) -> SparseVoxels:
        """Features [N, out_channels] of the occupied leaves of a batch, frame after frame in z-order."""
        low, high = (batch.points.new_tensor(self.point_cloud_range[at : at + 3]) for at in (0, 3))
        scaled = (batch.points[:, :3] - (low + high) / 2) * (2 / (self.grid[0] * self.voxel_size[0]))
        inside = (scaled.abs() < 1 - self.margin).all(1).nonzero()[:, 0]
        rows = inside[batch.batch_index[inside].argsort(stable=True)]
        sizes = batch.batch_index[rows].bincount(minlength=batch.batch_size).tolist()
        clouds = scaled[rows].split(sizes)
        columns = batch.points[rows, 3:].split(sizes) if "F" in self.features else None
        octree = build_octree(clouds, self.depth, self.full_depth, features=columns)
        found = self._voxels(octree)
        if not self.keep_point_index:
            return found
        index = torch.full_like(batch.batch_index, -1)
        return replace(found, point_index=index.index_copy(0, rows, octree.point_leaf))

    def _voxels(self, octree: Octree) -> SparseVoxels:
        """The leaves as voxels, from which `octree_of_voxels` gets the octree whose rows they are."""
        features: Tensor = input_features(octree, self.features)
        itself = torch.arange(len(features), device=features.device)
        plans: dict[Hashable, Any] = {"octree": replace(octree, point_leaf=itself, features=None)}
        return SparseVoxels(features, octree.coords(self.depth), self.grid, octree.batch_size, plans)


def _depth(grid: Sequence[int], voxel_size: Sequence[float]) -> int:
    """The depth of the leaves. Raises ValueError where the range is no cube of 2^depth equal voxels."""
    depth = max(grid).bit_length() - 1
    if len(set(grid)) > 1 or len(set(voxel_size)) > 1 or grid[0] != 1 << depth or not 1 <= depth <= MAX_DEPTH:
        raise ValueError(
            f"an octree needs a range that is a cube of 2^depth equal voxels along each axis, depth 1 to {MAX_DEPTH}; "
            f"this one has {grid[2]}, {grid[1]} and {grid[0]} (x, y, z) of {', '.join(f'{v:g}' for v in voxel_size)} m"
        )
    return depth
