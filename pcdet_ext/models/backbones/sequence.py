"""Any order with any partition and any mixer: a backbone whose layers a configuration puts together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.config import ConfigError, suggest
from pcdet_ext.grouping.orders import ORDERS
from pcdet_ext.grouping.partitions import PARTITIONS
from pcdet_ext.mixers import MIXERS
from pcdet_ext.mixers.sequence import SequenceMixer
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.structures import Groups, Segments, SparseVoxels

PARTS = ("order", "partition", "mixer")


@BACKBONES.register
class SequenceBackbone(nn.Module):
    """Blocks of layers, each an order, a partition and a mixer, on voxels that stay where they are.

    in_channels: of the voxels; grid: (Z, Y, X) cells; layers: the layers of a block, each a mapping of configurations
    `order`, `partition` and `mixer`; num_blocks: how often the layers follow each other, with their own parameters;
    channels: of all layers (default: in_channels); ffn_ratio: inner width of the feed-forward part over the channels.

    Attributes: out_channels, and out_grid and stride, those of the input. Raises ConfigError for a layer with missing
    or unknown parts, ValueError for sizes that are not positive.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        layers: Sequence[Mapping[str, Any]],
        num_blocks: int = 1,
        channels: int | None = None,
        ffn_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        if not layers or num_blocks < 1:
            raise ValueError(f"layers and num_blocks must be at least one, got {len(layers)} and {num_blocks}")
        self.out_channels = in_channels if channels is None else channels
        self.out_grid, self.stride = tuple(grid), 1
        for layer in layers:
            _check_parts(layer)
        self.orders = [ORDERS.build(layer["order"]) for layer in layers] * num_blocks
        self.partitions = [PARTITIONS.build(layer["partition"]) for layer in layers] * num_blocks
        self.project = nn.Identity() if channels is None else nn.Linear(in_channels, channels)
        self.position = PlaceEmbedding(self.out_channels, grid)
        self.layers = nn.ModuleList(
            MixerLayer(self.out_channels, layer["mixer"], ffn_ratio) for _ in range(num_blocks) for layer in layers
        )

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, in_channels] to [N, out_channels]; the rows of the voxels may be in any order."""
        position = self.position(voxels.coords)
        x = self.project(voxels.features)
        for order, partition, layer in zip(self.orders, self.partitions, self.layers, strict=True):
            x = layer(x, partition(voxels, order), position)
        return voxels.with_features(x)


class PlaceEmbedding(nn.Module):
    """A learned embedding of a voxel's place (x, y, z), scaled to [-1, 1] over the grid (Z, Y, X)."""

    def __init__(self, channels: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("cells", torch.tensor(list(grid), dtype=torch.float32), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(3, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, coords: Tensor) -> Tensor:
        """Coordinates [N, 4] (batch, z, y, x) to [N, channels]."""
        return self.mlp((coords[:, 1:] + 0.5) / self.cells * 2 - 1)


class MixerLayer(nn.Module):
    """A mixer as a layer: attention gets the residual form x + mixer(LN(x)), then x + FFN(LN(x)) (pre-norm).

    Mixers of sequences are whole layers, with their own norms and residuals, and stand as they are.
    Raises ValueError for a feed-forward part without channels.
    """

    def __init__(self, channels: int, mixer: Mapping[str, Any], ffn_ratio: float) -> None:
        super().__init__()
        self.mixer = MIXERS.build(mixer, channels=channels)
        hidden = int(channels * ffn_ratio)
        if hidden < 1:
            raise ValueError(f"ffn_ratio must leave at least one of {channels} channels, got {ffn_ratio}")
        self.is_whole = isinstance(self.mixer, SequenceMixer)
        if not self.is_whole:
            self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
            self.ffn = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor, plan: Groups | Segments, position: Tensor) -> Tensor:
        """Features [N, C] to [N, C]; position: [N, C]."""
        if self.is_whole:
            return self.mixer(x, plan, position)
        x = x + self.mixer(self.norm1(x), plan, position)
        return x + self.ffn(self.norm2(x))


def _check_parts(layer: Mapping[str, Any]) -> None:
    where = layer.where() if hasattr(layer, "where") else "layers"
    for part in PARTS:
        if part not in layer:
            raise ConfigError(f"{where}: a layer needs {part!r}")
    for key in layer:
        if key not in PARTS:
            raise ConfigError(f"{where}: unknown key {key!r}{suggest(key, PARTS)}")
