"""OctFormer: attention inside windows of equally many octree nodes, plain and dilated (Wang, SIGGRAPH 2023)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from pcdet_ext.grouping.octree import Octree
from pcdet_ext.models.backbones.octree import OctreeBackbone, OctreeStages
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.octree_block import (
    OctreeBlock,
    OctreeOptions,
    OctreeStem,
    drop_rates,
    halving,
    init_linear,
)


class OctFormerStages(OctreeStages):
    """A stem and stages of blocks, each stage one depth above the one before it (figure 3).

    Args:
        in_channels: of the leaves.
        channels: of each stage.
        num_blocks: of each stage; every other block has dilated windows.
        num_heads: of the attention of each stage.
        stem_down: depths between the leaves and the first stage.
        drop_path: rate of stochastic depth of the last block; it rises linearly from 0 at the first.
        options: see `OctreeOptions`.

    Raises:
        ValueError: for lists of different lengths, and sizes that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (96, 192, 384, 384),
        num_blocks: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (6, 12, 24, 24),
        stem_down: int = 2,
        drop_path: float = 0.5,
        options: OctreeOptions | None = None,
    ) -> None:
        super().__init__()
        if not len(channels) == len(num_blocks) == len(num_heads) >= 1 or min(num_blocks) < 1:
            raise ValueError(
                "channels, num_blocks and num_heads must be one number per stage, got "
                f"{list(channels)}, {list(num_blocks)} and {list(num_heads)}"
            )
        self.options = options or OctreeOptions()
        self.channels, self.halvings = tuple(channels), stem_down
        self.stem = OctreeStem(in_channels, channels[0], stem_down, self.options)
        rates = iter(drop_rates(drop_path, sum(num_blocks)))
        self.blocks = ModuleListOf(
            octformer_blocks(width, heads, [next(rates) for _ in range(count)], self.options)
            for width, heads, count in zip(channels, num_heads, num_blocks, strict=True)
        )
        self.halve = ModuleListOf(halving(a, b, self.options) for a, b in itertools.pairwise(channels))
        init_linear(self)

    def forward(self, x: Tensor, octree: Octree) -> dict[int, Tensor]:
        """See `OctreeStages`."""
        depth = octree.depth - self.halvings
        x, stages = self.stem(x, octree, octree.depth), {}
        for i, blocks in enumerate(self.blocks):
            if i > 0:
                x = self.halve[i - 1](x, octree, depth)
                depth -= 1
            for block in blocks:
                x = block(x, octree, depth)
            stages[depth] = x
        return stages


def octformer_blocks(
    channels: int, num_heads: int, drop_paths: Sequence[float], options: OctreeOptions
) -> ModuleListOf[OctreeBlock]:
    """The blocks of a stage: plain and dilated windows in turn.

    Args:
        channels: of the features.
        num_heads: of the attention.
        drop_paths: stochastic depth of each block.
        options: of the octree network.
    """
    return ModuleListOf(
        OctreeBlock(channels, num_heads, options, options.dilation if i % 2 else 1, drop_path)
        for i, drop_path in enumerate(drop_paths)
    )


@BACKBONES.register
class OctFormer(OctreeBackbone):
    """OctFormer on the octree whose leaves are the voxels, with a feature pyramid at the depth of its first stage.

    Args:
        in_channels: of the voxels.
        grid: (Z, Y, X) cells.
        channels: of each stage.
        num_blocks: of each stage; every other block has dilated windows.
        num_heads: of the attention of each stage.
        stem_down: halvings of the grid before the first stage.
        drop_path: rate of stochastic depth of the last block; it rises linearly from 0 at the first.
        group_size: nodes of a window.
        dilation: of the dilated windows.
        mlp_ratio: inner width of the feed-forward parts per channel.
        norm: after convolutions, "batch" or "layer".
        straddle: let windows go across the borders of frames, as published.
        out_channels: of the pyramid; None for the stages as they are, for heads that read several scales.

    Attributes: out_channels; out_grid, stride and strides: cells of the first stage, 2^stem_down of the input's.

    Raises:
        ValueError: for sizes that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: Sequence[int] = (96, 192, 384, 384),
        num_blocks: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (6, 12, 24, 24),
        stem_down: int = 2,
        drop_path: float = 0.5,
        group_size: int = 32,
        dilation: int = 4,
        mlp_ratio: float = 4.0,
        norm: Literal["batch", "layer"] = "batch",
        straddle: bool = False,
        out_channels: int | None = 128,
    ) -> None:
        options = OctreeOptions(group_size, dilation, mlp_ratio, norm, straddle=straddle)
        stages = OctFormerStages(in_channels, channels, num_blocks, num_heads, stem_down, drop_path, options)
        super().__init__(stages, grid, out_channels)
