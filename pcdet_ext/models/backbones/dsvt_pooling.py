"""DSVT's pooling between stages: the voxels of a block of cells become one (Wang et al., CVPR 2023, section 3.3)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.mixers.attention import SoftmaxAttention
from pcdet_ext.structures import SparseVoxels

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class PoolPlan:
    """Where voxels go when cells are joined.

    coords: int32 [M, 4] of the new voxels, ascending by (batch, x, y, z). slot: int64 [N], the row of the new voxel
    that each voxel becomes a part of, times the cells that are joined, plus its place among them. grid: (Z, Y, X) cells
    of the new voxels.
    """

    coords: Tensor
    slot: Tensor
    grid: Triple


def pool_plan(voxels: SparseVoxels, stride: Triple) -> PoolPlan:
    """Join blocks of `stride` cells, (Z, Y, X); cached on the voxels."""
    return voxels.plan(("pool", stride), lambda v: _pool_plan(v, stride))


def _pool_plan(voxels: SparseVoxels, stride: Triple) -> PoolPlan:
    depth, height, width = grid = pooled_grid(voxels.grid, stride)
    sz, sy, sx = stride
    b, z, y, x = voxels.coords.long().unbind(1)
    key = ((b * width + x // sx) * height + y // sy) * depth + z // sz
    unique, new = torch.unique(key, return_inverse=True)
    place = ((x % sx) * sy + y % sy) * sz + z % sz
    column, line = unique // depth, unique // (depth * height)
    coords = torch.stack([line // width, unique % depth, column % height, line % width], 1)
    return PoolPlan(coords.int(), new * (sx * sy * sz) + place, grid)


def pooled_grid(grid: Sequence[int], stride: Sequence[int]) -> Triple:
    """Cells (Z, Y, X) of a grid whose cells are joined."""
    depth, height, width = (-(-g // s) for g, s in zip(grid, stride, strict=True))
    return depth, height, width


class Pool(nn.Module, ABC):
    """What the poolings share. stride: cells (Z, Y, X) that are joined; count_empty: see the module `dsvt`."""

    def __init__(self, stride: Triple, count_empty: bool) -> None:
        super().__init__()
        self.stride, self.count_empty = stride, count_empty
        self.volume = math.prod(stride)

    @abstractmethod
    def reduce(self, slots: Tensor, filled: Tensor | None) -> Tensor:
        """Slots [M, V, C] to features [M, C']; filled: bool [M, V], slots that count, or None when all do."""

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels of one stage to those of the next."""
        plan, x = pool_plan(voxels, self.stride), voxels.features
        slots = x.new_zeros(len(plan.coords) * self.volume, x.shape[1]).index_copy(0, plan.slot, x)
        filled = None
        if not self.count_empty:
            filled = torch.zeros(len(slots), dtype=torch.bool, device=x.device).index_fill(0, plan.slot, True)
            filled = filled.view(-1, self.volume)
        features = self.reduce(slots.view(-1, self.volume, x.shape[1]), filled)
        return SparseVoxels(features, plan.coords, plan.grid, voxels.batch_size)

    def highest(self, slots: Tensor, filled: Tensor | None) -> Tensor:
        """Maximum [M, C] of the slots [M, V, C] that count."""
        return (slots if filled is None else slots.masked_fill(~filled[..., None], -torch.inf)).amax(1)


class AttentionPool(Pool):
    """The maximum over a cell's voxels attends to them; their place in the cell is part of the keys (DSVT, section
    3.3).

    Args:
        channels: of the features.
        stride: cells along z, y and x that become one.
        count_empty: whether the empty places of a cell take part in the maximum as zeros, as published.
        num_heads: of the attention.

    Raises:
        ValueError: the heads do not divide the channels.
    """

    def __init__(self, channels: int, stride: Triple, count_empty: bool, num_heads: int) -> None:
        super().__init__(stride, count_empty)
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"pool_heads must divide the channels, got {num_heads} and {channels} channels")
        self.attention = SoftmaxAttention(channels, num_heads)
        self.position = nn.Parameter(torch.empty(self.volume, channels))
        self.norm = nn.LayerNorm(channels)

    def reduce(self, slots: Tensor, filled: Tensor | None) -> Tensor:
        """See `Pool`."""
        query, keys = self.highest(slots, filled), slots + self.position
        weights, biases = self.attention.in_proj_weight.chunk(3), self.attention.in_proj_bias.chunk(3)
        inputs = (query[:, None], keys, slots)
        q, k, v = (self._heads(F.linear(x, w, b)) for x, w, b in zip(inputs, weights, biases, strict=True))
        visible = None if filled is None else filled[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.norm(self.attention.out_proj(mixed.flatten(1)) + query)

    def _heads(self, x: Tensor) -> Tensor:
        """[M, L, C] to [M, heads, L, C / heads]."""
        return x.unflatten(2, (self.attention.num_heads, -1)).transpose(1, 2)


class LinearPool(Pool):
    """A cell's voxels side by side through one linear layer; empty slots are zero, as if they were not there.

    Args:
        in_channels: of the voxels.
        out_channels: of the cells.
        stride: cells along z, y and x that become one.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Triple) -> None:
        super().__init__(stride, count_empty=True)
        self.linear = nn.Linear(in_channels * self.volume, out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def reduce(self, slots: Tensor, _filled: Tensor | None) -> Tensor:
        """See `Pool`."""
        return self.norm(self.linear(slots.flatten(1)))


class MaxPool(Pool):
    """The maximum over a cell's voxels."""

    def reduce(self, slots: Tensor, filled: Tensor | None) -> Tensor:
        """See `Pool`."""
        return self.highest(slots, filled)


def make_pool(kind: str, channels: Sequence[int], stride: Triple, count_empty: bool, num_heads: int) -> Pool:
    """The pooling between two stages.

    Args:
        kind: "attention", "linear" or "max".
        channels: of both stages.
        stride: cells (Z, Y, X) that are joined.
        count_empty: see the module `dsvt`.
        num_heads: of the attention.

    Raises:
        ValueError: for another kind, and for heads of the attention that do not divide its channels.
    """
    if kind == "attention":
        return AttentionPool(channels[0], stride, count_empty, num_heads)
    if kind == "linear":
        return LinearPool(channels[0], channels[1], stride)
    if kind == "max":
        return MaxPool(stride, count_empty)
    raise ValueError(f"pooling must be attention, linear or max, got {kind!r}")
