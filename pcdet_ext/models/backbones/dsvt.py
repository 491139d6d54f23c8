"""DSVT (Wang et al., CVPR 2023): attention in sets of equal size that each window's voxels are shared out among.

    stage = [ sets along y → attention, FFN → sets along x → attention, FFN ] × blocks
    stage → pooling → stage → … → voxels of the last stage

Windows alternate from block to block between two kinds, the second of which is larger or shifted.

Some properties of the published model that one would not choose are options, and off by default:
  mixed_positions   layer i of a block embeds the places in windows of kind i, whichever windows the block has
  count_empty       empty slots of a pooled cell take part as zeros: in the attention's keys, its query, and the maximum
  partial_cells     a grid that does not divide by a pooling stride ends with partial cells, instead of being refused
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pcdet_ext.config import construct
from pcdet_ext.grouping.orders import ORDERS, Order, Window
from pcdet_ext.grouping.partitions import PARTITIONS, Partition
from pcdet_ext.models.backbones.dsvt_pooling import Triple, make_pool, pooled_grid
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.mixer_block import MixerBlock
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.layers.recompute import call, check_recompute
from pcdet_ext.structures import Groups, Segments, SparseVoxels

TWO_PI = 2 * 3.1415  # the published constant


class PositionEmbedding(nn.Module):
    """A voxel's place in its window through two linear layers (section 3.2); z only where windows have several layers.

    Args:
        channels: C.
        window: cells, (Z, Y, X).
        normalize: places in units of the window, times 2π.
    """

    def __init__(self, channels: int, window: Triple, normalize: bool) -> None:
        super().__init__()
        self.window, self.normalize = window, normalize
        self.axes = [2, 1, 0] if window[0] > 1 else [2, 1]
        self.mlp = nn.Sequential(
            nn.Linear(len(self.axes), channels),
            SparseBatchNorm(channels, eps=1e-5, momentum=0.1),
            nn.ReLU(),
            nn.Linear(channels, channels),
        )
        _xavier_uniform(self)

    def forward(self, place: Tensor) -> Tensor:
        """Places int32 [N, 3] as (z, y, x) to embeddings [N, C]."""
        size = torch.tensor([self.window[a] for a in self.axes], device=place.device)
        centred = place[:, self.axes] - size / 2
        if self.normalize:
            centred = centred / size * TWO_PI
        return self.mlp(centred.to(next(self.mlp.parameters()).dtype))


@dataclass(frozen=True)
class Stage:
    """What the layers of a stage share.

    channels: C; windows: those of even blocks and those of odd ones; partition: into sets; normalize_position: see
    `PositionEmbedding`; mixer: its configuration; published: settings of `MixerBlock`; block: those that differ.
    """

    channels: int
    windows: tuple[Window, Window]
    partition: Partition
    normalize_position: bool
    mixer: Mapping[str, Any]
    published: Mapping[str, Any]
    block: Mapping[str, Any]


class DSVTLayer(nn.Module):
    """norm(x + block(x)): attention inside sets and a feed-forward network (equation 5), with a residual around both.

    Args:
        stage: what the layer shares with the others of its stage.
        order: configuration of the order, which gets the window where it needs one.
        window: of the sets.
        position_window: the window whose places are embedded.
        layer_id: number of the layer among all layers, from 0.
        num_layers: how many there are.
    """

    def __init__(
        self,
        stage: Stage,
        order: Mapping[str, Any],
        window: Window,
        position_window: Window,
        layer_id: int,
        num_layers: int,
    ) -> None:
        super().__init__()
        self.partition, self.position_window = stage.partition, position_window
        self.order: Order = ORDERS.build(order, window=window.window, shift=window.shift)
        z, y, x = position_window.window
        if z is None or y is None or x is None:
            raise ValueError(f"a place needs the size of its window in cells, got {position_window.window}")
        self.position = PositionEmbedding(stage.channels, (z, y, x), stage.normalize_position)
        settings = {"mixer": stage.mixer, **stage.published, "layer_id": layer_id, "num_layers": num_layers}
        self.block = construct(MixerBlock, stage.block, channels=stage.channels, **settings)
        self.block.check_partition(self.partition)
        self.norm = nn.LayerNorm(stage.channels)

    def forward(self, x: Tensor, sets: Groups | Segments, position: Tensor) -> Tensor:
        """Attention inside the sets, then the outer residual and norm.

        Args:
            x: floating-point [N, C], features of the voxels.
            sets: which voxels are together.
            position: [N, C], added to the queries and keys.

        Returns:
            [N, C].
        """
        return self.norm(self.block(x, sets, position) + x)


class DSVTBlock(nn.Module):
    """Layers one after the other, as published one along y and one along x, with a residual around them.

    Args:
        stage: what the block shares with the others of its stage.
        orders: configurations, one for each layer.
        number: of the block among all blocks, from 0.
        num_layers: of all blocks together.
        mixed_positions: see the module.
        recompute: compute each layer again in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        stage: Stage,
        orders: Sequence[Mapping[str, Any]],
        number: int,
        num_layers: int,
        mixed_positions: bool,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.recompute, window = recompute, stage.windows[number % 2]
        self.layers = ModuleListOf(
            DSVTLayer(
                stage,
                order,
                window,
                stage.windows[i % 2] if mixed_positions else window,
                number * len(orders) + i,
                num_layers,
            )
            for i, order in enumerate(orders)
        )
        if recompute:
            for layer in self.layers:
                check_recompute(layer.block)
        self.norm = nn.LayerNorm(stage.channels)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, C] to the same shape."""
        x = voxels.features
        for layer in self.layers:
            sets = layer.partition(voxels, layer.order)
            position = layer.position(layer.position_window.place(voxels))  # its batch norm must not run twice
            x = call(layer, x, sets, position, recompute=self.recompute)
        return voxels.with_features(self.norm(x + voxels.features))


@BACKBONES.register
class DSVT(nn.Module):
    """Dynamic sparse voxel transformer, on pillars or, with pooling between stages, on voxels.

    Args:
        in_channels: of the voxels, those of the first stage.
        grid: cells, (Z, Y, X).
        channels: of each stage.
        num_blocks: of each stage.
        group_sizes: slots of a set in each stage.
        windows: cells (Z, Y, X) of a window in each stage, None along an axis for the whole grid.
        shifts: for each stage those of both kinds of windows, cells (Z, Y, X); none along z where a window is as high
            as the grid.
        num_heads: of the attention in each stage.
        ffn_channels: inner width of the feed-forward network in each stage.
        hybrid_factor: size (Z, Y, X) of the second kind of windows, in those of the first.
        pool_strides: cells (Z, Y, X) that are joined between two stages.
        pooling: how; "linear" alone may change the width.
        pool_heads: heads of "attention" pooling.
        activation: of the feed-forward network.
        dropout: in layers.
        normalize_position: see `PositionEmbedding`.
        orders: configurations of the orders of a block's layers; window orders get the window and shift of the block.
        partition: configuration of another partition than `RotatedSets`; it gets the stage's group size.
        mixer: configuration of another mixer than softmax attention.
        block: settings of `MixerBlock` that differ from the published ones (norms behind, a two-layer FFN).
        recompute: compute layers again in the backward pass instead of keeping their activations.
        mixed_positions: see the module.
        count_empty: see the module.
        partial_cells: see the module.

    Attributes:
        out_channels: channels of the output.
        out_grid: its cells (Z, Y, X).
        stride: input cells per output cell in x and y.
        strides: the same in z, y and x.

    Raises:
        ValueError: for lists that do not fit each other, values out of range,
            and a partition that the mixer cannot take.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: Sequence[int],
        num_blocks: Sequence[int],
        group_sizes: Sequence[int],
        windows: Sequence[Sequence[int | None]],
        shifts: Sequence[Sequence[Sequence[int]]],
        num_heads: Sequence[int],
        ffn_channels: Sequence[int],
        hybrid_factor: Sequence[int] = (1, 1, 1),
        pool_strides: Sequence[Sequence[int]] = (),
        pooling: Literal["attention", "linear", "max"] = "attention",
        pool_heads: int = 8,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
        dropout: float = 0.0,
        normalize_position: bool = False,
        orders: Sequence[Mapping[str, Any]] = ({"name": "WindowY"}, {"name": "WindowX"}),
        partition: Mapping[str, Any] | None = None,
        mixer: Mapping[str, Any] | None = None,
        block: Mapping[str, Any] | None = None,
        recompute: bool = False,
        mixed_positions: bool = False,
        count_empty: bool = False,
        partial_cells: bool = False,
    ) -> None:
        super().__init__()
        lists = {"num_blocks": num_blocks, "group_sizes": group_sizes, "windows": windows, "shifts": shifts}
        lists |= {"num_heads": num_heads, "ffn_channels": ffn_channels}
        _check(in_channels, channels, lists, len(pool_strides), pooling, len(orders))
        grids = stage_grids(grid, pool_strides, partial_cells)
        self.in_grid, self.out_grid, self.out_channels = grids[0], grids[-1], channels[-1]
        self.pool_strides = tuple(map(_triple, pool_strides))
        self.strides = tuple(math.prod(axis) for axis in zip((1, 1, 1), *self.pool_strides, strict=True))
        stages = [
            Stage(
                width,
                stage_windows(stage_grid, window, both_shifts, hybrid_factor),
                PARTITIONS.build(partition or {"name": "RotatedSets"}, group_size=size),
                normalize_position,
                mixer or {"name": "SoftmaxAttention", "num_heads": heads},
                published_block(inner, activation, dropout),
                block or {},
            )
            for width, stage_grid, window, both_shifts, size, heads, inner in zip(
                channels, grids, windows, shifts, group_sizes, num_heads, ffn_channels, strict=True
            )
        ]
        number, num_layers = itertools.count(), sum(num_blocks) * len(orders)
        self.stages = ModuleListOf(
            ModuleListOf(
                DSVTBlock(stage, orders, next(number), num_layers, mixed_positions, recompute) for _ in range(count)
            )
            for stage, count in zip(stages, num_blocks, strict=True)
        )
        self.pools = nn.ModuleList(
            make_pool(pooling, channels[s : s + 2], stride, count_empty, pool_heads)
            for s, stride in enumerate(self.pool_strides)
        )
        _xavier_uniform(self.pools)

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
        for blocks, pool in itertools.zip_longest(self.stages, self.pools):
            for block in blocks:
                voxels = block(voxels)
            voxels = voxels if pool is None else pool(voxels)
        return voxels


