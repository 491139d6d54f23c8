"""Any order with any partition and any mixer: a backbone whose layers a configuration puts together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pcdet_ext.config import ConfigError, construct, suggest
from pcdet_ext.grouping.orders import ORDERS
from pcdet_ext.grouping.partitions import PARTITIONS
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.feed_forward import inner_width
from pcdet_ext.models.layers.mixer_block import MixerBlock
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.position import FixedGridPosition
from pcdet_ext.structures import SparseVoxels

NEEDED = ("order", "partition", "mixer")
KNOWN = (*NEEDED, "block")


@BACKBONES.register
class SequenceBackbone(nn.Module):
    """Blocks of layers, each an order, a partition and a mixer, on voxels that stay where they are.

    Every mixer stands in a `MixerBlock`, by default x + mixer(LN(x)), then x + FFN(LN(x)).

    Args:
        in_channels: of the voxels.
        grid: (Z, Y, X) cells.
        layers: the layers of a block, each a mapping of configurations `order`, `partition` and `mixer`, and optionally
            `block`, settings of `MixerBlock`.
        num_blocks: how often the layers follow each other, with their own parameters.
        channels: C of all layers, by default in_channels.
        ffn_channels: inner width of the feed-forward parts, by default twice the channels.

    Attributes: out_channels, and out_grid, stride and strides, those of the input.

    Raises:
        ConfigError: for a layer with missing or unknown keys.
        ValueError: for sizes that are not positive, and a mixer that cannot take what its partition gives.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        layers: Sequence[Mapping[str, Any]],
        num_blocks: int = 1,
        channels: int | None = None,
        ffn_channels: int | None = None,
    ) -> None:
        super().__init__()
        if not layers or num_blocks < 1:
            raise ValueError(f"layers and num_blocks must be at least one, got {len(layers)} and {num_blocks}")
        for layer in layers:
            _check_keys(layer)
        width = in_channels if channels is None else channels
        self.out_channels, self.out_grid, self.stride, self.strides = width, tuple(grid), 1, (1, 1, 1)
        self.orders = [ORDERS.build(layer["order"]) for layer in layers] * num_blocks
        self.partitions = [PARTITIONS.build(layer["partition"]) for layer in layers] * num_blocks
        self.project = nn.Identity() if channels is None else nn.Linear(in_channels, channels)
        self.position = FixedGridPosition(width, grid)
        feed_forward = {"name": "MLP", "ffn_channels": inner_width(width, ffn_channels, 2)}
        count = num_blocks * len(layers)
        self.blocks = ModuleListOf(
            construct(
                MixerBlock,
                layers[i % len(layers)].get("block") or {},
                channels=width,
                mixer=layers[i % len(layers)]["mixer"],
                feed_forward=feed_forward,
                layer_id=i,
                num_layers=count,
            )
            for i in range(count)
        )
        for block, partition in zip(self.blocks, self.partitions, strict=True):
            block.check_partition(partition)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, in_channels] to [N, out_channels]; the rows of the voxels may be in any order."""
        position = self.position(voxels)
        x = self.project(voxels.features)
        for order, partition, block in zip(self.orders, self.partitions, self.blocks, strict=True):
            x = block(x, partition(voxels, order), position)
        return voxels.with_features(x)


def _check_keys(layer: Mapping[str, Any]) -> None:
    where = layer.where() if hasattr(layer, "where") else "layers"
    for key in NEEDED:
        if key not in layer:
            raise ConfigError(f"{where}: a layer needs {key!r}")
    for key in layer:
        if key not in KNOWN:
            raise ConfigError(f"{where}: unknown key {key!r}{suggest(key, KNOWN)}")
