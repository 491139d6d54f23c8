"""ScatterFormer's 3-D backbone (He et al., ECCV 2024): linear attention in windows that hold whatever they hold.

convolutional stem, z halved
→ stage 1: [ attention in windows → interaction across windows, FFN ] × depth, norm
→ strided convolution, everything halved
→ stage 2: the same
→ each pillar pooled by attention
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.config import construct
from pcdet_ext.grouping.orders import ORDERS, check_window
from pcdet_ext.grouping.partitions import PARTITIONS
from pcdet_ext.mixers.linear_attention import LinearAttention
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.depthwise_conv import DepthwiseSubMConv3d
from pcdet_ext.models.layers.mixer_block import MixerBlock
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.norm import EPS, SparseBatchNorm
from pcdet_ext.models.layers.packed_linear import plus_branch
from pcdet_ext.models.layers.sparse_blocks import SparseResidualBlock, SparseSequential, conv_block
from pcdet_ext.models.layers.sparse_conv import Engine, SparseConv3d, SubMConv3d
from pcdet_ext.ops import segment_reduce
from pcdet_ext.ops.segment import segment_softmax
from pcdet_ext.structures import Groups, Segments, SparseVoxels

WINDOW = (None, 12, 12)


class CrossWindowInteraction(nn.Module):
    """Interaction across windows, then a feed-forward network (CWI and FFN in the paper).

    A quarter of the channels each goes through a depth-wise 3x3x3 convolution, one along x, one along y, both one cell
    longer than a window, and none.

    Args:
        channels: C, divisible by four.
        window: cells (Z, Y, X) of a window; y and x even, so that the long kernels have a centre.
        ffn_channels: inner width of the feed-forward network, twice the channels by default.

    Raises:
        ValueError: for sizes that do not allow that.
    """

    def __init__(self, channels: int, window: Sequence[int | None], ffn_channels: int | None = None) -> None:
        super().__init__()
        _, height, width = window
        if channels % 4:
            raise ValueError(f"channels must be divisible by four, got {channels}")
        if height is None or width is None or height % 2 or width % 2:
            raise ValueError(
                f"window must be even in y and x, so that kernels one cell longer have a centre, got {list(window)}"
            )
        quarter, hidden = channels // 4, 2 * channels if ffn_channels is None else ffn_channels
        if hidden < 1:
            raise ValueError(f"ffn_channels must be positive, got {hidden}")
        self.norm = SparseBatchNorm(channels)
        self.cube = DepthwiseSubMConv3d(quarter, (3, 3, 3))
        self.along_x = DepthwiseSubMConv3d(quarter, (1, 1, width + 1))
        self.along_y = DepthwiseSubMConv3d(quarter, (1, height + 1, 1))
        self.feed = nn.Sequential(
            SparseBatchNorm(channels), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, C] to [N, C]. The first norm is not skipped: its output is what the residual starts from."""
        x = self.norm(voxels.features)
        cube, line_x, line_y, same = x.chunk(4, dim=1)
        convolved = (self.cube(voxels, cube), self.along_x(voxels, line_x), self.along_y(voxels, line_y), same)
        x = x + torch.cat(convolved, dim=1)
        return voxels.with_features(plus_branch(x, self.feed))