def published_block(ffn_channels: int, activation: str, dropout: float) -> dict[str, Any]:
    """Settings of the `MixerBlock` in a published layer.

    Args:
        ffn_channels: width of the hidden layer of the feed-forward network.
        activation: between its two layers, by name.
        dropout: share that is set to zero in training.
    """
    feed_forward = {"name": "MLP", "ffn_channels": ffn_channels, "activation": activation, "dropout": dropout}
    return {"norm": "post", "dropout": dropout, "feed_forward": feed_forward | {"xavier": True}}


def stage_grids(grid: Sequence[int], pool_strides: Sequence[Sequence[int]], partial_cells: bool) -> list[Triple]:
    """The grid of each stage.

    Args:
        grid: cells along z, y and x of the first stage.
        pool_strides: between two stages, how many cells along z, y and x become one.
        partial_cells: whether a stride that does not divide a grid leaves cells at the end that are only partly filled.

    Raises:
        ValueError: a stride is not positive, or does not divide the grid without `partial_cells`.
    """
    grids = [_triple(grid)]
    for stride in pool_strides:
        if len(stride) != 3 or min(stride) < 1:
            raise ValueError(f"pool_strides must be three positive numbers (Z, Y, X) each, got {list(stride)}")
        if not partial_cells and any(g % s for g, s in zip(grids[-1], stride, strict=True)):
            raise ValueError(f"pool_strides: a grid of {grids[-1]} cells (Z, Y, X) does not divide by {list(stride)}")
        grids.append(pooled_grid(grids[-1], stride))
    return grids


