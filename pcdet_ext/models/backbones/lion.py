"""LION: linear operators over large groups of voxels (Liu et al., NeurIPS 2024).

State-dict keys are the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pcdet_ext.grouping.orders import ORDERS, Order, WindowX, WindowY
from pcdet_ext.grouping.partitions import EqualGroups
from pcdet_ext.mixers import MIXERS
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.layers.sparse_conv import Triple
from pcdet_ext.models.layers.voxel_merging import VoxelMerging
from pcdet_ext.structures import SparseVoxels

NODE = Mapping[str, Any]
WINDOW_ORDERS = {"x": WindowX, "y": WindowY}
IDS_OF_A_STAGE = 8  # layers are numbered as if every stage had two levels


@BACKBONES.register
class LION(nn.Module):
    """Stages that mix at full resolution in x and y, each followed by a merge of two cells in z with voxel generation.

    in_channels: of the voxels and of every stage; grid: (Z, Y, X) cells; mixer: the linear operator, a mixer's name and
    arguments. One entry a stage: windows (z, y, x), group_sizes, and scales, (z, y, x) from each resolution of its
    encoder to the next. generation: share of voxels that generate new ones; shift: move the windows of every second
    layer by half of one; orders: of the layers' passes, "x" or "y" for lines of the windows, or an order's name and
    arguments, which then knows no windows. out_window, out_group_size: of the layer after the last stage. bev_windows,
    bev_group_sizes: of layers after one more merge (the sparse form, for sparse heads). recompute: activations of
    mixers are computed again in the backward pass instead of kept. floor_keys: see `VoxelMerging`.

    Attributes: out_channels, out_grid (Z, Y, X), stride (1: x and y stay).
    Raises ValueError where entries do not fit each other, or the grid does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        mixer: NODE,
        windows: Sequence[Sequence[int]] = ((32, 13, 13), (16, 13, 13), (8, 13, 13), (4, 13, 13)),
        group_sizes: Sequence[int] = (4096, 2048, 1024, 512),
        scales: Sequence[Sequence[Sequence[int]]] = (((2, 2, 2), (2, 2, 2)),) * 4,
        generation: float = 0.2,
        shift: bool = True,
        orders: Sequence[str | NODE] = ("x", "y"),
        out_window: Sequence[int] = (2, 13, 13),
        out_group_size: int = 256,
        bev_windows: Sequence[Sequence[int]] = (),
        bev_group_sizes: Sequence[int] = (),
        recompute: bool = False,
        floor_keys: bool = False,
    ) -> None:
        super().__init__()
        _check_lists(windows, group_sizes, scales, bev_windows, bev_group_sizes)
        self.stages = len(scales)
        self.bev_layers = len(bev_windows)
        last = IDS_OF_A_STAGE * self.stages
        layers = Layers(mixer, in_channels, orders, 4 * sum(map(len, scales)) + 2 * (1 + self.bev_layers), recompute)
        self.out_grid: Triple = tuple(grid)
        for i, (window, size, steps) in enumerate(zip(windows, group_sizes, scales, strict=True)):
            block = LIONBlock(layers, window, size, steps, shift, IDS_OF_A_STAGE * i, floor_keys)
            block.check(self.out_grid)
            self.add_module(f"linear_{i + 1}", block)
            self._add_merge(f"dow{i + 1}", in_channels, generation, floor_keys)
        self.linear_out = layers.build(out_window, out_group_size, shift, last)
        if bev_windows:
            self._add_merge("dow_out", in_channels, generation, floor_keys)
        for i, (window, size) in enumerate(zip(bev_windows, bev_group_sizes, strict=True)):
            self.add_module(f"linear_bev{i + 1}", layers.build(window, size, shift, last + 2 * (i + 1)))
        self.out_channels, self.stride = in_channels, 1

    def _add_merge(self, name: str, channels: int, generation: float, floor_keys: bool) -> None:
        merge = VoxelMerging(channels, (2, 1, 1), generation, floor_keys)
        self.out_grid = merge.out_grid(self.out_grid)
        self.add_module(name, merge)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, in_channels] on `grid` to voxels [M, in_channels] on `out_grid`."""
        return self.scales(voxels)[-1]

    def scales(self, voxels: SparseVoxels) -> list[SparseVoxels]:
        """The voxels after each stage's merge, then the output."""
        found = []
        for i in range(1, self.stages + 1):
            voxels = self.get_submodule(f"linear_{i}")(voxels)
            voxels, _ = self.get_submodule(f"dow{i}")(voxels)
            found.append(voxels)
        voxels = self.linear_out(voxels)
        if self.bev_layers:
            voxels, _ = self.dow_out(voxels)
        for i in range(1, self.bev_layers + 1):
            voxels = self.get_submodule(f"linear_bev{i}")(voxels)
        return [*found, voxels]


