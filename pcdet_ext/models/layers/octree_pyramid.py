"""Features of several depths of an octree fused at the finest of them (OctFormer's segmentation head, 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pcdet_ext.grouping.octree import Octree
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.octree import octree_upsample
from pcdet_ext.models.layers.octree_block import OctreeOptions, conv_norm_relu


class OctreePyramid(nn.Module):
    """A feature pyramid: from the coarsest stage down, each stage adds its features to those from above.

    The sums of all stages, each after a convolution of 3³ cells, are added up at the finest depth.

    Args:
        in_channels: of the stages, the finest first, each one depth above the one before it.
        channels: of the result.
        options: of the network, for norms and rows.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, options: OctreeOptions) -> None:
        super().__init__()
        self.nempty = options.nempty
        self.lateral = ModuleListOf(nn.Linear(width, channels) for width in reversed(in_channels))
        self.convs = ModuleListOf(conv_norm_relu(channels, channels, options) for _ in in_channels)

    def forward(self, stages: Mapping[int, Tensor], octree: Octree) -> Tensor:
        """Rows [N, in_channels] of each depth to rows [M, channels] of the deepest of them."""
        depths = sorted(stages)
        finest, fused, running = depths[-1], None, None
        for depth, lateral, conv in zip(depths, self.lateral, self.convs, strict=True):
            here = lateral(stages[depth])
            if running is not None:
                here = here + octree_upsample(running, octree, depth - 1, depth, self.nempty)
            running = here
            part = octree_upsample(conv(here, octree, depth), octree, depth, finest, self.nempty)
            fused = part if fused is None else fused + part
        assert fused is not None
        return fused