class ScatterFormerStage(nn.Module):
    """Layers of linear attention in windows of the whole height and interaction across them; windows never shift.

    Args:
        channels: C.
        window: cells (Z, Y, X) of a window, None along z for the whole height; y and x even.
        num_layers: of the stage.
        num_heads: must divide the channels.
        ffn_channels: see `CrossWindowInteraction`.
        order: configuration of another order than `Window`; it gets the window.
        partition: configuration of another partition than `Windows`.
        mixer: configuration of another mixer than linear attention.
        block: settings of `MixerBlock` that differ from the published ones (batch norm before the mixer).
        layer_id: number of the first layer among those of the backbone.
        all_layers: how many those are, by default the stage's own.

    Raises:
        ValueError: for sizes that do not fit, and for a partition that the mixer cannot take.
    """

    def __init__(
        self,
        channels: int,
        window: Sequence[int | None] = WINDOW,
        num_layers: int = 3,
        num_heads: int = 4,
        ffn_channels: int | None = None,
        order: Mapping[str, Any] | None = None,
        partition: Mapping[str, Any] | None = None,
        mixer: Mapping[str, Any] | None = None,
        block: Mapping[str, Any] | None = None,
        layer_id: int = 0,
        all_layers: int | None = None,
    ) -> None:
        super().__init__()
        check_window(window)
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.order = ORDERS.build(order or {"name": "Window"}, window=window)
        self.partition = PARTITIONS.build(partition or {"name": "Windows"})
        mixer = mixer or {"name": "LinearAttention", "num_heads": num_heads}
        settings = {"mixer": mixer, "norm": "pre", "norm_kind": "batch", "norm_eps": EPS}
        settings["num_layers"] = num_layers if all_layers is None else all_layers
        self.attention = ModuleListOf(
            construct(MixerBlock, block or {}, channels=channels, layer_id=layer_id + i, **settings)
            for i in range(num_layers)
        )
        for layer in self.attention:
            layer.check_partition(self.partition)
        self.interaction = nn.ModuleList(
            CrossWindowInteraction(channels, window, ffn_channels) for _ in range(num_layers)
        )

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, C] to [N, C]."""
        plan = self.partition(voxels, self.order)
        if not isinstance(plan, Segments):
            return self._layers(voxels, plan)
        # Once for all layers, which then find the voxels of each window side by side.
        coords, plans = voxels.plan(("in_sequence", self.partition, self.order), lambda v: (v.coords[plan.order], {}))
        rows = SparseVoxels(plan.gather(voxels.features), coords, voxels.grid, voxels.batch_size, plans)
        return voxels.with_features(plan.scatter(self._layers(rows, plan.of_places()).features))

    def norms_before_linear(self) -> Iterator[tuple[nn.Module, str, nn.Module]]:
        """For inference: norms whose output only a linear layer reads; (module, name in it, layer) of each.

        The projection of linear attention is one as long as no position is added to what it reads, as here.
        """
        for block in self.attention:
            if block.mix.placement == "pre" and isinstance(block.mix.module, LinearAttention):
                yield block.mix, "norm", block.mix.module.qkv

    def _layers(self, voxels: SparseVoxels, plan: Groups | Segments) -> SparseVoxels:
        for attention, interaction in zip(self.attention, self.interaction, strict=True):
            voxels = interaction(voxels.with_features(attention(voxels.features, plan)))
        return voxels


class PillarPooling(nn.Module):
    """The voxels of each pillar pooled to one by attention: their maximum is the query, they are keys and values.

    Args:
        channels: C, divisible by num_heads.
        depth: cells of z, each with a position embedding that is added to keys only.
        num_heads: of the attention.
        nonnegative_query: the query is the maximum of the voxels and zero, as in the published model, whose sparse
            maximum pooling starts from zero.

    Raises:
        ValueError: for heads that do not divide the channels.
    """

    def __init__(self, channels: int, depth: int, num_heads: int = 8, nonnegative_query: bool = False) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"channels must be divisible by the {num_heads} heads of the pooling, got {channels}")
        self.nonnegative_query = nonnegative_query
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, num_heads)  # its parameters: its forward pads pillars
        self.position = nn.Embedding(depth, channels)
        nn.init.normal_(self.position.weight, std=0.01)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, C] to pillars [P, C] on a grid (1, Y, X), ascending by (batch, y, x)."""
        x, (coords, pillar) = voxels.features, voxels.plan("pillars", pillars)
        query = segment_reduce(x, pillar, len(coords), "max")
        query = query.relu() if self.nonnegative_query else query
        keys = x + self.position(voxels.coords[:, 1].long())
        pooled = self.norm(query + self._attend(query, keys, x, pillar))
        return SparseVoxels(pooled, coords, (1, *voxels.grid[1:]), voxels.batch_size)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, pillar: Tensor) -> Tensor:
        """Multi-head attention of one query [P, C] per pillar to its voxels, keys and values [N, C]."""
        attention = self.attention
        projections = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
        rows = zip((query, keys, values), projections, strict=True)
        q, k, v = (nn.functional.linear(x, *projection).to(query.dtype) for x, projection in rows)  # also in autocast
        heads, width = attention.num_heads, attention.head_dim
        logits = (q[pillar] * k).unflatten(1, (heads, width)).sum(2) / math.sqrt(width)
        weights = segment_softmax(logits, pillar, len(query))
        weighted = (weights[:, :, None] * v.unflatten(1, (heads, width))).flatten(1)
        return attention.out_proj(segment_reduce(weighted, pillar, len(query), "sum"))


