"""Octree transformers as backbones: voxels become the leaves of an octree, stages see it, a pyramid joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pcdet_ext.grouping.octree import Octree, octree_of_voxels
from pcdet_ext.models.layers.octree_block import OctreeOptions
from pcdet_ext.models.layers.octree_pyramid import OctreePyramid
from pcdet_ext.structures import SparseVoxels


class OctreeStages(nn.Module, ABC):
    """The stages of an octree transformer.

    Attributes: channels, of each stage, the finest first; options; halvings, depths between leaves and finest stage.
    """

    channels: tuple[int, ...]
    options: OctreeOptions
    halvings: int

    @abstractmethod
    def forward(self, x: Tensor, octree: Octree) -> Mapping[int, Tensor]:
        """Rows [N, in_channels] of the leaves to rows [M, C] of each stage, by depth, the finest first."""


class OctreeBackbone(nn.Module):
    """Stages on the octree of the voxels, and a feature pyramid over them.

    Args:
        stages: of an octree transformer on occupied nodes.
        grid: (Z, Y, X) cells of the voxels.
        out_channels: of the pyramid.

    Attributes: out_channels; out_grid, stride and strides: the cells of the finest stage.

    Raises:
        ValueError: for a grid so small that the coarsest stage would be a single node.
    """

    def __init__(self, stages: OctreeStages, grid: Sequence[int], out_channels: int) -> None:
        super().__init__()
        coarsest = stages.halvings + len(stages.channels) - 1
        if max(grid) <= 1 << coarsest:
            raise ValueError(
                f"a grid of {tuple(grid)} cells is too small to be halved {coarsest} times by the stem and "
                f"{len(stages.channels)} stages"
            )
        self.stages = stages
        self.pyramid = OctreePyramid(stages.channels, out_channels, stages.options)
        self.out_channels, self.stride = out_channels, 1 << stages.halvings
        self.strides = (self.stride,) * 3
        z, y, x = (-(-cells // self.stride) for cells in grid)
        self.out_grid = (z, y, x)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, in_channels] in any order to voxels [M, out_channels] on `out_grid`."""
        octree = octree_of_voxels(voxels)
        leaves = voxels.features.new_empty(voxels.features.shape).index_copy(0, octree.point_leaf, voxels.features)
        stages = self.stages(leaves, octree)
        depth = octree.depth - self.stages.halvings
        fused = self.pyramid(stages, octree)
        return SparseVoxels(fused, octree.coords(depth), self.out_grid, voxels.batch_size)
