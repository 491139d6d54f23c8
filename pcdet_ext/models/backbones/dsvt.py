"""DSVT (Wang et al., CVPR 2023): attention in sets of equal size that each window's voxels are shared out among.

    [ sets by y → attention → sets by x → attention ] × blocks → pooling → … → voxels of the last stage

Windows alternate from block to block between two layouts, the second larger or shifted. State-dict keys are those of
the published implementation.

Its properties that one would not choose are named options, all off:
  mixed_positions   layer i of a block is told the place in the windows of layout i, whichever layout the block has
  count_empty       empty slots of a pooled cell take part as zeros: in the attention's keys, its query, and the maximum
  partial_cells     a grid that does not divide by a pooling stride ends with partial cells, instead of being refused
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from pcdet_ext.grouping.partitions import SetPlan, rotated_set_plan
from pcdet_ext.mixers.attention import SoftmaxAttention
from pcdet_ext.models.backbones.dsvt_pooling import Triple, make_pool, pooled_grid
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.structures import Groups, SparseVoxels

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}
TWO_PI = 2 * 3.1415  # the published constant


@dataclass(frozen=True)
class Layout:
    """One way to cut a stage's grid: window and shift in cells, (Z, Y, X), and slots of a set."""

    window: Triple
    shift: Triple
    set_size: int

    def plan(self, voxels: SparseVoxels) -> SetPlan:
        """The sets of these voxels; cached on them."""
        return rotated_set_plan(voxels, self.window, self.shift, self.set_size)


class PositionEmbedding(nn.Module):
    """A voxel's place in its window through two linear layers (section 3.2); z only where windows have several layers.

    window: cells, (Z, Y, X); normalize: place in units of the window, times 2π.
    """

    def __init__(self, channels: int, window: Triple, normalize: bool) -> None:
        super().__init__()
        self.window, self.normalize = window, normalize
        self.axes = [2, 1, 0] if window[0] > 1 else [2, 1]
        self.position_embedding_head = nn.Sequential(
            nn.Linear(len(self.axes), channels),
            SparseBatchNorm(channels, eps=1e-5, momentum=0.1),
            nn.ReLU(),
            nn.Linear(channels, channels),
        )

    def forward(self, inside: Tensor) -> Tensor:
        """Places int32 [N, 3] as (z, y, x) to embeddings [N, channels]."""
        size = torch.tensor([self.window[a] for a in self.axes], device=inside.device)
        place = inside[:, self.axes] - size / 2
        if self.normalize:
            place = place / size * TWO_PI
        return self.position_embedding_head(place.to(self.position_embedding_head[0].weight.dtype))


class InputLayer(nn.Module):
    """Position embeddings of every stage, block and layer, under the published name."""

    def __init__(self, channels: Sequence[int], windows: Sequence[Sequence[Sequence[Triple]]], normalize: bool) -> None:
        super().__init__()
        self.posembed_layers = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(PositionEmbedding(width, w, normalize) for w in block) for block in stage)
            for width, stage in zip(channels, windows, strict=True)
        )


class SetAttention(nn.Module):
    """Attention inside sets and a feed-forward network, each with residual and norm after it (equation 5)."""

    def __init__(self, channels: int, num_heads: int, ffn_channels: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.self_attn = SoftmaxAttention(channels, num_heads)
        self.linear1 = nn.Linear(channels, ffn_channels)
        self.linear2 = nn.Linear(ffn_channels, channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, sets: Groups, position: Tensor) -> Tensor:
        """Features [N, C] to the same shape; position: [N, C]."""
        x = self.norm1(x + self.dropout(self.self_attn(x, sets, position)))
        inner = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return self.norm2(x + self.dropout(inner))


class EncoderLayer(nn.Module):
    """Set attention beside an identity."""

    def __init__(self, channels: int, *arguments: Any) -> None:
        super().__init__()
        self.win_attn = SetAttention(channels, *arguments)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, sets: Groups, position: Tensor) -> Tensor:
        """Features [N, C] to the same shape; position: [N, C]."""
        return self.norm(self.win_attn(x, sets, position) + x)


class DSVTBlock(nn.Module):
    """Two layers: sets sorted by y, then sets sorted by x (section 3.2)."""

    def __init__(self, channels: int, *arguments: Any) -> None:
        super().__init__()
        self.encoder_list = nn.ModuleList(EncoderLayer(channels, *arguments) for _ in range(2))

    def forward(self, x: Tensor, plan: SetPlan, positions: Sequence[Tensor]) -> Tensor:
        """Features [N, C] to the same shape; positions: [N, C] for each layer."""
        for layer, sets, position in zip(self.encoder_list, (plan.y_major, plan.x_major), positions, strict=True):
            x = layer(x, sets, position)
        return x


