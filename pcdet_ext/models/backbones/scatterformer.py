"""ScatterFormer's 3-D backbone (He et al., ECCV 2024): linear attention in windows that hold whatever they hold.

    convolutional stem, z halved
    → stage 1: [ attention in windows → interaction across windows → FFN ] × depth, norm
    → strided convolution, everything halved
    → stage 2: the same
    → each pillar pooled by attention

State-dict keys are those of the published model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pcdet_ext.grouping.partitions import window_index, window_segments
from pcdet_ext.mixers.linear_attention import LinearAttention
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.backbones.second import SparseResidualBlock, SparseSequential
from pcdet_ext.models.layers.depthwise_conv import DepthwiseSubMConv3d
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.layers.sparse_conv import Engine, SparseConv3d, SubMConv3d
from pcdet_ext.ops import segment_reduce
from pcdet_ext.ops.segment import segment_softmax
from pcdet_ext.structures import Segments, SparseVoxels


class CrossWindowFFN(nn.Module):
    """Interaction across windows, then a feed-forward network (CWI and FFN in the paper).

    A quarter of the channels each goes through a depth-wise 3x3x3 convolution, one along x, one along y, both longer
    than a window, and none. channels: C, divisible by four; window: cells a side, even, the long kernels have one more.
    Raises ValueError for sizes that do not allow that.
    """

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"channels must be divisible by four, got {channels}")
        if window % 2:
            raise ValueError(f"window must be even, so that kernels of window + 1 cells have a centre, got {window}")
        quarter, length = channels // 4, window + 1
        self.bn = SparseBatchNorm(channels)
        self.conv_k = DepthwiseSubMConv3d(quarter, (3, 3, 3))
        self.conv_h = DepthwiseSubMConv3d(quarter, (1, 1, length))
        self.conv_w = DepthwiseSubMConv3d(quarter, (1, length, 1))
        self.bn2 = SparseBatchNorm(channels)
        self.fc1 = nn.Linear(channels, 2 * channels)
        self.fc2 = nn.Linear(2 * channels, channels)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, C] to [N, C]. The first norm is not skipped: its output is what the residual starts from."""
        x = self.bn(voxels.features)
        cube, along_x, along_y, same = x.chunk(4, dim=1)
        convolved = (self.conv_k(voxels, cube), self.conv_h(voxels, along_x), self.conv_w(voxels, along_y), same)
        x = x + torch.cat(convolved, dim=1)
        return voxels.with_features(x + self.fc2(torch.relu(self.fc1(self.bn2(x)))))