class LIONBlock(nn.Module):
    """Encoder and decoder over resolutions (figure 3): layers on the way down, layers and skips on the way up.

    scales: (z, y, x) from each resolution to the next; shift: of the windows of every second level; layer_id: of the
    first layer. Other arguments as in `LION`.
    """

    def __init__(
        self,
        layers: Layers,
        window: Sequence[int],
        group_size: int,
        scales: Sequence[Sequence[int]],
        shift: bool,
        layer_id: int,
        floor_keys: bool = False,
    ) -> None:
        super().__init__()
        depth = len(scales)
        self.encoder, self.decoder = (
            nn.ModuleList(
                layers.build(window, group_size, shift and i % 2 == 1, layer_id + 2 * (i + first)) for i in range(depth)
            )
            for first in (0, depth)
        )
        self.pos_emb_list = nn.ModuleList(PositionEmbedding(layers.channels) for _ in scales)
        self.downsample_list = nn.ModuleList(
            VoxelMerging(layers.channels, scale, floor_keys=floor_keys) for scale in scales
        )
        self.decoder_norm = nn.ModuleList(nn.LayerNorm(layers.channels) for _ in scales)

    def check(self, grid: Triple) -> None:
        """ValueError where a grid (Z, Y, X) does not divide by the scales."""
        for merge in self.downsample_list:
            grid = merge.out_grid(grid)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, C] to the same shape and cells."""
        passed = []
        for embed, layer, merge in zip(self.pos_emb_list, self.encoder, self.downsample_list, strict=True):
            fine = layer(embed(voxels))
            voxels, parent = merge(fine)
            passed.append((fine, parent))
        for layer, norm in zip(self.decoder, self.decoder_norm, strict=True):
            coarse = layer(voxels)
            fine, parent = passed.pop()
            voxels = fine.with_features(norm(fine.features + coarse.features[parent]))
        return voxels


class LIONLayer(nn.Module):
    """Passes over large groups of voxels: window by window along x, then along y (section 3.1)."""

    def __init__(self, blocks: Sequence[nn.Module], orders: Sequence[Order], group_size: int, recompute: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.orders, self.partition, self.recompute = orders, EqualGroups(group_size), recompute

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, C] to the same shape and cells."""
        x = voxels.features
        for block, order in zip(self.blocks, self.orders, strict=True):
            plan = self.partition(voxels, order)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, plan, use_reentrant=False)
            else:
                x = block(x, plan)
        return voxels.with_features(x)


class Layers:
    """What all window layers of a backbone have in common; see `LION`. layers: how many operators there are."""

    def __init__(
        self, mixer: NODE, channels: int, orders: Sequence[str | NODE], layers: int, recompute: bool = False
    ) -> None:
        for order in orders:
            if isinstance(order, str) and order not in WINDOW_ORDERS:
                raise ValueError(f'orders must be "x", "y" or an order\'s name and arguments, got {order!r}')
        self.mixer, self.channels, self.orders = mixer, channels, orders
        self.layers, self.recompute = layers, recompute

    def build(self, window: Sequence[int], group_size: int, shift: bool, layer_id: int) -> LIONLayer:
        """A layer with windows (z, y, x); its passes are numbered from layer_id."""
        if len(window) != 3 or min(window) < 1:
            raise ValueError(f"a window must be three numbers (z, y, x), at least 1, got {list(window)}")
        if group_size < 1:
            raise ValueError(f"group sizes must be at least 1, got {group_size}")
        half = tuple(w // 2 for w in window) if shift else (0, 0, 0)
        orders = [
            WINDOW_ORDERS[order](tuple(window), half) if isinstance(order, str) else ORDERS.build(order)
            for order in self.orders
        ]
        mixers = [
            MIXERS.build(self.mixer, channels=self.channels, layer_id=layer_id + i, num_layers=self.layers)
            for i in range(len(orders))
        ]
        return LIONLayer(mixers, orders, group_size, self.recompute)


class PositionEmbedding(nn.Module):
    """Adds an embedding of the voxel's place in the grid, a small network of (x, y, z) in about [−π, π]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = SparseBatchNorm(channels, eps=1e-5, momentum=0.1)
        self.position_embedding_head = nn.Sequential(
            nn.Linear(3, channels), norm, nn.ReLU(), nn.Linear(channels, channels)
        )

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, C] to the same shape."""
        return voxels.with_features(voxels.features + self.position_embedding_head(_places(voxels)))


def _places(voxels: SparseVoxels) -> Tensor:
    """(x, y, z) [N, 3] of each voxel; 3.1415 is the published constant."""
    size = voxels.features.new_tensor(voxels.grid)
    return ((voxels.coords[:, 1:] - size / 2) / size * 2 * 3.1415).flip(1)


def _check_lists(
    windows: Sequence,
    group_sizes: Sequence,
    scales: Sequence[Sequence],
    bev_windows: Sequence,
    bev_group_sizes: Sequence,
) -> None:
    if not len(windows) == len(group_sizes) == len(scales) > 0:
        counts = f"{len(windows)}, {len(group_sizes)} and {len(scales)}"
        raise ValueError(f"windows, group_sizes and scales must have one entry a stage, got {counts}")
    if not all(scales):
        raise ValueError(f"scales must have at least one entry in every stage, got {list(scales)}")
    if len(bev_windows) != len(bev_group_sizes):
        counts = f"{len(bev_windows)} and {len(bev_group_sizes)}"
        raise ValueError(f"bev_windows and bev_group_sizes must have equally many entries, got {counts}")
