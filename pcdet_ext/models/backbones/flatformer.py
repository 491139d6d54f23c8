"""FlatFormer (Liu et al., CVPR 2023): attention in equal-size groups of pillars that are sorted window by window.

[ sort along x → group → attention, FFN
  sort along x, windows shifted → group → attention, FFN
  sort along y → …
  sort along y, windows shifted → … ] × blocks
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from pcdet_ext.config import construct
from pcdet_ext.grouping.orders import ORDERS, Order, WindowX, WindowY, check_window
from pcdet_ext.grouping.partitions import PARTITIONS
from pcdet_ext.mixers.position import sinusoidal_embedding
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.mixer_block import MixerBlock
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.recompute import call, check_recompute
from pcdet_ext.structures import SparseVoxels


@BACKBONES.register
class FlatFormer(nn.Module):
    """Blocks of transformer layers, each layer with its own order of the voxels; voxels stay where they are.

    Args:
        in_channels: C, of the voxels and of all layers, at least four.
        grid: (Z, Y, X) cells.
        num_blocks: how often the layers follow each other, with their own parameters.
        window: cells (Z, Y, X) of a window, None along an axis for the whole grid. The orders use it, and shift it by
            half its size in every other layer.
        group_size: voxels that attend to each other.
        num_heads: of the attention.
        ffn_channels: inner width of the feed-forward network, twice the channels by default.
        activation: of the feed-forward network.
        temperature: of the position embedding, see `sinusoidal_embedding`.
        normalize_position: scale positions to the grid before they are embedded.
        mask_padding: the voxels that fill the last group of a frame are seen by none there; as published they are seen
            a second time.
        orders: configurations of other orders than the published four, one for each layer of a block.
        partition: configuration of another partition than `EqualGroups`; it gets the group size.
        mixer: configuration of another mixer than softmax attention.
        block: settings of `MixerBlock` that differ from the published ones (norms behind, a two-layer FFN).
        recompute: compute layers again in the backward pass instead of keeping their activations.

    Attributes: out_channels, out_grid, stride and strides, those of the input.

    Raises:
        ValueError: for sizes that are not positive, heads that do not divide the channels, fewer than four channels,
            and a partition that the mixer cannot take.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        num_blocks: int = 2,
        window: Sequence[int | None] = (None, 13, 13),
        group_size: int = 144,
        num_heads: int = 8,
        ffn_channels: int | None = None,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
        temperature: float = 10000.0,
        normalize_position: bool = False,
        mask_padding: bool = False,
        orders: Sequence[Mapping[str, Any]] | None = None,
        partition: Mapping[str, Any] | None = None,
        mixer: Mapping[str, Any] | None = None,
        block: Mapping[str, Any] | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        _check(in_channels, num_blocks, group_size, temperature)
        self.out_channels, self.out_grid, self.stride, self.strides = in_channels, tuple(grid), 1, (1, 1, 1)
        self.temperature, self.normalize_position, self.recompute = temperature, normalize_position, recompute
        self.orders = published_orders(grid, window) if orders is None else other_orders(orders, window)
        self.partition = PARTITIONS.build(
            partition or {"name": "EqualGroups", "masked": mask_padding}, group_size=group_size
        )
        mixer = mixer or {"name": "SoftmaxAttention", "num_heads": num_heads}
        number, count = itertools.count(), num_blocks * len(self.orders)
        self.blocks = ModuleListOf(
            ModuleListOf(
                transformer_layer(in_channels, mixer, ffn_channels, activation, block, next(number), count)
                for _ in self.orders
            )
            for _ in range(num_blocks)
        )
        for layer in itertools.chain(*self.blocks):
            layer.check_partition(self.partition)
            if recompute:
                check_recompute(layer)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, in_channels] to the same shape; the rows of the voxels may be in any order."""
        plans = [self.partition(voxels, order) for order in self.orders]
        position = voxels.plan((FlatFormer, self.temperature, self.normalize_position, self.out_channels), self._embed)
        x = voxels.features
        for layers in self.blocks:
            for layer, plan in zip(layers, plans, strict=True):
                x = call(layer, x, plan, position, recompute=self.recompute)
        return voxels.with_features(x)

    def _embed(self, voxels: SparseVoxels) -> Tensor:
        grid = (voxels.grid[2], voxels.grid[1]) if self.normalize_position else None
        return sinusoidal_embedding(voxels.coords[:, [3, 2]], self.out_channels, self.temperature, grid)


def transformer_layer(
    channels: int,
    mixer: Mapping[str, Any],
    ffn_channels: int | None = None,
    activation: str = "gelu",
    block: Mapping[str, Any] | None = None,
    layer_id: int = 0,
    num_layers: int = 1,
) -> MixerBlock:
    """u = LN(x + mixer(x)), y = LN(u + W₂ act(W₁ u)): a transformer layer with norms behind (section 3.3).

    Args:
        channels: C.
        mixer: its configuration.
        ffn_channels: inner width of the feed-forward network, twice the channels by default.
        activation: of the feed-forward network.
        block: settings of `MixerBlock` instead of these.
        layer_id: number of the layer among all layers, from 0.
        num_layers: how many there are.
    """
    feed_forward = {"name": "MLP", "ffn_channels": ffn_channels, "activation": activation, "xavier": True}
    settings = {"mixer": mixer, "norm": "post", "feed_forward": feed_forward}
    return construct(MixerBlock, block or {}, channels=channels, layer_id=layer_id, num_layers=num_layers, **settings)


def published_orders(grid: Sequence[int], window: Sequence[int | None]) -> list[Order]:
    """Along x and along y on snakes through windows of the whole height, each also half a window further.

    Raises ValueError for windows that do not span the height.
    """
    check_window(window)
    z, y, x = (cells if size is None else size for size, cells in zip(window, grid, strict=True))
    if z < grid[0]:
        raise ValueError(f"window must span the {grid[0]} cells of the height in these orders, got {list(window)}")
    shifts = ((0, 0, 0), (0, y // 2, x // 2))
    return [order((z, y, x), shift, "snake") for order in (WindowX, WindowY) for shift in shifts]


def other_orders(orders: Sequence[Mapping[str, Any]], window: Sequence[int | None]) -> list[Order]:
    """Configured orders, which get the window where they need one and have none. Raises ValueError for no order."""
    if not orders:
        raise ValueError("orders must name at least one order")
    return [ORDERS.build(order, window=window) for order in orders]


def _check(channels: int, num_blocks: int, group_size: int, temperature: float) -> None:
    for name, value, least in (
        ("in_channels", channels, 4),
        ("num_blocks", num_blocks, 1),
        ("group_size", group_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