class ScatterFormerBlock(nn.Module):
    """Layers of linear attention in windows of the whole height and interaction across them; windows never shift.

    channels: C; window: cells a side, even; num_layers: number of layers; num_heads: must divide the channels.
    """

    def __init__(self, channels: int, window: int, num_layers: int = 3, num_heads: int = 4) -> None:
        super().__init__()
        if window < 1 or num_layers < 1:
            raise ValueError(f"window and num_layers must be at least 1, got {window} and {num_layers}")
        self.window = window
        self.norm_layers = nn.ModuleList(SparseBatchNorm(channels) for _ in range(num_layers))
        self.attn_layers = nn.ModuleList(LinearAttention(channels, num_heads) for _ in range(num_layers))
        self.cffn_layers = nn.ModuleList(CrossWindowFFN(channels, window) for _ in range(num_layers))

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, C] to [N, C]."""
        windows = voxels.plan(("scatterformer_windows", self.window), self._windows)
        for norm, attention, interaction in zip(self.norm_layers, self.attn_layers, self.cffn_layers, strict=True):
            x = voxels.features
            voxels = interaction(voxels.with_features(x + attention(norm(x), windows)))
        return voxels

    def _windows(self, voxels: SparseVoxels) -> Segments:
        size = (voxels.grid[0], self.window, self.window)
        return window_segments(window_index(voxels.coords, voxels.grid, size, (0, 0, 0)))


class PillarPooling(nn.Module):
    """The voxels of each pillar pooled to one by attention: their maximum asks, they answer.

    channels: C, divisible by num_heads; depth: cells of z, each with a position embedding that is added to keys only.
    nonnegative_query: the query is the maximum of the voxels and zero, as in the published model, whose sparse maximum
    pooling starts from zero. Raises ValueError for heads that do not divide the channels.
    """

    def __init__(self, channels: int, depth: int, num_heads: int = 8, nonnegative_query: bool = False) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"channels must be divisible by the {num_heads} heads of the pooling, got {channels}")
        self.nonnegative_query = nonnegative_query
        self.norm = nn.LayerNorm(channels)
        self.self_attn = nn.MultiheadAttention(channels, num_heads)  # its parameters: its forward pads pillars
        self.pos_embedding = nn.Embedding(depth, channels)
        nn.init.normal_(self.pos_embedding.weight, std=0.01)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, C] to pillars [P, C] on a grid (1, Y, X), ascending by (batch, y, x)."""
        x, (coords, pillar) = voxels.features, voxels.plan("pillars", pillars)
        query = segment_reduce(x, pillar, len(coords), "max")
        query = query.relu() if self.nonnegative_query else query
        keys = x + self.pos_embedding(voxels.coords[:, 1].long())
        pooled = self.norm(query + self._attend(query, keys, x, pillar))
        return SparseVoxels(pooled, coords, (1, *voxels.grid[1:]), voxels.batch_size)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, pillar: Tensor) -> Tensor:
        """Multi-head attention of one query [P, C] a pillar to its voxels, keys and values [N, C]."""
        attention = self.self_attn
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
    """The backbone: 2 times smaller in x and y, one voxel a pillar.

    in_channels: of the voxels; grid: (Z, Y, X) cells of the input, to which one layer of z is added as published;
    channels: width everywhere; window: cells a side of the windows of both stages, even, as it also sets the long
    kernels to window + 1; num_layers: layers of each stage; num_heads, pooling_heads: of the attention in windows and
    of the pooling; nonnegative_query: see `PillarPooling`; engine: of all but the depth-wise convolutions, see
    `sparse_conv`.

    Attributes: out_channels, out_grid (Z, Y, X), stride (input cells per output cell in x and y).
    Raises ValueError for sizes that do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: int = 128,
        window: int = 12,
        num_layers: int = 3,
        num_heads: int = 4,
        pooling_heads: int = 8,
        nonnegative_query: bool = False,
        engine: Engine = "auto",
    ) -> None:
        super().__init__()
        depth, height, width = grid
        self.in_grid = (depth + 1, height, width)
        halve_z = SparseConv3d(channels, channels, (3, 1, 1), (2, 1, 1), engine=engine)
        halve = SparseConv3d(channels, channels, 3, 2, 1, engine=engine)
        self.cpe = SparseSequential(
            _conv_block(SubMConv3d(in_channels, channels, 3, engine=engine)),
            *(SparseResidualBlock(channels, engine=engine) for _ in range(3)),
            _conv_block(halve_z),
        )

        def block() -> ScatterFormerBlock:
            return ScatterFormerBlock(channels, window, num_layers, num_heads)

        self.stage1 = nn.ModuleList([block(), SparseBatchNorm(channels), halve])
        self.stage2 = nn.ModuleList([block(), SparseBatchNorm(channels)])
        pooled = halve.out_grid(halve_z.out_grid(self.in_grid))
        self.app = PillarPooling(channels, pooled[0], pooling_heads, nonnegative_query)
        self.out_channels, self.out_grid, self.stride = channels, (1, *pooled[1:]), 2

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, in_channels] on `grid` to pillars [P, channels] on `out_grid`."""
        voxels = self.cpe(SparseVoxels(voxels.features, voxels.coords, self.in_grid, voxels.batch_size))
        block, norm, halve = self.stage1
        voxels = block(voxels)
        voxels = halve(voxels.with_features(norm(voxels.features)))
        block, norm = self.stage2
        voxels = block(voxels)
        return self.app(voxels.with_features(norm(voxels.features)))


def _conv_block(conv: SparseConv3d) -> SparseSequential:
    return SparseSequential(conv, SparseBatchNorm(conv.out_channels), nn.ReLU())
