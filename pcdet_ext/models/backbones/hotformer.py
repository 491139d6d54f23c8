"""HOTFormer: hierarchical octree attention with relay tokens (HOTFormerLoc, Griffiths et al., CVPR 2025)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pcdet_ext.config import construct
from pcdet_ext.grouping.octree import Octree
from pcdet_ext.models.backbones.octformer import octformer_blocks
from pcdet_ext.models.backbones.octree import OctreeBackbone, OctreeStages
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.octree_block import (
    OctreeOptions,
    OctreePosition,
    OctreeStem,
    attention_block,
    drop_rates,
    halving,
    init_linear,
)
from pcdet_ext.models.layers.recompute import call, check_recompute
from pcdet_ext.models.layers.relay_tokens import (
    RelayBlock,
    RelayWindows,
    Statistics,
    WindowDistribution,
    tokens_of_clouds,
)
from pcdet_ext.structures import Groups


@dataclass(frozen=True, eq=False)
class HierarchicalFeatures:
    """What a hierarchical stage finds, by depth, the finest first.

    nodes: rows [N, C] of each depth; tokens: relay tokens [G, C], one per window, and windows, whom they belong to;
    both empty without relay tokens.
    """

    nodes: dict[int, Tensor]
    tokens: dict[int, Tensor]
    windows: dict[int, RelayWindows]


@dataclass(frozen=True)
class RelayOptions:
    """How relay tokens work.

    statistics: what their encoding of place and spread sees, see `window_statistics`, or None for a conditional
    position encoding of the nodes instead; propagate: add tokens to the nodes of their windows in the end;
    propagate_scale: start value of a learnt factor of that, or None for 1.
    """

    statistics: Statistics | None = "cov"
    propagate: bool = False
    propagate_scale: float | None = None


PUBLISHED = RelayOptions()


class RelayLevel(nn.Module):
    """One depth of a hierarchical stage: its blocks, and how tokens change between its width and the common one.

    Args:
        channels: of the nodes.
        common: of the tokens between the blocks.
        num_heads: of the attention.
        drop_paths: rates of stochastic depth, one per block.
        options: of the network.
        relay: see `RelayOptions`.
        project: put linear layers between the two widths; False where they are the same.
    """

    def __init__(
        self,
        channels: int,
        common: int,
        num_heads: int,
        drop_paths: Sequence[float],
        options: OctreeOptions,
        relay: RelayOptions,
        project: bool,
    ) -> None:
        super().__init__()
        last = len(drop_paths) - 1
        self.blocks = ModuleListOf(
            RelayBlock(channels, num_heads, options, rate, relay.propagate and i == last, relay.propagate_scale)
            for i, rate in enumerate(drop_paths)
        )

        def projection(width: int, out: int) -> nn.Module:
            return nn.Linear(width, out) if project else nn.Identity()

        has_distribution = relay.statistics is not None
        self.distribution = projection(common, channels) if has_distribution else nn.Identity()
        self.first_up = projection(channels, common)
        self.down = nn.ModuleList(projection(common, channels) for _ in drop_paths)
        self.up = nn.ModuleList(projection(channels, common) for _ in drop_paths)

    def run(
        self, block: int, x: Tensor, tokens: Tensor, octree: Octree, depth: int, level: RelayWindows, plan: Groups
    ) -> tuple[Tensor, Tensor]:
        """Run one block on one depth.

        Args:
            block: its number.
            x: floating-point [N, channels], rows of the nodes of `depth`.
            tokens: [G, common], one per window.
            octree: whose nodes they are.
            depth: of the nodes.
            level: the windows.
            plan: `level.with_tokens()`.

        Returns:
            Features and tokens of the same shapes.
        """
        x, tokens = self.blocks[block](x, self.down[block](tokens), octree, depth, level, plan)
        return x, self.up[block](tokens)


class PlainLevel(nn.Module):
    """One depth of a hierarchical stage without relay tokens: blocks of OctFormer.

    Args:
        channels: of the features.
        num_heads: of the attention.
        drop_paths: stochastic depth of each block.
        options: of the octree network.
    """

    def __init__(self, channels: int, num_heads: int, drop_paths: Sequence[float], options: OctreeOptions) -> None:
        super().__init__()
        self.blocks = octformer_blocks(channels, num_heads, drop_paths, options)


class HierarchicalStage(nn.Module):
    """Blocks that mix the relay tokens of all depths, then each window with its token (figures 2 and 3).

    Args:
        channels: of each depth, the finest first; or one number for all.
        num_heads: the same.
        num_levels: depths.
        drop_paths: rates of stochastic depth, one per block.
        options: see `OctreeOptions`.
        relay: see `RelayOptions`; None for a stage without relay tokens, of plain and dilated windows.
        recompute: compute blocks again in the backward pass instead of keeping their activations.

    Raises:
        ValueError: for lists of other lengths.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_heads: Sequence[int],
        num_levels: int,
        drop_paths: Sequence[float],
        options: OctreeOptions,
        relay: RelayOptions | None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        widths, heads = _per_level(channels, num_levels, "channels"), _per_level(num_heads, num_levels, "num_heads")
        if not drop_paths:
            raise ValueError("a hierarchical stage needs at least one block")
        self.options, self.recompute = options, recompute
        self.halve = ModuleListOf(halving(a, b, options) for a, b in itertools.pairwise(widths))
        self.relay_blocks, self.positions, self.distribution = nn.ModuleList(), ModuleListOf[OctreePosition](), None
        if relay is None:
            per_level = zip(widths, heads, strict=True)
            self.levels = nn.ModuleList(PlainLevel(width, count, drop_paths, options) for width, count in per_level)
            return
        common = max(widths)
        common_heads, project = heads[widths.index(common)], len(channels) > 1
        self.relay_blocks = nn.ModuleList(
            attention_block(common, common_heads, options, 1, rate, relative_position=False) for rate in drop_paths
        )
        self.levels = nn.ModuleList(
            RelayLevel(width, common, count, drop_paths, options, relay, project)
            for width, count in zip(widths, heads, strict=True)
        )
        if relay.statistics is None:  # depths of one width share the encoding
            self.positions = ModuleListOf(OctreePosition(width, options) for width in channels)
        else:
            self.distribution = WindowDistribution(common, relay.statistics)

    def forward(self, x: Tensor, octree: Octree, depth: int) -> HierarchicalFeatures:
        """Features of the finest depth to features of all depths of the stage.

        Args:
            x: floating-point [N, C], rows of the nodes of `depth`.
            octree: whose nodes they are.
            depth: the finest one.
        """
        depths, xs = range(depth, depth - len(self.halve) - 1, -1), [x]
        for halve, above in zip(self.halve, depths, strict=False):
            xs.append(halve(xs[-1], octree, above))
        if not self.relay_blocks:
            for i, plain in enumerate(cast("Iterable[PlainLevel]", self.levels)):
                for block in plain.blocks:
                    xs[i] = call(block, xs[i], octree, depths[i], recompute=self.recompute)
            return HierarchicalFeatures(dict(zip(depths, xs, strict=True)), {}, {})
        levels = list(cast("Iterable[RelayLevel]", self.levels))
        windows = [RelayWindows.of(octree, d, self.options) for d in depths]
        plans, joined = [part.with_tokens() for part in windows], tokens_of_clouds(windows)
        tokens = [self._first_tokens(i, levels[i], x, octree, depths[i], windows[i]) for i, x in enumerate(xs)]
        for number, relay in enumerate(self.relay_blocks):
            mixed = call(relay, torch.cat(tokens), joined, recompute=self.recompute)
            tokens = list(mixed.split([len(part) for part in tokens]))
            for i, level in enumerate(levels):
                arguments = number, xs[i], tokens[i], octree, depths[i], windows[i], plans[i]
                xs[i], tokens[i] = call(level.run, *arguments, recompute=self.recompute)
        owners = dict(zip(depths, windows, strict=True))
        return HierarchicalFeatures(dict(zip(depths, xs, strict=True)), dict(zip(depths, tokens, strict=True)), owners)

    def _first_tokens(
        self, i: int, level: RelayLevel, x: Tensor, octree: Octree, depth: int, windows: RelayWindows
    ) -> Tensor:
        """Tokens [G, common] of a depth, the i-th, before the first block."""
        if self.distribution is None:
            position = self.positions[min(i, len(self.positions) - 1)]
            first = windows.mean(position(x, octree, depth))
        else:
            first = windows.mean(x) + level.distribution(self.distribution(windows, depth))
        raised: Tensor = level.first_up(first)
        return raised