@BACKBONES.register
class DSVT(nn.Module):
    """Dynamic sparse voxel transformer, on pillars or, with pooling between stages, on voxels.

    in_channels: of the voxels, those of the first stage; grid: cells, (Z, Y, X). One entry a stage: channels; blocks,
    their number; set_sizes, slots of a set; windows, cells (Z, Y, X); shifts, of both layouts, cells (Z, Y, X), none
    along z where a window is as high as the grid; num_heads; ffn_channels. hybrid_factor: size of the second layout's
    windows, (Z, Y, X), in those of the first. pool_strides: cells (Z, Y, X) joined between two stages; pooling: how,
    "linear" alone may change the width; pool_heads: of "attention". normalize_position: see `PositionEmbedding`.
    checkpoint: compute blocks again in the backward pass instead of keeping their activations.
    mixed_positions, count_empty, partial_cells: see the module.

    Attributes: out_channels, out_grid (Z, Y, X), stride (input cells per output cell in x and y).
    Raises ValueError for lists that do not fit each other and for values out of range.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: Sequence[int],
        blocks: Sequence[int],
        set_sizes: Sequence[int],
        windows: Sequence[Sequence[int]],
        shifts: Sequence[Sequence[Sequence[int]]],
        num_heads: Sequence[int],
        ffn_channels: Sequence[int],
        hybrid_factor: Sequence[int] = (1, 1, 1),
        pool_strides: Sequence[Sequence[int]] = (),
        pooling: Literal["attention", "linear", "max"] = "attention",
        pool_heads: int = 8,
        activation: Literal["gelu", "relu"] = "gelu",
        dropout: float = 0.0,
        normalize_position: bool = False,
        checkpoint: bool = False,
        mixed_positions: bool = False,
        count_empty: bool = False,
        partial_cells: bool = False,
    ) -> None:
        super().__init__()
        lists = {"blocks": blocks, "set_sizes": set_sizes, "windows": windows, "shifts": shifts}
        lists |= {"num_heads": num_heads, "ffn_channels": ffn_channels}
        _check(in_channels, channels, lists, len(pool_strides), pooling, activation)
        grids = stage_grids(grid, pool_strides, partial_cells)
        self.layouts = [
            stage_layouts(*stage, hybrid_factor) for stage in zip(grids, windows, shifts, set_sizes, strict=True)
        ]
        self.mixed_positions, self.checkpoint = mixed_positions, checkpoint
        self.blocks, self.pool_strides = tuple(blocks), tuple(map(_triple, pool_strides))
        self.in_grid, self.out_grid = grids[0], grids[-1]
        self.out_channels = channels[-1]

        told = [[self._layouts(s, b)[1] for b in range(count)] for s, count in enumerate(blocks)]
        told_windows = [[[both[i].window for i in b] for b in s] for both, s in zip(self.layouts, told, strict=True)]
        self.input_layer = InputLayer(channels, told_windows, normalize_position)
        for s, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            arguments = (width, num_heads[s], ffn_channels[s], dropout, activation)
            self.add_module(f"stage_{s}", nn.ModuleList(DSVTBlock(*arguments) for _ in range(count)))
            self.add_module(f"residual_norm_stage_{s}", nn.ModuleList(nn.LayerNorm(width) for _ in range(count)))
        for s, stride in enumerate(self.pool_strides):
            widths = channels[s : s + 2]
            self.add_module(f"stage_{s}_reduction", make_pool(pooling, widths, stride, count_empty, pool_heads))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def _layouts(self, stage: int, block: int) -> tuple[int, tuple[int, int]]:
        """Which layout a block has, and in the windows of which ones its layers are told the place."""
        own = (sum(self.blocks[:stage]) + block) % 2
        return own, (0, 1) if self.mixed_positions else (own, own)

    @property
    def stride(self) -> int:
        """Input cells per output cell in x and y. Raises ValueError where they are not the same."""
        strides = [math.prod(stride[axis] for stride in self.pool_strides) for axis in (1, 2)]
        if strides[0] != strides[1]:
            raise ValueError(f"pool_strides shrink y by {strides[0]} and x by {strides[1]}: a map needs one stride")
        return strides[0]

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, in_channels] on `grid` to voxels [M, out_channels] on `out_grid`.

        Rows keep their order, or where there is pooling ascend by (batch, x, y, z).
        Raises ValueError for voxels on another grid.
        """
        if tuple(voxels.grid) != self.in_grid:
            raise ValueError(f"the voxels are on a grid of {voxels.grid} cells (Z, Y, X), not of {self.in_grid}")
        for s in range(len(self.blocks)):
            voxels = voxels.with_features(self._run_stage(voxels, s))
            if s < len(self.pool_strides):
                voxels = getattr(self, f"stage_{s}_reduction")(voxels)
        return voxels

    def _run_stage(self, voxels: SparseVoxels, stage: int) -> Tensor:
        blocks, norms = getattr(self, f"stage_{stage}"), getattr(self, f"residual_norm_stage_{stage}")
        layouts = [self._layouts(stage, number) for number in range(len(blocks))]
        used = {i for own, told in layouts for i in (own, *told)}
        plans = {i: self.layouts[stage][i].plan(voxels) for i in sorted(used)}
        x, recomputing = voxels.features, self.checkpoint and torch.is_grad_enabled()
        for (own, told), block, norm, embeddings in zip(
            layouts, blocks, norms, self.input_layer.posembed_layers[stage], strict=True
        ):
            positions = [embed(plans[i].inside) for embed, i in zip(embeddings, told, strict=True)]
            run = partial(recompute, block, use_reentrant=False) if recomputing else block
            x = norm(run(x, plans[own], positions) + x)
        return x