def stage_windows(
    grid: Triple,
    window: Sequence[int | None],
    shifts: Sequence[Sequence[int]],
    hybrid_factor: Sequence[int],
) -> tuple[Window, Window]:
    """Both kinds of windows of a stage.

    Args:
        grid: cells of the stage along z, y and x.
        window: cells of a window along z, y and x; None for those of the grid.
        shifts: for each kind, by how many cells along z, y and x it is moved.
        hybrid_factor: how many times as large the second kind is along z, y and x.

    Raises:
        ValueError: a list has another length, or a value is out of range.
    """
    if len(window) != 3 or any(size is not None and size < 1 for size in window):
        raise ValueError(f"windows must be three positive numbers (Z, Y, X) or None, got {list(window)}")
    if len(hybrid_factor) != 3 or min(hybrid_factor) < 1:
        raise ValueError(f"hybrid_factor must be three positive numbers (Z, Y, X), got {list(hybrid_factor)}")
    if len(shifts) != 2 or any(len(shift) != 3 or min(shift) < 0 for shift in shifts):
        raise ValueError(f"shifts must be two times three numbers (Z, Y, X) from 0 in each stage, got {list(shifts)}")
    size = _triple([cells if size is None else size for size, cells in zip(window, grid, strict=True)])
    larger = _triple([n * factor for n, factor in zip(size, hybrid_factor, strict=True)])
    first, second = (
        Window(size, (0 if size[0] == grid[0] else z, y, x))
        for size, (z, y, x) in zip((size, larger), shifts, strict=True)
    )
    return first, second


def _triple(values: Sequence[int]) -> Triple:
    z, y, x = values
    return z, y, x


def _xavier_uniform(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def _check(
    in_channels: int,
    channels: Sequence[int],
    lists: dict[str, Sequence[Any]],
    num_pools: int,
    pooling: str,
    num_orders: int,
) -> None:
    for name, values in lists.items():
        if len(values) != len(channels) or not values:
            raise ValueError(f"{name} must have one entry per stage, {len(channels)} as channels, got {len(values)}")
    if num_pools != len(channels) - 1:
        raise ValueError(f"pool_strides must have one entry between two stages, {len(channels) - 1}, got {num_pools}")
    if in_channels != channels[0]:
        raise ValueError(f"channels begin with {channels[0]}, but the voxels have {in_channels}")
    if pooling != "linear" and len(set(channels)) > 1:
        raise ValueError(f"channels must be the same in all stages with {pooling} pooling, got {list(channels)}")
    if min(lists["num_blocks"]) < 1 or min(lists["group_sizes"]) < 1:
        raise ValueError("num_blocks and group_sizes must be at least 1 in each stage")
    if num_orders < 1:
        raise ValueError("orders must name at least one order")