def _per_level(values: Sequence[int], num_levels: int, name: str) -> list[int]:
    if num_levels < 1 or len(values) not in (1, num_levels):
        raise ValueError(f"{name} of the {num_levels} levels must be one number or one per level, got {list(values)}")
    return list(values) * (num_levels if len(values) == 1 else 1)


class HOTFormerStages(OctreeStages):
    """A stem, stages of OctFormer, and a hierarchical stage over several depths.

    Args:
        in_channels: of the leaves.
        channels: of each stage of OctFormer, then of the hierarchical stage: one number, or one per depth.
        num_blocks: of each stage of OctFormer, then of the hierarchical stage.
        num_heads: as channels; by default one for every 16 channels.
        num_levels: depths of the hierarchical stage.
        num_octformer_stages: stages before it, each followed by a step one depth up.
        stem_down: depths between the leaves and the first stage, or with halve_input=False convolutions of the stem.
        halve_input: False for a stem that stays at the depth of the leaves.
        drop_path: rate of stochastic depth of the last block; it rises linearly from 0 at the first.
        options: see `OctreeOptions`.
        relay: see `RelayOptions`; None for no relay tokens.
        recompute: compute blocks again in the backward pass instead of keeping their activations.

    Raises:
        ValueError: for lists of other lengths, and sizes that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (128, 256),
        num_blocks: Sequence[int] = (4, 10),
        num_heads: Sequence[int] | None = None,
        num_levels: int = 3,
        num_octformer_stages: int = 1,
        stem_down: int = 2,
        halve_input: bool = True,
        drop_path: float = 0.5,
        options: OctreeOptions | None = None,
        relay: RelayOptions | None = PUBLISHED,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        heads = [width // 16 for width in channels] if num_heads is None else list(num_heads)
        first, options = num_octformer_stages, options or OctreeOptions(norm="layer")
        if len(channels) <= first or len(heads) <= first or len(num_blocks) <= first or min(num_blocks) < 1:
            raise ValueError(
                f"channels, num_blocks and num_heads must be one number for each of the {first} stages and then those "
                f"of the hierarchical stage, got {list(channels)}, {list(num_blocks)} and {heads}"
            )
        self.options, self.recompute = options, recompute
        self.stem = OctreeStem(in_channels, channels[0], stem_down, options, halve_input)
        rates = drop_rates(drop_path, sum(num_blocks))
        ends = list(itertools.accumulate(num_blocks))
        self.blocks = ModuleListOf(
            octformer_blocks(channels[i], heads[i], rates[ends[i] - num_blocks[i] : ends[i]], options)
            for i in range(first)
        )
        self.halve = ModuleListOf(halving(channels[i], channels[i + 1], options) for i in range(first))
        last = rates[-num_blocks[-1] :]
        stage = (channels[first:], heads[first:], num_levels, last, options, relay, recompute)
        self.hierarchy = HierarchicalStage(*stage)
        self.channels = tuple(_per_level(channels[first:], num_levels, "channels"))
        self.halvings = self.stem.halvings + first
        init_linear(self)
        if recompute:
            check_recompute(self)

    def forward(self, x: Tensor, octree: Octree) -> Mapping[int, Tensor]:
        """See `OctreeStages`; only the depths of the hierarchical stage."""
        return self.hierarchical(x, octree).nodes

    def hierarchical(self, x: Tensor, octree: Octree) -> HierarchicalFeatures:
        """Rows [N, in_channels] of the leaves to nodes and relay tokens of the hierarchical stage."""
        depth = octree.depth - self.stem.halvings
        x = self.stem(x, octree, octree.depth)
        for blocks, halve in zip(self.blocks, self.halve, strict=True):
            for block in blocks:
                x = call(block, x, octree, depth, recompute=self.recompute)
            x = halve(x, octree, depth)
            depth -= 1
        return self.hierarchy(x, octree, depth)


@BACKBONES.register
class HOTFormer(OctreeBackbone):
    """HOTFormer on the octree whose leaves are the voxels, with a feature pyramid at its finest hierarchical depth.

    Args:
        in_channels: of the voxels.
        grid: (Z, Y, X) cells.
        channels: of each stage of OctFormer, then of the hierarchical stage: one number, or one per depth.
        num_blocks: of each stage of OctFormer, then of the hierarchical stage.
        num_heads: as channels; by default one for every 16 channels.
        num_levels: depths of the hierarchical stage.
        num_octformer_stages: stages before it.
        stem_down: halvings of the grid before the first stage.
        drop_path: rate of stochastic depth of the last block; it rises linearly from 0 at the first.
        group_size: nodes of a window.
        dilation: of the dilated windows of the first stages.
        mlp_ratio: inner width of the feed-forward parts per channel.
        norm: after convolutions, "layer" or "batch".
        straddle: let windows go across the borders of frames, as published.
        relay: settings of `RelayOptions`.
        out_channels: of the pyramid; None for the stages as they are, for heads that read several scales.
        recompute: compute blocks again in the backward pass instead of keeping their activations.

    Attributes: out_channels; out_grid, stride and strides: cells of the finest hierarchical depth,
    2^(stem_down + num_octformer_stages) of the input's.

    Raises:
        ValueError: for sizes that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: Sequence[int] = (128, 256),
        num_blocks: Sequence[int] = (4, 10),
        num_heads: Sequence[int] | None = None,
        num_levels: int = 3,
        num_octformer_stages: int = 1,
        stem_down: int = 2,
        drop_path: float = 0.5,
        group_size: int = 64,
        dilation: int = 4,
        mlp_ratio: float = 4.0,
        norm: Literal["batch", "layer"] = "layer",
        straddle: bool = False,
        relay: Mapping[str, Any] | None = None,
        out_channels: int | None = 128,
        recompute: bool = False,
    ) -> None:
        options = OctreeOptions(group_size, dilation, mlp_ratio, norm, straddle=straddle)
        stages = HOTFormerStages(
            in_channels,
            channels,
            num_blocks,
            num_heads,
            num_levels,
            num_octformer_stages,
            stem_down,
            True,
            drop_path,
            options,
            construct(RelayOptions, relay or {}),
            recompute,
        )
        super().__init__(stages, grid, out_channels)