def stage_grids(grid: Sequence[int], pool_strides: Sequence[Sequence[int]], partial_cells: bool) -> list[Triple]:
    """The grid (Z, Y, X) of each stage. Raises ValueError where a stride does not divide it, unless `partial_cells`."""
    grids = [_triple(grid)]
    for stride in pool_strides:
        if len(stride) != 3 or min(stride) < 1:
            raise ValueError(f"pool_strides must be three positive numbers (Z, Y, X) each, got {list(stride)}")
        if not partial_cells and any(g % s for g, s in zip(grids[-1], stride, strict=True)):
            raise ValueError(f"pool_strides: a grid of {grids[-1]} cells (Z, Y, X) does not divide by {list(stride)}")
        grids.append(pooled_grid(grids[-1], stride))
    return grids


def stage_layouts(
    grid: Triple,
    window: Sequence[int],
    shifts: Sequence[Sequence[int]],
    set_size: int,
    hybrid_factor: Sequence[int],
) -> tuple[Layout, Layout]:
    """Both layouts of a stage. Raises ValueError for lists of another length and values out of range."""
    for name, values, least in (("windows", window, 1), ("hybrid_factor", hybrid_factor, 1)):
        if len(values) != 3 or min(values) < least:
            raise ValueError(f"{name} must be three positive numbers (Z, Y, X), got {list(values)}")
    if len(shifts) != 2 or any(len(shift) != 3 or min(shift) < 0 for shift in shifts):
        raise ValueError(f"shifts must be two times three numbers (Z, Y, X) from 0 on a stage, got {list(shifts)}")
    if set_size < 1:
        raise ValueError(f"set_sizes must be at least 1, got {set_size}")
    larger = [w * f for w, f in zip(window, hybrid_factor, strict=True)]
    layouts = []
    for size, (z, y, x) in zip((window, larger), shifts, strict=True):
        layouts.append(Layout(_triple(size), (0 if size[0] == grid[0] else z, y, x), set_size))
    return layouts[0], layouts[1]


def _triple(values: Sequence[int]) -> Triple:
    z, y, x = values
    return z, y, x


def _check(
    in_channels: int,
    channels: Sequence[int],
    lists: dict[str, Sequence[Any]],
    pools: int,
    pooling: str,
    activation: str,
) -> None:
    for name, values in lists.items():
        if len(values) != len(channels) or not values:
            raise ValueError(f"{name} must have one entry a stage, {len(channels)} as channels, got {len(values)}")
    if pools != len(channels) - 1:
        raise ValueError(f"pool_strides must have one entry between two stages, {len(channels) - 1}, got {pools}")
    if in_channels != channels[0]:
        raise ValueError(f"channels begin with {channels[0]}, but the voxels have {in_channels}")
    if pooling != "linear" and len(set(channels)) > 1:
        raise ValueError(f"channels must be the same in all stages with {pooling} pooling, got {list(channels)}")
    if min(lists["blocks"]) < 1 or min(lists["ffn_channels"]) < 1:
        raise ValueError("blocks and ffn_channels must be at least 1 in each stage")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
