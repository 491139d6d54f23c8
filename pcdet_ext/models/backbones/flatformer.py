"""FlatFormer (Liu et al., CVPR 2023): attention in equal-size groups of pillars that are sorted window by window.

State-dict keys are the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pcdet_ext.grouping.orders import ORDERS, Order, WindowX, WindowY
from pcdet_ext.grouping.partitions import EqualGroups
from pcdet_ext.mixers import MIXERS
from pcdet_ext.mixers.position import sinusoidal_embedding
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.structures import Groups, SparseVoxels

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


@BACKBONES.register
class FlatFormer(nn.Module):
    """Blocks of attention layers, each with its own order: along x, along x in shifted windows, along y, y shifted.

    in_channels: of the voxels and of all layers; grid: (Z, Y, X) cells; num_blocks; window: (Y, X) cells of a window,
    which spans the whole height, and is shifted by half its size in every other layer; group_size: voxels that attend
    to each other; num_heads, ffn_channels (default: twice the channels), activation ("gelu", "relu"): of a layer;
    temperature, normalize_position: of the position embedding, see `sinusoidal_embedding`. mask_padding: the voxels
    that fill the last group of a frame are seen by none there, where as published they are seen a second time.

    orders: configurations of other orders, one a layer of a block; mixer: configuration of another mixer than softmax
    attention; both instead of the published ones.

    Attributes: out_channels, out_grid, stride, all those of the input. Raises ValueError for sizes that are not
    positive, for heads that do not divide the channels, and for fewer than four channels.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        num_blocks: int = 2,
        window: Sequence[int] = (13, 13),
        group_size: int = 144,
        num_heads: int = 8,
        ffn_channels: int | None = None,
        activation: str = "gelu",
        temperature: float = 10000.0,
        normalize_position: bool = False,
        mask_padding: bool = False,
        orders: Sequence[Mapping[str, Any]] | None = None,
        mixer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check(in_channels, num_blocks, window, group_size, temperature)
        self.out_channels, self.out_grid, self.stride = in_channels, tuple(grid), 1
        self.orders = published_orders(grid[0], window) if orders is None else [ORDERS.build(o) for o in orders]
        if not self.orders:
            raise ValueError("orders must name at least one order")
        self.partition = EqualGroups(group_size, masked=mask_padding)
        self.temperature, self.normalize_position = temperature, normalize_position
        node = {"name": "SoftmaxAttention", "num_heads": num_heads} if mixer is None else mixer
        self.block_list = nn.ModuleList(
            FlatFormerBlock(in_channels, len(self.orders), node, ffn_channels, activation) for _ in range(num_blocks)
        )

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, in_channels] to the same shape; the rows of the voxels may be in any order."""
        plans = [self.partition(voxels, order) for order in self.orders]
        position = voxels.plan((FlatFormer, self.temperature, self.normalize_position, self.out_channels), self._embed)
        x = voxels.features
        for block in self.block_list:
            x = block(x, plans, position)
        return voxels.with_features(x)

    def _embed(self, voxels: SparseVoxels) -> Tensor:
        grid = (voxels.grid[2], voxels.grid[1]) if self.normalize_position else None
        return sinusoidal_embedding(voxels.coords[:, [3, 2]], self.out_channels, self.temperature, grid)


def published_orders(depth: int, window: Sequence[int]) -> list[Order]:
    """Along x and along y on snakes through windows (Y, X) of the whole depth, each also half a window further."""
    size, shift = (depth, *window), (0, window[0] // 2, window[1] // 2)
    return [order(size, by, "snake") for order in (WindowX, WindowY) for by in ((0, 0, 0), shift)]


class FlatFormerBlock(nn.Module):
    """One layer for each order, one after the other. mixer: configuration; see `FlatFormerLayer`."""

    def __init__(
        self,
        channels: int,
        num_layers: int,
        mixer: Mapping[str, Any],
        ffn_channels: int | None = None,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            FlatFormerLayer(channels, mixer, ffn_channels, activation) for _ in range(num_layers)
        )

    def forward(self, x: Tensor, plans: Sequence[Groups], position: Tensor) -> Tensor:
        """Features [N, C] to [N, C]; plans: one a layer; position: [N, C]."""
        for layer, plan in zip(self.block, plans, strict=True):
            x = layer(x, plan, position)
        return x


class FlatFormerLayer(nn.Module):
    """u = LN(x + mixer(x)), y = LN(u + W₂ act(W₁ u)): a transformer layer with norms behind (section 3.3)."""

    def __init__(
        self, channels: int, mixer: Mapping[str, Any], ffn_channels: int | None = None, activation: str = "gelu"
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        hidden = 2 * channels if ffn_channels is None else ffn_channels
        if hidden < 1:
            raise ValueError(f"ffn_channels must be positive, got {hidden}")
        self.attn = nn.ModuleDict({"attn": MIXERS.build(mixer, channels=channels)})  # nested as in published keys
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.activation = ACTIVATIONS[activation]()
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, plan: Groups, position: Tensor) -> Tensor:
        """Features [N, C] to [N, C]; position: [N, C]."""
        x = self.norm1(x + self.attn["attn"](x, plan, position))
        return self.norm2(x + self.fc2(self.activation(self.fc1(x))))


def _check(channels: int, num_blocks: int, window: Sequence[int], group_size: int, temperature: float) -> None:
    if len(window) != 2 or min(window) < 1:
        raise ValueError(f"window must be two positive sizes (Y, X) in cells, got {list(window)}")
    for name, value, least in (
        ("in_channels", channels, 4),
        ("num_blocks", num_blocks, 1),
        ("group_size", group_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