def pillars(voxels: SparseVoxels) -> tuple[Tensor, Tensor]:
    """The occupied pillars, coords int32 [P, 4] ascending by (batch, y, x), z = 0, and each voxel's, int64 [N]."""
    _, height, width = voxels.grid
    batch, _, y, x = voxels.coords.long().unbind(1)
    keys, pillar = torch.unique((batch * height + y) * width + x, return_inverse=True)
    line = keys // width
    coords = torch.stack([line // height, torch.zeros_like(line), line % height, keys % width], 1)
    return coords.int(), pillar


@BACKBONES.register
class ScatterFormer(nn.Module):
    """The backbone: 2 times smaller in x and y, one voxel per pillar.

    Args:
        in_channels: of the voxels.
        grid: (Z, Y, X) cells of the input, to which one layer of z is added as published.
        channels: width everywhere.
        window: cells (Z, Y, X) of the windows of both stages, None along z for the whole height; y and x even, as they
            also set the long kernels to one cell more.
        num_layers: layers of each stage.
        num_heads: of the attention in windows.
        ffn_channels: inner width of the feed-forward networks, twice the channels by default.
        pool_heads: of the attention that pools pillars.
        nonnegative_query: see `PillarPooling`.
        order: configuration of another order than `Window`; it gets the window.
        partition: configuration of another partition than `Windows`.
        mixer: configuration of another mixer than linear attention.
        block: settings of `MixerBlock` that differ from the published ones (batch norm before the mixer).
        engine: of all but the depth-wise convolutions, see `sparse_conv`.

    Attributes: out_channels, out_grid (Z, Y, X), stride (input cells per output
    cell in x and y), strides (the same of z, y and x).

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: int = 128,
        window: Sequence[int | None] = WINDOW,
        num_layers: int = 3,
        num_heads: int = 4,
        ffn_channels: int | None = None,
        pool_heads: int = 8,
        nonnegative_query: bool = False,
        order: Mapping[str, Any] | None = None,
        partition: Mapping[str, Any] | None = None,
        mixer: Mapping[str, Any] | None = None,
        block: Mapping[str, Any] | None = None,
        engine: Engine = "auto",
    ) -> None:
        super().__init__()
        depth, height, width = grid
        self.in_grid = (depth + 1, height, width)
        halve_z = SparseConv3d(channels, channels, (3, 1, 1), (2, 1, 1), engine=engine)
        self.stem = SparseSequential(
            conv_block(SubMConv3d(in_channels, channels, 3, engine=engine)),
            *(SparseResidualBlock(channels, engine=engine) for _ in range(3)),
            conv_block(halve_z),
        )
        parts = {"order": order, "partition": partition, "mixer": mixer, "block": block}
        self.stages = nn.ModuleList(
            ScatterFormerStage(
                channels,
                window,
                num_layers,
                num_heads,
                ffn_channels,
                **parts,
                layer_id=stage * num_layers,
                all_layers=2 * num_layers,
            )
            for stage in range(2)
        )
        self.norms = nn.ModuleList(SparseBatchNorm(channels) for _ in self.stages)
        self.halve = SparseConv3d(channels, channels, 3, 2, 1, engine=engine)
        pooled = self.halve.out_grid(halve_z.out_grid(self.in_grid))
        self.pool = PillarPooling(channels, pooled[0], pool_heads, nonnegative_query)
        self.out_channels, self.out_grid, self.stride = channels, (1, *pooled[1:]), 2
        self.strides = (self.in_grid[0], 2, 2)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, in_channels] on `grid` to pillars [P, channels] on `out_grid`."""
        voxels = self.stem(SparseVoxels(voxels.features, voxels.coords, self.in_grid, voxels.batch_size))
        for stage, norm, then in zip(self.stages, self.norms, (self.halve, self.pool), strict=True):
            voxels = stage(voxels)
            voxels = then(voxels.with_features(norm(voxels.features)))
        return voxels
