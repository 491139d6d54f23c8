"""Octree transformers as backbones: voxels become the leaves of an octree, stages see it, a pyramid joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pcdet_ext.grouping.octree import Octree, octree_of_voxels
from pcdet_ext.models.layers.octree_block import OctreeOptions
from pcdet_ext.models.layers.octree_pyramid import OctreePyramid
from pcdet_ext.structures import SparseVoxels, VoxelPyramid


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
    """Stages on the octree of the voxels, and a feature pyramid that joins them at the finest.

    Args:
        stages: of an octree transformer on occupied nodes.
        grid: (Z, Y, X) cells of the voxels.
        out_channels: of the pyramid; None for the stages as they are, a `VoxelPyramid`.

    Attributes: out_channels; out_grid, stride and strides: the cells of the finest stage.

    Raises:
        ValueError: for a grid so small that the coarsest stage would be a single node, and where the stages are asked
            for, one that cannot be halved so often.
    """

    def __init__(self, stages: OctreeStages, grid: Sequence[int], out_channels: int | None) -> None:
        super().__init__()
        coarsest = stages.halvings + len(stages.channels) - 1
        if max(grid) <= 1 << coarsest:
            raise ValueError(
                f"a grid of {tuple(grid)} cells is too small to be halved {coarsest} times by the stem and "
                f"{len(stages.channels)} stages"
            )
        if out_channels is None and any(cells % (1 << coarsest) for cells in grid):
            raise ValueError(
                f"with out_channels of None each level has half of the cells of the one before it: the grid must be "
                f"divisible by {1 << coarsest}, it is {tuple(grid)}"
            )
        self.stages = stages
        self.pyramid = None if out_channels is None else OctreePyramid(stages.channels, out_channels, stages.options)
        self.out_channels = stages.channels[0] if out_channels is None else out_channels
        self.stride = 1 << stages.halvings
        self.strides = (self.stride,) * 3
        z, y, x = (-(-cells // self.stride) for cells in grid)
        self.out_grid = (z, y, x)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, in_channels] in any order to voxels [M, out_channels] on `out_grid`, with the coarser stages where
        there is no pyramid."""
        octree = octree_of_voxels(voxels)
        leaves = voxels.features.new_empty(voxels.features.shape).index_copy(0, octree.point_leaf, voxels.features)
        stages = self.stages(leaves, octree)
        if self.pyramid is None:
            return self._levels(stages, octree)
        depth = octree.depth - self.stages.halvings
        fused = self.pyramid(stages, octree)
        return SparseVoxels(fused, octree.coords(depth), self.out_grid, voxels.batch_size)

    def _levels(self, stages: Mapping[int, Tensor], octree: Octree) -> VoxelPyramid:
        levels, (z, y, x) = [], self.out_grid
        for i, depth in enumerate(sorted(stages, reverse=True)):
            grid = (z >> i, y >> i, x >> i)
            levels.append(SparseVoxels(stages[depth], octree.coords(depth), grid, octree.batch_size))
        finest = levels[0]
        return VoxelPyramid(finest.features, finest.coords, finest.grid, finest.batch_size, coarser=tuple(levels[1:]))
